"""An export as an array job: which shards are to be written, by which tasks. Needs pyarrow, as any export does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from semiocity.config import Resources, Strict
from semiocity.files import digest
from semiocity.launch.jobs import Work, load_asked, run_folder

if TYPE_CHECKING:
    from semiocity.data.export.wish import Wish


class ExportResources(Resources):
    """What one task of an export asks of the cluster."""

    shards_per_task: int = Field(10, ge=1)


class ExportJob(Strict):
    """What exporting asks of the cluster (`jobs/export.toml`); what is exported is the command's affair."""

    image: Path | None = None
    resources: ExportResources = ExportResources()


def run_of(dataset: Path, to: str, out: str) -> Path:
    """The run of an export: one for each folder that is written into."""
    return run_folder(None, "export", dataset.name, to, digest(out, 6))


def work(wish: Wish, job_file: Path, sets: Sequence[str] = (), dry_run: bool = False) -> Work:
    """Check an export and describe its tasks. Takes the folder for it, unless `dry_run`; writes nothing else."""
    from semiocity.data.export import engine

    job = load_asked(job_file, ExportJob, sets)
    planned = engine.plan(wish, dry_run)
    dataset = Path(wish.dataset)
    return Work(
        kind="export",
        run=run_of(dataset, wish.to, wish.out),
        dataset=dataset.resolve(),
        job={"export": wish.as_json(), "inputs": planned.inputs},
        resources=job.resources,
        image=job.image,
        revision=digest([wish.as_json(), planned.inputs]),
        shards=planned.shards,
        columns=planned.columns,
        binds=(Path(wish.out),),
    )
