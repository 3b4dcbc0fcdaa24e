"""The peers of submitting.py: the same work submitted by datatrove's SlurmPipelineExecutor or by plain submitit.

submitting_peers.py datatrove|submitit FACTS    FACTS is JSON: tars, shards, out, and the contender's settings
"""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


def records(tar: Path) -> list[dict[str, Any]]:
    """What our stage `hash` says of each picture of a shard."""
    import io

    from PIL import Image

    from semiocity.stages.perceptual import describe

    found = []
    with tarfile.open(tar) as file:
        for member in file:
            if member.name.endswith((".jpg", ".png")) and ".label" not in member.name and "instance" not in member.name:
                data = file.extractfile(member).read()  # type: ignore[union-attr]
                image = Image.open(io.BytesIO(data)).convert("RGB")
                found.append({"key": member.name.partition(".")[0], **describe(data, image)})
    return found


def shard(tars: str, number: int) -> Path:
    return Path(tars) / f"{number // 1000:05d}" / f"{number:08d}.tar"


def hash_shards(tars: str, out: str, numbers: list[int]) -> int:
    """One file of records a shard, as plain submitit's function."""
    for number in numbers:
        text = "".join(json.dumps(record) + "\n" for record in records(shard(tars, number)))
        path = Path(out) / "results" / f"{number:05d}.jsonl"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.rename(path)
    return len(numbers)


class Read:
    """datatrove's first step: the records of the shard of this rank."""

    def __init__(self, tars: str) -> None:
        self.tars = tars

    def __call__(self, data: Iterable[Any] | None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        from datatrove.data import Document

        for record in records(shard(self.tars, rank)):
            yield Document(text=json.dumps(record), id=record["key"])


def datatrove(tars: str, shards: int, out: str, **settings: Any) -> None:
    from datatrove.executor.slurm import SlurmPipelineExecutor
    from datatrove.pipeline.writers import JsonlWriter
    from submitting_peers import Read as Importable

    SlurmPipelineExecutor(
        pipeline=[Importable(tars), JsonlWriter(f"{out}/results", compression=None)],
        tasks=shards,
        time="01:00:00",
        partition="main",
        logging_dir=f"{out}/logs",
        job_name="datatrove",
        **settings,
    ).run()


def submitit(tars: str, shards: int, out: str, per_job: int) -> None:
    import submitit as library
    from submitting_peers import hash_shards as importable

    Path(out, "results").mkdir(parents=True)
    executor = library.AutoExecutor(folder=f"{out}/logs", cluster="slurm")
    executor.update_parameters(timeout_min=60, slurm_partition="main", cpus_per_task=1)
    parts = [list(range(first, min(first + per_job, shards))) for first in range(0, shards, per_job)]
    jobs = executor.map_array(importable, [tars] * len(parts), [out] * len(parts), parts)
    if sum(job.result() for job in jobs) != shards:
        raise SystemExit("some shards were not made")


if __name__ == "__main__":
    contenders: dict[str, Callable[..., None]] = {"datatrove": datatrove, "submitit": submitit}
    contenders[sys.argv[1]](**json.loads(sys.argv[2]))
