"""`semiocity browse` from its arguments to the interrupt that ends it."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path
from urllib.parse import urlencode

from semiocity.data.columns import Dataset
from semiocity.errors import UserError
from semiocity.launch import loopback
from semiocity.ui.browse.chosen import Views
from semiocity.ui.browse.library import Library, show_progress
from semiocity.ui.browse.server import Gallery


def browse(
    dataset: Path,
    port: int,
    host: str | None,
    shards: str | None,
    contents: bool | None,
    cache: Path | None,
    view: str | None = None,
) -> int:
    """Serve until interrupted. The page is there at once, and shows how far its index is. It begins with the rows of
    the saved `view`, if one is named."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: 0 to 65535")
    if view is not None:
        Views(Dataset.open(dataset)).revision(view)  # no page for what is not there
    library = Library(dataset, _shards(shards), contents, cache)
    gallery = Gallery(library, port)
    address = gallery.url + (f"?{urlencode({'view': view})}" if view else "")
    print(loopback.announcement(loopback.own_ssh_line(gallery.server_port, host), address), flush=True)
    threading.Thread(target=gallery.serve_forever, daemon=True).start()
    try:
        show_progress(library)
        if library.shelf is None:
            raise UserError(library.error or f"{dataset}: the index was not built")
        print(f"{len(library.shelf.index)} rows", file=sys.stderr, flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        library.close()
        gallery.shutdown()
        gallery.server_close()
    return 0


def _shards(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found:
        raise UserError(f"--shards {text}: expected FIRST:END, such as 0:100")
    return int(found[1]), int(found[2])
