"""How our pages are filled in: one environment for their templates, which escapes everything that came from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def environment(folder: Path) -> Any:
    """jinja2's environment for the templates in `folder`, which may include page.css; a name that a template does not
    get is an error.

    Raises ImportError without jinja2.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
