"""Work that ends a pipeline, for the login node: a page about a run, and a copy of a dataset for other tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from semiocity.config import Resources, Strict, load_toml
from semiocity.data import manifest
from semiocity.errors import UserError
from semiocity.launch import jobs
from semiocity.launch.jobs import Work


class ExportFile(Strict):
    """What is exported (`jobs/export-webdataset.toml`); the keys are the options of `semiocity export`. What it asks of
    the cluster is in `jobs/export.toml`."""

    dataset: Path
    to: Literal["parquet", "huggingface", "coco", "fiftyone", "webdataset", "energon", "webshart", "imagefolder"]
    out: Path
    """Folder to write into."""
    fields: tuple[str, ...] = ()
    """`[NAME=]COLUMN.FIELD`; by default what the format has a place for."""
    split: str | None = None
    filter: str | None = None
    view: str | None = None
    link: bool | None = None
    conditioning: str | None = None
    metadata: Literal["jsonl", "csv"] | None = None

    def options(self) -> dict[str, Any]:
        """What the format is told."""
        given = {"link": self.link, "conditioning": self.conditioning, "metadata": self.metadata}
        return {name: value for name, value in given.items() if value is not None}

    def references(self) -> list[str]:
        """The fields that it names, COLUMN.FIELD; whole columns are left out."""
        named = [item.rpartition("=")[2] for item in self.fields]
        return [reference for reference in named if "." in reference]


def report(job_file: Path, sets: Sequence[str]) -> Work:
    """The page about a run: dataset, run and resources are those of its evaluation's job file."""
    from semiocity.evaluate.options import EvaluateJob

    job = load_toml(job_file, EvaluateJob, sets)
    if job.run is None:
        raise UserError(f"{job_file}: run: missing; name the run that the page is about")
    dataset, run = job.dataset.resolve(), jobs.run_folder(job.run)
    manifest.read_manifest(dataset)
    return Work(
        kind="report",
        run=run,
        dataset=dataset,
        job=job.model_dump(mode="json"),
        resources=one_core(job.resources),
        image=job.image,
        inputs=jobs.contents(scores=run / "scores.json", samples=run / "samples" / "manifest.json"),
    )


def one_core(asked: Resources) -> Resources:
    """What a page asks for, of what its evaluation does: neither GPUs nor several ranks."""
    return asked.model_copy(update={"nodes": 1, "ranks_per_node": 1, "gpus_per_node": 0})


def export(file: Path, sets: Sequence[str], job_file: Path, dry_run: bool = False) -> Work:
    """A copy of a dataset in another tool's format. Of `sets` those of `resources` and `image` are the job file's."""
    from semiocity.data.export.selection import Rows
    from semiocity.data.export.wish import Wish
    from semiocity.launch import exporting

    wanted = load_toml(file, ExportFile, jobs.sets_of(sets, job=False))
    rows = Rows(wanted.split, wanted.filter, wanted.view)
    dataset, out = str(wanted.dataset.absolute()), str(wanted.out.absolute())
    wish = Wish(dataset, wanted.to, out, wanted.fields, rows, wanted.options())
    return exporting.work(wish, job_file, jobs.sets_of(sets, job=True), dry_run)
