"""Work that ends a pipeline, for the login node: a page about a run, and a copy of a dataset for other tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from semiocity.config import Job, load_toml
from semiocity.data import manifest
from semiocity.errors import UserError
from semiocity.launch import jobs
from semiocity.launch.jobs import Work


class ExportJob(Job):
    """A copy of a dataset (`jobs/export.toml`); the keys are the options of `semiocity export`."""

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
    workers: int = Field(1, ge=1)
    """Processes."""

    def options(self) -> dict[str, Any]:
        """What the format is told."""
        given = {"link": self.link, "conditioning": self.conditioning, "metadata": self.metadata}
        return {name: value for name, value in given.items() if value is not None}


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
        resources=job.resources.model_copy(update={"nodes": 1, "ranks_per_node": 1, "gpus_per_node": 0}),
        image=job.image,
        inputs=jobs.contents(scores=run / "scores.json", samples=run / "samples" / "manifest.json"),
    )


def references(job: ExportJob) -> list[str]:
    """The fields that an export names, COLUMN.FIELD; whole columns are left out."""
    named = [item.rpartition("=")[2] for item in job.fields]
    return [reference for reference in named if "." in reference]


def export(job_file: Path, sets: Sequence[str]) -> Work:
    """A copy of a dataset in another tool's format."""
    job = load_toml(job_file, ExportJob, sets)
    dataset = job.dataset.resolve()
    facts = manifest.read_manifest(dataset)
    manifest.require(facts, references(job), dataset)
    columns = (
        {"base", *(item.rpartition("=")[2].partition(".")[0] for item in job.fields)}
        if job.fields
        else facts["columns"]
    )
    out = job.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    return Work(
        kind="export",
        run=jobs.run_folder(job.run, "export", dataset.name, out.name),
        dataset=dataset,
        job={**job.model_dump(mode="json"), "out": str(out)},
        resources=job.resources,
        image=job.image,
        columns={name: facts["columns"][name]["revision"] for name in sorted(columns)},
        inputs=jobs.seen(dataset, columns),
        binds=(out.parent,),
    )
