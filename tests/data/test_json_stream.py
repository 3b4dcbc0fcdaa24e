"""Elements of large JSON files, read in pieces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from make_images import dice

from semiocity.data.sources import json_stream
from semiocity.data.sources.json_stream import elements
from semiocity.errors import UserError


def flat(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, list):
        return [("", item) for item in value]
    return [(k, item) for k, v in value.items() for item in (v if isinstance(v, list) else [v])]


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1 << 20])
def test_the_same_as_reading_it_whole(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "BLOCK_CHARS", block)
    random = dice()
    leaves: list[Any] = [
        1234567,
        -2.5e-3,
        True,
        None,
        "",
        'a "quoted" \\ line\n',
        "é🚲",
        [],
        {},
        {"x": [1, {"y": "]"}]},
    ]
    for number in range(6):
        items = random.choices(leaves, k=random.randrange(5))
        value: Any = items if number % 2 else {f"k{i}": random.choice([items, "text", 17, {}]) for i in range(3)}
        path = tmp_path / "a.json"
        path.write_text(json.dumps(value, indent=random.choice([None, 3]), ensure_ascii=random.random() < 0.5) + "\n")
        assert list(elements(path)) == flat(value)


@pytest.mark.parametrize(
    "content", [b"", b"[1, 2", b"[1 2]", b'{"a" 1}', b'{"a": 1,}', b"[1] 2", b"{1: 2}", b'["\xff"]', b"7", b'{"a": [1}']
)
def test_what_is_no_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.json: damaged JSON"):
        list(elements(path))


def test_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "large.json"
    with path.open("w") as file:
        file.write('{"images": [' + ", ".join(['{"id": 1, "name": "' + "x" * 200 + '"}'] * 30_000) + "]}")
    tracemalloc.start()
    try:
        assert sum(1 for _ in elements(path)) == 30_000
        assert tracemalloc.get_traced_memory()[1] < 6e6 < path.stat().st_size
    finally:
        tracemalloc.stop()
