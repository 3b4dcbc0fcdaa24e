"""Claim: at 100,000 shards and 10⁹ rows, planning a stage, status and verify --quick take under 10 s of CPU each.

Datasets of 10³, 10⁴ and 10⁵ shards with three columns, whose receipts are made up; the first shard of each thousand
has a real index with tombstones. One row was taken down: its shard has real indexes and a real line of 10,000 rows in
the plan, of which the other lines are short. For each command: wall and CPU seconds, peak memory, files opened and
folders listed below the dataset (counted by an audit hook in a second run). Peer: `find -size`, which looks at every
file once.

    python bench/scale.py [--shards 1000 10000 …] [--folder /dev/shm] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS = 10_000
"""Rows of a shard."""
COLUMNS = ("base", "caption", "mask")
REVISIONS = {"base": "b" * 10, "caption": "c" * 10, "mask": "d" * 10}
TAR_BYTES = 1_000_000_000
HOUR_S = 3600
TAKEN_DOWN = "street/somebody"
"""Id of the row that was taken down."""

JOB = 'dataset = "data/big"\nstage = "caption"\n[args]\ncaptioner = "labels"\n[resources]\nshards_per_task = 10\n'

PRELUDE = """
import json, os, resource, sys, time
began, project, opened, listed = time.perf_counter(), os.getcwd(), 0, 0
def count(event, arguments):
    global opened, listed
    if event in ("open", "os.listdir", "os.scandir") and os.path.abspath(str(arguments[0])).startswith(project):
        opened += event == "open"
        listed += event != "open"
if sys.argv[1] == "count":
    sys.addaudithook(count)
from pathlib import Path
out, sys.stdout = sys.stdout, open(os.devnull, "w")
"""
CLOSE = """
used = resource.getrusage(resource.RUSAGE_SELF)
peak_kb = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])  # maxrss would be that of the parent
print(json.dumps({"wall_s": round(time.perf_counter() - began, 2), "cpu_s": round(used.ru_utime + used.ru_stime, 2),
    "peak_mb": round(peak_kb / 1024), "opens": opened, "listings": listed}), file=out)
