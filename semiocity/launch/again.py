"""`semiocity retry RUN`: the newest job again, from the run folder alone: what is missing and not under way."""

from __future__ import annotations

from pathlib import Path

from semiocity.config import Cluster
from semiocity.errors import UserError
from semiocity.launch import facts, pipeline_run, submission
from semiocity.launch.pipeline import choose, of_attempt
from semiocity.launch.runs import attempts


def retry(run: Path, cluster: Cluster, wait: bool, dry_run: bool = False) -> bool:
    """Submit a run's newest job again; returns whether it is known to be complete. Raises UserError.

    A pipeline goes on with the copies of its job files that were made when it was queued.
    """
    found = [attempt for attempt in attempts(run) if attempt.file.exists()]
    if not found:
        raise UserError(f"{run}: nothing was ever submitted here; `semiocity status` lists the runs")
    data = found[-1].read()
    if data["kind"] == "pipeline":
        pipeline, asked = of_attempt(found[-1])
        return pipeline_run.run(pipeline, cluster, choose(pipeline, asked), wait=wait, dry_run=dry_run)
    data = facts.moved(found[-1], data)
    work = facts.work_of(data, run, Path(data["dataset"]))
    return submission.submit(work, cluster, wait=wait, dry_run=dry_run)
