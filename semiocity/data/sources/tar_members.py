"""The loader of the source `webdataset`: members read by the offsets that planning found; imported by packing only."""

from __future__ import annotations

import json
import os
from typing import Any

from semiocity.data.images import Rejected
from semiocity.data.sources.base import Entry, Raw
from semiocity.data.sources.plain import open_planned
from semiocity.data.sources.scalars import first_text, row_facts, values_of
from semiocity.data.sources.webdataset import JSON, WebdatasetSource


def load(source: WebdatasetSource, entry: Entry) -> Raw:
    """The sample's members. Raises Rejected and UserError as `plain.load` does."""
    descriptor = open_planned(source.root, entry.extra["tar"], entry.extra["size"], "image", source.link_roots)
    try:
        parts: dict[str, Any] = {
            name: os.pread(descriptor, size, offset) for name, (offset, size) in entry.extra["parts"].items()
        }
    finally:
        os.close(descriptor)
    raw = Raw(**{name: data for name, data in parts.items() if name != JSON})
    if source.reads_json and JSON in parts:
        _read_json(source, raw, parts[JSON])
    return raw


def _read_json(source: WebdatasetSource, raw: Raw, data: bytes) -> None:
    try:
        found: Any = json.loads(data)
    except ValueError as error:
        raise Rejected("scalar_value", f"the sample's json: {error}") from None
    if not isinstance(found, dict):
        raise Rejected("scalar_value", "the sample's json is no object")
    try:
        raw.scalars |= values_of(source.scalars, found)
    except ValueError as error:
        raise Rejected("scalar_value", str(error)) from None
    raw.scalars |= row_facts(found, {"license": source.license_key, "origin": source.origin_key})
    if raw.caption is None and source.caption_key:
        text = first_text(found.get(source.caption_key))
        raw.caption = None if text is None else text.encode("utf-8", "replace")
