"""The gallery's pages and data over HTTP, on loopback only.

Loopback is open to everyone on the node and to every page in the user's browser. So all of it lies behind a random
path prefix; requests whose Host is not loopback are refused (a foreign name that was made to resolve to 127.0.0.1);
nothing but GET and HEAD is answered; static files come from a fixed list, rows by number, fields by declared names, so
no path of a request ever reaches the file system. Captions and names are data: the page writes them as text, and the
Content-Security-Policy forbids scripts, styles and addresses that are not ours. Nothing is loaded from elsewhere.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
import traceback
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from semiocity.data.manifest import BASE
from semiocity.errors import UserError
from semiocity.launch import loopback
from semiocity.ui.browse import facts, pictures, query
from semiocity.ui.browse.library import Library, Shelf

STATIC = {
    "": ("page.html", "text/html; charset=utf-8"),
    "style.css": ("style.css", "text/css; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
    **{
        name: (name, "text/javascript; charset=utf-8")
        for name in (
            "app.js",
            "dom.js",
            "state.js",
            "filters.js",
            "gallery.js",
            "sample.js",
            "layers.js",
            "rle.js",
            "viewer.js",
        )
    },
}
"""Path → file in this package and its media type. Nothing else of the disk is served by name."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
ALWAYS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""Any port: the user's end of the tunnel may have another."""
FRESH = "no-store"
KEPT = "private, max-age=86400, immutable"
"""For addresses that name the version of the index: they mean the same for ever."""
PAGE_MOST = 500
URL_MOST = 16_384


class Reply(NamedTuple):
    """What goes back."""

    status: HTTPStatus
    media: str
    body: bytes
    cache: str = FRESH
    headers: tuple[tuple[str, str], ...] = ()