"""
VERB = "from semiocity.cli import main\nassert main({}) in (0, 1)"
MEASURED = {
    "plan a stage": VERB.format('["caption", "jobs/caption.toml", "--dry-run"]'),
    "status, first look": "Path('runs/caption-big/attempts/0001/gathered.json').unlink(missing_ok=True)\n"
    + VERB.format('["status"]'),
    "status": VERB.format('["status"]'),
    "verify --quick": VERB.format('["verify", "data/big", "--quick"]'),
    "merge, nothing new": "from semiocity.data.manifest import merge\n"
    f'merge(Path("data/big"), "caption", "{REVISIONS["caption"]}")',
    "merge, a shard new": "from semiocity.data.manifest import merge\n"
    f'next(Path("data/big/columns/caption").glob("*/00000/00000007.json")).touch()\n'
    f'merge(Path("data/big"), "caption", "{REVISIONS["caption"]}")',
    "open a dataset": 'from semiocity.data.columns import Dataset\nDataset.open(Path("data/big"))',
    "open a view": "from semiocity.data.columns import Dataset\n"
    'view = Dataset.open(Path("data/big")).view(["base.image", "caption.text"], "train")\nview.locate(len(view) - 1)',
    "du": VERB.format('["du", "data/big"]'),
    "gc": VERB.format('["gc", "data/big"]'),
}
CLAIMED = ("plan a stage", "status", "verify --quick")


def make(project: Path, shards: int) -> float:
    """A project folder with the dataset data/big; returns the seconds of merging all columns for the first time."""
    from semiocity.data.listing import id_hash
    from semiocity.data.manifest import merge
    from semiocity.data.recipe import Recipe
    from semiocity.data.removed import Removed, remember
    from semiocity.data.shard import Scalar, index_bytes
    from semiocity.files import write_json

    dataset = project / "data" / "big"
    recipe = Recipe.model_validate({"name": "big", "source": {"kind": "city"}}).resolved()
    plan = {"recipe": recipe, "shards": shards, "rows": shards * ROWS, "files_seen": shards * ROWS}
    plan |= {"revision": REVISIONS["base"], "root": None, "link_roots": [], "fields": [], "rejected": {}}
    folder = dataset / "plans" / REVISIONS["base"]
    folder.mkdir(parents=True)
    digits = id_hash(TAKEN_DOWN)[:10]
    shard = int(digits, 16) * shards >> 40
    keys = _keys(shard, shards, digits)
    parts = [
        {"file": "plan.jsonl", "rows": shards * ROWS, "offsets": _lines(folder / "plan.jsonl", shards, shard, keys)}
    ]
    write_json(folder / "plan.json", {"format": 2, **plan, "packer_version": 3, "parts": parts})
    (folder / "rejected.jsonl").touch()
    remember(dataset, [Removed(id_hash(TAKEN_DOWN), "asked for it", "2026-01-01")])
    fields: dict[str, dict[str, str]] = {
        "base": {"image": "jpg", "label": "label.png"},
        "caption": {"text": "txt"},
        "mask": {"mask": "png"},
    }
    scalars: dict[str, dict[str, Scalar]] = {
        "base": {"split": "str", "width": "int", "height": "int"},
        "caption": {},
        "mask": {},
    }
    for column in COLUMNS:
        indexes = []
        for names in ([f"{i:010x}-row" for i in range(ROWS)], keys):
            rows = []
            for i, key in enumerate(names):
                dead = {"tombstone": "permanent", "reason": "made up"} if column == "caption" and i < 3 else {}
                values = {"split": "val" if i % 10 == 0 else "train", "width": 512, "height": 512}
                if key.endswith("-removed"):
                    dead, values = {"tombstone": "removed", "reason": "taken down"}, {}
                rows.append({"key": key, **dead, **(values if scalars[column] else {})})
            indexes.append(index_bytes(rows, fields[column], scalars[column]))
        _column(dataset, column, shards, indexes[0], (shard, indexes[1]), fields[column], scalars[column])
    began = time.perf_counter()
    for column in COLUMNS:
        merge(dataset, column, REVISIONS[column])
    took = time.perf_counter() - began
    (project / "jobs").mkdir()
    (project / "jobs" / "caption.toml").write_text(JOB)
    _run(project, shards)
    return took


def _first(shard: int, shards: int) -> int:
    """The number that a shard's first key begins with: keys are spread evenly."""
    return -(-(shard << 40) // shards)


def _keys(shard: int, shards: int, digits: str) -> list[str]:
    """Keys of a shard, that of the row that was taken down among them."""
    step = (1 << 40) // shards // ROWS
    keys = [f"{_first(shard, shards) + i * step:010x}-row" for i in range(ROWS)]
    place = max(1, sum(key < digits for key in keys))
    return [*keys[: place - 1], *sorted([keys[place - 1], f"{digits}-removed"]), *keys[place + 1 :]][:ROWS]


def _lines(path: Path, shards: int, shard: int, keys: list[str]) -> list[int]:
    """Write a plan; returns the offset of each line."""
    offsets = []
    with path.open("w") as file:
        for number in range(shards):
            offsets.append(file.tell())
            names = keys if number == shard else [f"{_first(number, shards):010x}-row"]
            rows = [[k] if k.endswith("-removed") else [k, f"street/{k}", {}, {}, "train", {}, {}] for k in names]
            file.write(json.dumps(rows, separators=(",", ":")) + "\n")
    return offsets


def _column(
    dataset: Path, column: str, shards: int, index: bytes, own: tuple[int, bytes], fields: Any, scalars: Any
) -> None:
    """Made-up shards: hard links to one sparse tar and one parquet a thousand, and a receipt each. `own` is the number
    of a shard that has an index of its own."""
    folder = dataset / "columns" / column / REVISIONS[column]
    shared = {"stage": {"name": column, "version": 1, "args": {}}, "model": None, "fields": fields, "scalars": scalars}
    old = time.time() - HOUR_S
    for first in range(0, shards, 1000):
        place = folder / f"{first // 1000:05d}"
        place.mkdir(parents=True)
        tar, parquet = place / f"{first:08d}.tar", place / f"{first:08d}.parquet"
        tar.touch()
        os.truncate(tar, TAR_BYTES)
        parquet.write_bytes(index)
        for shard in range(first, min(first + 1000, shards)):
            if shard != first:
                os.link(tar, place / f"{shard:08d}.tar")
                os.link(parquet, place / f"{shard:08d}.parquet")
            if shard == own[0]:
                (place / f"{shard:08d}.parquet").unlink()
                (place / f"{shard:08d}.parquet").write_bytes(own[1])
            removed = int(shard == own[0])
            dead = 3 if column == "caption" and shard == first else 0
            parents = {} if column == "base" else {"base": {"revision": REVISIONS["base"], "sha256": f"{shard:064x}"}}
            receipt = {
                "format": 2,
                "column": column,
                "revision": REVISIONS[column],
                "shard": shard,
                "rows": ROWS,
                "bytes": TAR_BYTES,
                "sha256": f"{shard:064x}",
                "parquet_bytes": len(own[1] if shard == own[0] else index),
                "parquet_sha256": f"{shard:064x}",
                "keys_digest": f"{shard:064x}",
                "splits": {"train": ROWS * 9 // 10, "val": ROWS // 10} if column == "base" else {},
                "parents": parents,
                "execution": {"device": "cpu", "dtype": "float32", "batch": 1},
                "tombstones": {"permanent": dead, "removed": removed, "retry": 0},
                "rejected": [],
                **shared,
            }
            path = place / f"{shard:08d}.json"
            path.write_text(json.dumps(receipt, sort_keys=True, indent=1))
            os.utime(path, (old, old))
        os.utime(place, (old, old))


def _run(project: Path, shards: int) -> None:
    """A finished run whose tasks made ten shards each."""
    from semiocity.files import write_json

    attempt = project / "runs" / "caption-big" / "attempts" / "0001"
    tasks = [list(range(start, min(start + 10, shards))) for start in range(0, shards, 10)]
    jobs = [f"77_{i}" for i in range(len(tasks))]
    data = {"format": 1, "kind": "stage", "job": {}, "run": "runs/caption-big", "dataset": "data/big"}
    data |= {"column": "caption", "revision": REVISIONS["caption"], "executor": "local", "host": "elsewhere"}
    write_json(attempt / "attempt.json", {**data, "tasks": tasks, "merge": len(tasks), "jobs": [*jobs, "78"]})
    (attempt / "tasks").mkdir()
    for index in range(len(tasks) + 1):
        facts = {"job": jobs[index] if index < len(tasks) else "78", "state": "done", "restart": 0, "done_shards": 10}
        (attempt / "tasks" / f"{index:04d}.json").write_text(json.dumps(facts))


def measure(project: Path, code: str) -> dict[str, Any]:
    """Seconds and memory of a run that is not looked at, and the counts of one that is."""
    found: dict[str, Any] = {}
    for mode in ("count", "time"):
        program = [sys.executable, "-c", PRELUDE + code + CLOSE, mode]
        done = subprocess.run(program, cwd=project, capture_output=True, text=True, check=True)
        facts = json.loads(done.stdout)
        found |= {n: facts[n] for n in (("opens", "listings") if mode == "count" else ("wall_s", "cpu_s", "peak_mb"))}
    return found


def find(project: Path) -> float:
    """CPU seconds of looking at every file's size once, in C: the machine's own limit."""
    before = os.times()
    subprocess.run(["find", "data", "-size", "+9999999G"], cwd=project, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--folder", type=Path, default=None, help="where to make the datasets (default: memory)")
    parser.add_argument("--json", type=Path, default=None, help="write all figures there")
    a = parser.parse_args()
    memory = Path("/dev/shm")
    folder = a.folder or (memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir()))
    results: dict[int, dict[str, Any]] = {}
    limit = 0.0
    for shards in a.shards:
        project = Path(tempfile.mkdtemp(prefix="semiocity-scale.", dir=folder))
        try:
            took = make(project, shards)
            limit = find(project)
            print(f"{shards} shards x {len(COLUMNS)} columns, {shards * ROWS:.0e} rows; first merge {took:.1f} s")
            print(f"  find, every file once    {limit:7.2f} CPU s", flush=True)
            results[shards] = {name: measure(project, code) for name, code in MEASURED.items()}
        finally:
            shutil.rmtree(project, ignore_errors=True)
        for name, facts in results[shards].items():
            print(
                f"  {name:<22} {facts['wall_s']:7.2f} s {facts['cpu_s']:7.2f} CPU s {facts['peak_mb']:5d} MB "
                f"{facts['opens']:6d} opened {facts['listings']:6d} listed",
                flush=True,
            )
    if a.json:
        a.json.write_text(json.dumps(results, indent=1))
    most = results[max(results)]
    ours = max(most[name]["cpu_s"] for name in CLAIMED)
    line = {
        "claim": f"plan, status, verify --quick of {max(results)} shards x {len(COLUMNS)} columns: the slowest's CPU s",
        "ours": ours,
        "peer": round(limit, 2),
        "ratio": round(ours / max(limit, 0.01), 2),
        "goal": "ours <= 10 s (peer: find over every file)",
        "met": ours <= 10,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
