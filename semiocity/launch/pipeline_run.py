"""Doing a pipeline: what is missing or out of date, on this machine step by step, or queued with SLURM all at once
(`pipeline_queue.py`); and what `--dry-run` says of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from semiocity.config import Cluster
from semiocity.errors import UserError
from semiocity.launch import follow, pipeline_queue, slurm, submission
from semiocity.launch.pipeline import Pipeline
from semiocity.launch.pipeline_check import check_cluster
from semiocity.launch.pipeline_plan import Planned, plan, table, to_do
from semiocity.launch.pipeline_steps import build
from semiocity.launch.pipeline_why import is_complete, look
from semiocity.launch.runs import Attempt


def run(
    pipeline: Pipeline,
    cluster: Cluster,
    chosen: Sequence[str],
    *,
    wait: bool = False,
    dry_run: bool = False,
    code: Path | None = None,
) -> bool:
    """Do the chosen steps of a pipeline. Returns whether all are known to be complete. Raises UserError."""
    check_cluster(pipeline, cluster, chosen)
    if dry_run:
        planned = plan(pipeline, cluster, chosen, dry_run=True)
        print("\n\n".join([table(planned), *_dry_run(pipeline, cluster, to_do(planned, chosen))]))
        return False
    if cluster.executor == "local":
        plan(pipeline, cluster, chosen)  # refuses before anything is done
        return run_here(pipeline, cluster, chosen, code)
    attempt = pipeline_queue.queue(pipeline, cluster, chosen, code)
    if attempt is None:
        print("everything is complete, nothing to do")
        return True
    if wait:
        return pipeline_queue.follow_all(attempt)
    print(f"`semiocity status {attempt.run.name}` shows where it stands")
    return False


def _dry_run(pipeline: Pipeline, cluster: Cluster, todo: Sequence[Planned]) -> list[str]:
    """What would be queued now: the sbatch files of the steps that can be planned, and that of the gates."""
    found = []
    for planned in todo:
        if planned.standing.state == "ready" and planned.standing.work is not None:
            text = submission.dry_run_of(planned.standing.work, cluster)
            found.append(f"# ---- step {planned.step.name}\n{text.rstrip()}")
    if gates := [planned.step.name for planned in todo if planned.standing.state == "waits"]:
        run = pipeline.run
        launch = pipeline_queue.gate_launch(run, cluster, pipeline.gate, run / "code" / "SNAPSHOT")
        number = [step.name for step in pipeline.steps].index(gates[0])
        text = slurm.sbatch_file(launch, Attempt(run, 1), 1, number, after=("JOBS_BEFORE",))
        found.append(
            f"# ---- one gate each, which plans the step when what it reads is there: {', '.join(gates)}\n"
            f"# that of {gates[0]}:\n{text}"
        )
    return found if cluster.executor == "slurm" else []


def run_here(pipeline: Pipeline, cluster: Cluster, chosen: Sequence[str], code: Path | None = None) -> bool:
    """Do the chosen steps one after the other. A step that fails keeps those from starting that need it; others go on.

    Returns whether all are complete.
    """
    broken: dict[str, str] = {}
    for number, name in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {name}", flush=True)
        began = time.monotonic()
        if held := [parent for parent in pipeline.parents[name] if parent in broken]:
            broken[name] = f"not started: {', '.join(held)} is not complete"
            print(f"    {broken[name]}\n")
            continue
        try:
            standing = look(pipeline.step(name), cluster)
            if standing.state == "complete":
                print("    complete, nothing to do\n")
                continue
            print(f"    {standing.why}", flush=True)
            assert standing.work is not None
            submission.submit(standing.work, cluster, wait=True, replace=standing.work.kind != "train", code=code)
            if not is_complete(build(pipeline.step(name))):
                raise UserError(f"{name}: not complete; run the same command again for what is missing")
        except follow.Interrupted:
            raise
        except UserError as error:
            broken[name] = str(error)
            print(f"semiocity: {error}\n", file=sys.stderr)
            continue
        print(f"    {time.monotonic() - began:.0f} s\n", flush=True)
    for name, reason in broken.items():
        print(f"{name}: {reason.splitlines()[0]}")
    return not broken
