"""What is refused of a pipeline before anything of it is queued: also what steps would only find out when they start,
days later, in a gate."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from semiocity.config import Cluster
from semiocity.errors import UserError
from semiocity.launch import doctor, scheduler, slurm, squeue, submission
from semiocity.launch.pipeline import Pipeline
from semiocity.launch.pipeline_plan import Planned
from semiocity.launch.pipeline_why import refuse_other_training
from semiocity.launch.runs import Attempt


def check_cluster(pipeline: Pipeline, cluster: Cluster, chosen: Collection[str]) -> None:
    """Raises UserError for what this cluster cannot run: a missing image, several nodes without SLURM; and for a
    training whose run was begun with other settings. Asks SLURM nothing."""
    for name in chosen:
        draft = pipeline.facts[name].draft
        with _named(pipeline, f"steps.{name}"):
            submission.check(draft, cluster)
            if draft.kind == "train":
                refuse_other_training(draft)


def refuse(pipeline: Pipeline, cluster: Cluster, todo: Sequence[Planned], gate: slurm.Launch) -> None:
    """Ask SLURM whether it would take each step's job and the gates', and look at room, quota and notices, as the
    submission of each step would. Raises UserError; prints warnings. One `sbatch --test-only` for each different
    request."""
    asked: set[tuple[str, str]] = set()
    warnings: dict[str, None] = {}
    for planned in todo:
        draft = pipeline.facts[planned.step.name].draft
        request = draft.resources.model_dump_json(), str(draft.image)
        with _named(pipeline, f"steps.{planned.step.name}"):
            warnings |= dict.fromkeys(doctor.check_submission(draft, cluster))
            if request not in asked:
                submission.refuse_request(draft, cluster, submission.check(draft, cluster))
        asked.add(request)
    if any(planned.standing.state == "waits" for planned in todo):
        with _named(pipeline, "gate"):
            if reason := scheduler.refusal(slurm.sbatch_file(gate, Attempt(pipeline.run, 1), 1) + "\n"):
                raise UserError(f"the cluster would not take the jobs that plan steps: {reason}")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def places(planned: Planned) -> int:
    """Places in the queue that a step needs at least: a gate; or a task, its merge, and a gate for what finds no room
    beside them."""
    if planned.standing.state == "waits":
        return 1
    assert planned.standing.work is not None
    return 2 + (planned.standing.work.kind in submission.MERGED) if planned.standing.state == "ready" else 0


def refuse_crowd(pipeline: Pipeline, cluster: Cluster, todo: Sequence[Planned]) -> None:
    """UserError when the site's limit of submitted jobs leaves too few places for all gates at once."""
    if cluster.max_submitted is None:
        return
    me = squeue.own_name()
    there = sum(job.user == me for job in squeue.jobs([]))
    needed = sum(places(planned) for planned in todo)
    if there + needed > cluster.max_submitted:
        ready = [p.step.name for p in todo if p.standing.state == "ready"]
        gates = sum(p.standing.state == "waits" for p in todo)
        raise UserError(
            f"{pipeline.file}: nothing was queued: the pipeline needs {needed} places in the queue at least ({gates} "
            f"for gates), you have {there} jobs there, and max_submitted in jobs/cluster.toml is "
            f"{cluster.max_submitted}. Queue fewer steps at a time: --phases "
            f"{','.join(ready) or todo[0].step.name} --wait, then the next"
        )


@contextmanager
def _named(pipeline: Pipeline, place: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{pipeline.file}: {place}: {error}") from None
