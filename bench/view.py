"""Claim: a saved view is built in a few seconds for 10⁶ rows on one core, in memory that does not grow with the rows.

Made-up datasets: real parquet indexes of 2,000 rows a shard in two columns, no images (a view opens none). The filter
reads a string, an integer, a caption and a share. Peer: pyarrow.dataset on one thread, which reads the same columns of
the same files and computes the same conditions, without joining them, checking them, or writing anything.
Each build is a process of its own, for its peak memory; medians of alternating runs, in CPU seconds, files cached.
As array tasks: the parts of 2,000 shards (4·10⁶ rows) made by one process, then by two at the same time and merged by a
third; the seconds on the wall and the CPU seconds of both ways.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS = 2000
TEMPLATES = 8
"""Different shards; the others are copies under further numbers."""
EXPRESSION = 'split == "train" and width >= 512 and "car" in caption.text and caption.share.road > 0.2'
THINGS = ["car", "tree", "person", "sky", "road", "pavement", "window", "bus", "sign", "pole", "grass", "wall"]
WORDS = [*THINGS, "a", "street", "with", "tall", "buildings", "far", "near", "on", "the", "left", "right", "of", "it"]


def make(dataset: Path, shards: int) -> None:
    """A dataset of two columns with so many shards."""
    from semiocity.data.manifest import column_folder, merge
    from semiocity.data.recipe import Recipe
    from semiocity.files import write_json

    revision = "0123456789"
    source = {"kind": "city", "size": [32, 32], "train": 1, "val": 1}
    recipe = Recipe.model_validate({"name": dataset.name, "source": source}).resolved()
    plan = {"format": 2, "recipe": recipe, "shards": shards, "rows": shards * ROWS, "files_seen": shards * ROWS}
    write_json(dataset / "plans" / revision / "plan.json", plan | {"parts": []})
    (dataset / "plans" / revision / "rejected.jsonl").touch()
    for column in ("base", "caption"):
        templates = [_template(dataset.parent / "templates", column, number) for number in range(TEMPLATES)]
        folder = column_folder(dataset, column, revision)
        for shard in range(shards):
            _copy(templates[shard % TEMPLATES], folder, shard)
        merge(dataset, column, revision)


def _template(folder: Path, column: str, number: int) -> Any:
    from semiocity.data.shard import Head, ShardPath, ShardWriter

    path = ShardPath(folder / column / "0123456789", number)
    if path.receipt.exists():
        return path
    r = random.Random(number)
    scalars: dict[str, Any] = {"split": "str", "width": "int", "height": "int"}
    if column == "caption":
        scalars = {"text": "str", "short": "str", **{f"share.{word}": "float" for word in THINGS}}
    parents = {} if column == "base" else {"base": {"revision": "0123456789", "sha256": _sha256(folder, number)}}
    head = Head(
        column,
        "0123456789",
        number,
        parents,
        {"name": "bench", "version": 1, "args": {}},
        None,
        {},
        {"image": "jpg"},
        scalars,
    )
    with ShardWriter(path, head) as writer:
        for key in sorted(f"{random.Random(f'{number}/{i}').getrandbits(40):010x}-{i:08d}" for i in range(ROWS)):
            values: dict[str, Any] = {
                "split": r.choice(["train"] * 9 + ["val"]),
                "width": r.choice([256, 512, 1024]),
                "height": 512,
            }
            if column == "caption":
                text = " ".join(r.choices(WORDS, k=40))
                values = {"text": text, "short": text[:60]} | {name: r.random() for name in list(scalars)[2:]}
            writer.add(key, {"image": ("jpg", b"x")}, values)
        writer.publish()
    return path


def _sha256(folder: Path, number: int) -> str:
    receipt = folder / "base" / "0123456789" / "00000" / f"{number:08d}.json"
    return str(json.loads(receipt.read_text())["sha256"])


def _copy(template: Any, folder: Path, shard: int) -> None:
    from semiocity.data.shard import ShardPath

    path = ShardPath(folder, shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.tar.touch()  # a view never opens it
    path.parquet.write_bytes(template.parquet.read_bytes())
    path.receipt.write_text(json.dumps(json.loads(template.receipt.read_text()) | {"shard": shard}))


def _job(dataset: Path) -> Any:
    from semiocity.data.views import ViewJob

    return ViewJob(dataset=dataset, fields=("base.image", "caption.short"), filter=EXPRESSION, join={"caption": "skip"})


def ours(dataset: Path) -> float:
    """CPU seconds to build every part and merge."""
    from semiocity.data.view_build import build, merge
    from semiocity.data.views import plan_view

    start = time.process_time()
    plan = plan_view(_job(dataset), f"bench{time.time_ns()}", "bench")
    build(plan, range(plan.shards))
    rows = merge(plan)["rows"]
    took = time.process_time() - start
    assert 0 < rows < plan.facts["rows"]
    return took


def tasks(dataset: Path, count: int) -> tuple[float, float]:
    """Seconds on the wall, and CPU seconds, until a view is built by so many processes and merged by one more."""
    name = f"tasks{count}x{time.time_ns()}"
    before, start = os.times(), time.perf_counter()
    makers = [subprocess.Popen([sys.executable, __file__, f"{i}/{count}", str(dataset), name]) for i in range(count)]
    assert [maker.wait() for maker in makers] == [0] * count
    subprocess.run([sys.executable, __file__, "merge", str(dataset), name], check=True)
    took, after = time.perf_counter() - start, os.times()
    return took, sum(after[2:4]) - sum(before[2:4])


def task(what: str, dataset: Path, name: str) -> None:
    """One array task of a view: its parts, I/N of the shards in whole thousands; or the merge."""
    from semiocity.data.view_build import build, merge
    from semiocity.data.views import plan_view

    plan = plan_view(_job(dataset), name, "bench")
    if what == "merge":
        merge(plan)
        return
    part, parts = map(int, what.split("/"))
    size = -(-plan.shards // parts // 1000) * 1000
    assert build(plan, range(part * size, min((part + 1) * size, plan.shards)))


def peer(dataset: Path) -> float:
    """CPU seconds for pyarrow.dataset to read and judge the same columns."""
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    start = time.process_time()
    conditions = {
        "base": (["split", "width"], (pc.field("split") == "train") & (pc.field("width") >= 512)),
        "caption": (
            ["text", "share.road"],
            pc.match_substring(pc.field("text"), "car") & (pc.field("share.road") > 0.2),
        ),
    }
    for column, (names, condition) in conditions.items():
        files = sorted(str(path) for path in (dataset / "columns" / column).rglob("*.parquet"))
        projected = {"keep": condition}
        for batch in ds.dataset(files).scanner(columns=projected, use_threads=False).to_batches():
            pc.sum(batch.column(0))
        assert names
    return time.process_time() - start


def measured(what: str, dataset: Path) -> tuple[float, float]:
    """Seconds, and peak memory in MB, in a fresh process."""
    done = subprocess.run([sys.executable, __file__, what, str(dataset)], capture_output=True, text=True, check=True)
    seconds, kilobytes = done.stdout.split()
    return float(seconds), int(kilobytes) / 1024


def main(rounds: int = 5) -> None:
    with tempfile.TemporaryDirectory() as folder:
        memory, rate = {}, {}
        for shards in (125, 250, 500):
            dataset = Path(folder) / f"made{shards}"
            make(dataset, shards)
            found: dict[str, list[float]] = {"ours": [], "peer": []}
            for _ in range(rounds):
                for name in found:
                    seconds, megabytes = measured(name, dataset)
                    found[name].append(seconds)
                    if name == "ours":
                        memory[shards] = megabytes
            rate[shards] = {n: statistics.median(times) / (shards * ROWS / 1e6) for n, times in found.items()}
            print(
                f"{shards * ROWS:>9} rows: a view {rate[shards]['ours']:.2f} s, pyarrow.dataset "
                f"{rate[shards]['peer']:.2f} s per 10⁶ rows; peak {memory[shards]:.0f} MB"
            )
        dataset = Path(folder) / "made2000"
        make(dataset, 2000)
        runs = {count: [tasks(dataset, count) for _ in range(3)] for count in (1, 2)}
    wall, cpu = ({c: statistics.median(run[i] for run in runs[c]) for c in runs} for i in (0, 1))
    print(f"4000000 rows: {wall[1]:.1f} s ({cpu[1]:.1f} CPU s) in one process, {wall[2]:.1f} s ({cpu[2]:.1f}) in two")
    largest, smallest = max(rate), min(rate)
    mine, theirs = rate[largest]["ours"], rate[largest]["peer"]
    growth = memory[largest] / memory[smallest]
    print(
        json.dumps(
            {
                "claim": "building a view takes less than 10 s for 10⁶ rows on one core, in flat memory",
                "ours": round(mine, 2),
                "peer": round(theirs, 2),
                "ratio": round(mine / theirs, 2),
                "figures": {
                    **{f"peak memory in MB at {n * ROWS} rows": round(memory[n]) for n in memory},
                    **{f"4000000 rows in {c} processes, s on the wall": round(wall[c], 1) for c in wall},
                    **{f"4000000 rows in {c} processes, CPU s": round(cpu[c], 1) for c in cpu},
                },
                "unit": "",
                "memory_growth": round(growth, 2),
                "goal": "ours <= 10 s per 10⁶ rows, 4 times the rows in at most 1.2 times the memory",
                "met": mine <= 10 and growth <= 1.2,
            }
        )
    )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        task(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    elif len(sys.argv) == 3:
        took = {"ours": ours, "peer": peer}[sys.argv[1]](Path(sys.argv[2]))
        # The process's own peak: ru_maxrss would begin with that of the parent.
        print(took, Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    else:
        main()
