"""`semiocity retry RUN`: the newest job again, from the run folder alone: what is missing and not under way."""

from __future__ import annotations

from pathlib import Path

from semiocity.config import Cluster
from semiocity.errors import UserError
from semiocity.launch import facts, pipeline_run, submission
from semiocity.launch.pipeline import choose, load
from semiocity.launch.runs import attempts


def retry(run: Path, cluster: Cluster, wait: bool) -> bool:
    """Submit a run's newest job again; returns whether it is known to be complete. Raises UserError."""
    found = [attempt for attempt in attempts(run) if attempt.file.exists()]
    if not found:
        raise UserError(f"{run}: nothing was ever submitted here; `semiocity status` lists the runs")
    data = found[-1].read()
    if data["kind"] == "pipeline":
        pipeline = load(Path(data["job"]["file"]), data["job"]["sets"])
        attempt = pipeline_run.queue(pipeline, cluster, choose(pipeline, data["job"]["asked"]))
        return attempt is None or (wait and pipeline_run.follow_all(attempt))
    return submission.submit(facts.work_of(data, run, Path(data["dataset"])), cluster, wait=wait)
