"""Where keys are in a plan. Its lines ascend in each part: they are bisected by their first keys, and only those that
may hold a key are read, so that a plan of 10⁹ rows costs what a small one does. Login-node code."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from semiocity.data.keys import DIGITS
from semiocity.data.listing import id_hash
from semiocity.data.plan import Plan, plan_folder

FIRST_BYTES = 16
"""Of a line: enough for the digits of its first key."""


def shards_of(plan: Plan, digits: Collection[str]) -> dict[int, set[str]]:
    """Shard → those of `digits` (the first ten of keys) that its rows may begin with: of all shards that may."""
    found: dict[int, set[str]] = defaultdict(set)
    for first, _, lines in _parts(plan, digits):
        for line, wanted in lines.items():
            found[first + line] |= wanted
    return dict(found)


def names(plan: Plan, hashes: Collection[str]) -> bool:
    """Whether the plan names a row whose id has one of these sha256."""
    for _, part, lines in _parts(plan, {hash[: DIGITS[0]] for hash in hashes}):
        with _file(plan, part).open("rb") as file:
            for line in lines:
                file.seek(part["offsets"][line])
                text = file.readline().decode("ascii")
                if any(hash in hashes for digits in lines[line] for hash in _hashes(text, digits)):
                    return True
    return False


def unnamed(plan: Plan) -> list[Path]:
    """Files of rows that the plan no longer names: left by something that was cut short."""
    known = {part["file"] for part in plan.content["parts"]} | {"rejected.jsonl"}
    return sorted(path for path in plan_folder(plan.dataset, plan.revision).glob("*.jsonl") if path.name not in known)


def _parts(plan: Plan, digits: Collection[str]) -> Iterator[tuple[int, dict[str, Any], dict[int, set[str]]]]:
    """Of each part its first shard, what the plan says of it, and line → those of `digits` that may be in it."""
    first = 0
    for part in plan.content["parts"]:
        lines: dict[int, set[str]] = defaultdict(set)
        with _file(plan, part).open("rb") as file:
            beginnings = _Beginnings(file, part["offsets"])
            for item in digits:
                # Rows whose hashes begin alike may lie on both sides of a border.
                for line in range(max(0, bisect_left(beginnings, item) - 1), bisect_right(beginnings, item)):
                    lines[line].add(item)
        yield first, part, lines
        first += len(part["offsets"])


def _file(plan: Plan, part: dict[str, Any]) -> Path:
    name: str = part["file"]
    return plan_folder(plan.dataset, plan.revision) / name


class _Beginnings(Sequence[str]):
    """The first ten digits of the first key of each line; read when asked for, and kept."""

    def __init__(self, file: IO[bytes], offsets: Sequence[int]) -> None:
        self._file, self._offsets = file, offsets
        self._known: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, line: int) -> str:  # type: ignore[override]
        if line not in self._known:
            self._file.seek(self._offsets[line])
            self._known[line] = self._file.read(FIRST_BYTES).split(b'"', 2)[1][: DIGITS[0]].decode("ascii")
        return self._known[line]


def _hashes(line: str, digits: str) -> Iterator[str]:
    """sha256 of the ids of the rows of a line whose keys begin so. Rows that were taken down have no id."""
    decoder, place = json.JSONDecoder(), -1
    while (place := line.find(f'["{digits}', place + 1)) >= 0:
        row, _ = decoder.raw_decode(line, place)
        if len(row) > 1 and isinstance(row[1], str):
            yield id_hash(row[1])