class Refused(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class Gallery(ThreadingHTTPServer):
    """Serves one library behind a secret prefix."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, library: Library, port: int = 0) -> None:
        """Port 0 lets the system choose. Raises UserError when the port is taken."""
        self.library = library
        self.prefix = loopback.secret_prefix()
        self.thumbnails = pictures.Thumbnails()
        try:
            super().__init__((loopback.HOST, port), Handler)
        except OSError as error:
            raise UserError(f"port {port}: {error.strerror}; without --port the system chooses one") from None

    @property
    def url(self) -> str:
        return loopback.address(self.server_port, self.prefix)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error; anything else is told without the request's secret address."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            traceback.print_exc()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Gallery
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "semiocity", ""
    timeout = 60
    """Seconds that an idle connection may stay."""
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # nobody reads the body: it must not pass for the next request
        self._answer(self._reply())

    do_HEAD = do_GET

    def _no(self) -> None:
        # The body of what is refused was not read: the connection cannot be used on.
        self.close_connection = True
        text = "only GET and HEAD"
        self._answer(_plain(HTTPStatus.METHOD_NOT_ALLOWED, text, (("Allow", "GET, HEAD"),)))

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _no

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What is no HTTP, and methods that nobody knows."""
        self.close_connection = True
        status = HTTPStatus(code)
        self._answer(_plain(status, status.phrase))

    def version_string(self) -> str:
        return "semiocity"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the address holds the secret."""

    def _answer(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in (*ALWAYS.items(), *reply.headers):
            self.send_header(name, value)
        self.send_header("Cache-Control", reply.cache)
        self.send_header("Content-Type", reply.media)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if getattr(self, "command", None) != "HEAD":
            self.wfile.write(reply.body)
        self.wfile.flush()

    def _reply(self) -> Reply:
        try:
            return self._route()
        except Refused as refused:
            return _plain(refused.status, str(refused))
        except UserError as error:
            return _json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except ConnectionError:
            raise
        except Exception:
            traceback.print_exc()
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR, "the gallery failed; its terminal says more")

    def _route(self) -> Reply:
        host = self.headers.get_all("Host") or []
        if len(host) != 1 or re.sub(r":\d{1,5}$", "", host[0].lower()) not in HOSTS:
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "this gallery is on loopback and answers to no other name")
        if len(self.path) > URL_MOST:
            raise Refused(HTTPStatus.REQUEST_URI_TOO_LONG, "the address is too long")
        parts = urlsplit(self.path)
        prefix = self.server.prefix
        head, _, rest = parts.path.removeprefix("/").partition("/")
        if not secrets.compare_digest(f"/{head}".encode("utf-8", "replace"), prefix.encode()):
            raise Refused(HTTPStatus.NOT_FOUND, "not found")
        if parts.path == prefix:
            return _plain(HTTPStatus.PERMANENT_REDIRECT, "", (("Location", f"{prefix}/"),))
        if rest in STATIC:
            name, media = STATIC[rest]
            return Reply(HTTPStatus.OK, media, (files(__package__) / name).read_bytes(), "no-cache")
        parameters = parse_qs(parts.query, keep_blank_values=True, max_num_fields=500)
        return respond(self.server, [unquote(part) for part in rest.split("/")], parameters)


# ---------------------------------------------------------------- what there is


def respond(gallery: Gallery, path: list[str], parameters: dict[str, list[str]]) -> Reply:
    """The reply to a path behind the prefix. Raises Refused and UserError."""
    if path == ["api", "dataset"]:
        gallery.library.refresh()
        return _json(_state(gallery.library))
    shelf = gallery.library.shelf
    if shelf is None:
        raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the index is being built")
    match path:
        case ["api", "rows"]:
            return _json(_rows(shelf, parameters))
        case ["api", "row", key]:
            return _json(_row(shelf, key, parameters))
        case ["api", "rejected"]:
            return _json(facts.rejected(shelf))
        case ["thumb", version, layer, size, row]:
            return _thumb(gallery, _same(shelf, version), layer, _number(size), _row_number(shelf, row))
        case ["ids", version, field, row]:
            data = _payload(_same(shelf, version), field, _row_number(shelf, row))
            return Reply(HTTPStatus.OK, "image/png", pictures.ids_as_rgb(data), KEPT)
        case ["file", version, field, row]:
            return _file(_same(shelf, version), field, _row_number(shelf, row), parameters)
    raise Refused(HTTPStatus.NOT_FOUND, "not found")


def _state(library: Library) -> dict[str, Any]:
    progress = library.progress
    state: dict[str, Any] = {"name": library.path.name, "error": library.error}
    if progress is not None:
        state["building"] = {
            "done": progress.done,
            "shards": progress.shards,
            "elapsed_s": round(progress.elapsed_s, 1),
        }
    if library.shelf is not None:
        state["dataset"] = facts.dataset_facts(library.shelf)
    return state


def _rows(shelf: Shelf, parameters: dict[str, list[str]]) -> dict[str, Any]:
    """A page of the rows that a query finds."""
    found = shelf.searcher.find(query.parse(parameters, shelf.index))
    size = min(PAGE_MOST, max(1, _number(_only(parameters, "size", "60"))))
    pages = max(1, -(-len(found.rows) // size))
    page = min(max(1, _number(_only(parameters, "page", "1"))), pages)
    rows = found.rows[(page - 1) * size : page * size].tolist()
    return {
        "version": shelf.version,
        "total": len(found.rows),
        "page": page,
        "pages": pages,
        "rows": facts.lines(shelf, rows),
        "counts": found.counts,
    }


def _row(shelf: Shelf, key: str, parameters: dict[str, list[str]]) -> dict[str, Any]:
    """One row, and its neighbours among those that the query finds."""
    row = shelf.index.find(key)
    if row is None:
        raise Refused(HTTPStatus.NOT_FOUND, f"no row has the key {key[:100]}")
    rows = shelf.searcher.find(query.parse(parameters, shelf.index)).rows
    places = (rows == row).nonzero()[0]
    place = int(places[0]) if len(places) else None

    def neighbour(step: int) -> dict[str, Any] | None:
        if place is None or not 0 <= place + step < len(rows):
            return None
        near = int(rows[place + step])
        return {"row": near, **shelf.index.read(near, ["key"])}

    found = facts.row_facts(shelf, row)
    return found | {
        "version": shelf.version,
        "position": place,
        "total": len(rows),
        "previous": neighbour(-1),
        "next": neighbour(1),
    }


def _thumb(gallery: Gallery, shelf: Shelf, layer: str, size: int, row: int) -> Reply:
    if size not in pictures.SIZES:
        raise Refused(HTTPStatus.NOT_FOUND, f"thumbnails are {', '.join(map(str, pictures.SIZES))} pixels")
    place = (shelf.version, layer, size, row)
    media, body = gallery.thumbnails.get(place, lambda: _draw(shelf, layer, size, row))
    return Reply(HTTPStatus.OK, media, body, KEPT)


def _draw(shelf: Shelf, layer: str, size: int, row: int) -> tuple[str, bytes]:
    over = layer.endswith("+")
    field = layer.removesuffix("+")
    data = _payload(shelf, field, row)
    kind = _kind(shelf, field)
    if kind == "masks":
        try:
            regions = pictures.regions_of(json.loads(data), size)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{field}: damaged: {error}") from None
        return pictures.laid_over(_payload(shelf, f"{BASE}.image", row), pictures.number_colours(regions), size)
    if kind in ("label", "instance"):
        palette = pictures.class_colours(shelf.dataset.palette)
        colours = palette if kind == "label" else pictures.number_colours
        if over:
            return pictures.blended(_payload(shelf, f"{BASE}.image", row), data, colours, size)
        return pictures.map_thumbnail(data, colours, size)
    if kind != "picture":
        raise Refused(HTTPStatus.NOT_FOUND, f"{field} is no picture")
    return pictures.thumbnail(data, size)


MEDIA = {"png": "image/png", "jpg": "image/jpeg", "json": "application/json", "txt": "text/plain; charset=utf-8"}


def _file(shelf: Shelf, field: str, row: int, parameters: dict[str, list[str]]) -> Reply:
    """A field's bytes as they are stored; ?save=1 as a download."""
    data = _payload(shelf, field, row)
    key = shelf.index.read(row, ["key"])["key"]
    column, _, name = field.partition(".")
    place = shelf.index.read(row, ["shard", "row"])
    ext = shelf.reader(column, place["shard"]).column(f"{name}.ext")[place["row"]]
    media = MEDIA.get(ext.rpartition(".")[2], "application/octet-stream")
    save = "save" in parameters or media == "application/octet-stream"
    headers = (("Content-Disposition", f'attachment; filename="{key}.{ext}"'),) if save else ()
    return Reply(HTTPStatus.OK, media, data, KEPT, headers)


def _payload(shelf: Shelf, field: str, row: int) -> bytes:
    _kind(shelf, field)
    column, _, name = field.partition(".")
    data = shelf.payload(row, column, name)
    if data is None:
        raise Refused(HTTPStatus.NOT_FOUND, f"this row has no {field}")
    return data


def _kind(shelf: Shelf, field: str) -> str:
    column, _, name = field.partition(".")
    found = shelf.dataset.columns.get(column)
    if found is None or name not in found.fields:
        raise Refused(HTTPStatus.NOT_FOUND, "there is no such field")
    return facts.kind_of(found.fields[name])


def _same(shelf: Shelf, version: str) -> Shelf:
    if version != shelf.version:
        raise Refused(HTTPStatus.GONE, "the dataset has changed; load the page again")
    return shelf


def _row_number(shelf: Shelf, text: str) -> int:
    row = _number(text)
    if row >= len(shelf.index):
        raise Refused(HTTPStatus.NOT_FOUND, "there is no such row")
    return row


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise Refused(HTTPStatus.BAD_REQUEST, f"{text[:20]!r} is no number")
    return int(text)


def _only(parameters: dict[str, list[str]], name: str, default: str) -> str:
    return (parameters.get(name) or [default])[-1] or default


def _json(value: Any, status: HTTPStatus = HTTPStatus.OK) -> Reply:
    # ASCII: what is no UTF-8 in a name (surrogate escapes) travels as an escape.
    return Reply(status, "application/json", json.dumps(value, ensure_ascii=True, allow_nan=False).encode("ascii"))


def _plain(status: HTTPStatus, text: str, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    return Reply(status, "text/plain; charset=utf-8", text.encode("utf-8", "replace"), FRESH, headers)
