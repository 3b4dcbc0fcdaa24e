"""Hashes of pictures. Column `hash`: what `duplicates` and any other search for equal pictures is made from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from semiocity.stages.base import Made, Row, Stage, StageArgs, Tombstone


class HashArgs(StageArgs):
    """`hasher = "dct"`."""

    hasher: Literal["dct"]
    device: Literal["cpu"] = "cpu"
    dtype: Literal["float32"] = "float32"
    batch: int = Field(64, ge=1)


class Hash(Stage):
    """sha256 of the stored bytes and of the pixels, two perceptual hashes, and what tells flat pictures.

    `stages/perceptual.py` defines them. The whole picture is decoded: the hash of its pixels needs all of them. The
    field `record` holds the scalars again, so that the column's digest covers them and any reader of the tar has them.
    """

    name = "hash"
    version = 1
    column = "hash"
    Args = HashArgs

    def needs(self) -> tuple[str, ...]:
        return ("base.image",)

    def fields(self) -> dict[str, str]:
        return {"record": "hash.json"}

    def scalars(self) -> dict[str, Literal["int", "float", "str", "bool"]]:
        return {
            "bytes_sha256": "str",
            "pixels_sha256": "str",
            "phash": "int",
            "gradients": "int",
            "detail": "float",
            "deviation": "float",
            "red": "float",
            "green": "float",
            "blue": "float",
            "width": "int",
            "height": "int",
        }

    def process(self, rows: list[Row]) -> list[Made | Tombstone]:
        from semiocity.files import canonical
        from semiocity.stages.images import decode, decode_rows, payload
        from semiocity.stages.perceptual import describe

        def hashed(row: Row) -> Made:
            data = payload(row, "base.image")
            found = describe(data, decode(data, "image"))
            return Made({"record": ("hash.json", canonical(found).encode())}, found)

        good, results = decode_rows(rows, hashed)
        results |= dict(good)
        return [results[place] for place in range(len(rows))]
