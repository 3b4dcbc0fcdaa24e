"""Where each step of a pipeline stands, in order; for a person and for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from semiocity.config import Cluster
from semiocity.errors import UserError
from semiocity.launch import squeue
from semiocity.launch.pipeline import Pipeline
from semiocity.launch.pipeline_steps import Step
from semiocity.launch.pipeline_why import Standing, look


@dataclass(frozen=True)
class Planned:
    """A step and where it stands."""

    step: Step
    standing: Standing
    parents: tuple[str, ...]


def plan(pipeline: Pipeline, cluster: Cluster, chosen: Sequence[str], dry_run: bool = False) -> list[Planned]:
    """Where each step stands, in order. Writes nothing with `dry_run`.

    Raises UserError when a chosen step needs one that is neither chosen nor complete.
    """
    found: dict[str, Planned] = {}
    needed = {parent for name in chosen for parent in pipeline.parents[name]}
    for step in pipeline.steps:
        parents = pipeline.parents[step.name]
        if step.name not in chosen and step.name not in needed:
            standing = Standing("left out", "not chosen")
        elif waits := [p for p in parents if p in chosen and found[p].standing.state != "complete"]:
            standing = Standing("waits", f"after {', '.join(waits)}")
        else:
            standing = look(step, cluster, dry_run)
        if step.name not in chosen and standing.state not in ("complete", "left out"):
            wants = [name for name in chosen if step.name in pipeline.parents[name]]
            raise UserError(
                f"{pipeline.file}: {', '.join(wants)} needs {step.name}, which is not complete "
                f"({standing.why}) and not chosen; choose it too"
            )
        found[step.name] = Planned(step, standing, parents)
    return list(found.values())


def to_do(planned: Sequence[Planned], chosen: Sequence[str]) -> list[Planned]:
    """The chosen steps that are not complete."""
    return [p for p in planned if p.step.name in chosen and p.standing.state != "complete"]


def table(planned: Sequence[Planned]) -> str:
    """The plan for a person."""
    rows = [(p.step.name, p.step.kind, p.standing.state, p.standing.why) for p in planned]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(text.ljust(width) for text, width in zip(row, widths)), row[3]]).rstrip() for row in rows
    )


def as_json(planned: Sequence[Planned]) -> str:
    """The plan for programs."""
    found: list[dict[str, Any]] = [
        {
            "step": p.step.name,
            "kind": p.step.kind,
            "file": str(p.step.file),
            "state": p.standing.state,
            "why": p.standing.why,
            "after": list(p.parents),
            "jobs": squeue.whole_jobs(p.standing.jobs) if p.standing.jobs else [],
        }
        for p in planned
    ]
    return json.dumps(found, indent=1)
