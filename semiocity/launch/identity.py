"""A run's name stands for one job: the same name with other arguments is refused, with what differs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from semiocity.errors import UserError
from semiocity.files import canonical
from semiocity.launch.jobs import Work
from semiocity.launch.runs import Attempt, attempts

FREE = ("run", "dataset", "image", "resources")
"""Keys of a job that say where and with what it runs, not what comes out."""
RESULTS = {"generate": "samples/manifest.json", "evaluate": "scores.json"}
"""What a run has one of; a second job with other settings would put its own in its place."""
FREE_OF_RESULTS = ("run", "image", "resources", "tasks", "prompts")
"""Of those jobs. Another dataset's pictures are other pictures; a file of prompts is known by their digest."""


def refuse_another(work: Work, live: Collection[str]) -> None:
    """UserError when the run folder holds another job than `work`: every dotted key that differs, before and after."""
    differing = another(work, live)
    if not differing:
        return
    lines = [f"  {key}: {_show(before)} -> {_show(after)}" for key, (before, after) in differing.items()]
    raise UserError(
        "\n".join([f"runs/{work.run.name} is another job; what differs (before -> now):", *lines])
        + f"\n  To run this one beside it, give it a name: {_beside(work)}. {_instead(work)}"
    )


def another(work: Work, live: Collection[str]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (before, now) of what makes `work` another job than the run folder holds; empty when it may go on.

    What changes no result is no difference: a column of the same revision, settings that a training may go on with,
    and parents that have grown since. Nor is there anything to protect in a run of which nothing came and of whose
    jobs none is in `live`.
    """
    earlier = _earlier(work)
    if earlier is None or (work.revision and earlier["revision"] == work.revision):
        return {}
    if not (_results(work, earlier) or set(earlier["jobs"]) & set(live)):
        return {}
    return _differing(work, earlier)


def _beside(work: Work) -> str:
    """The options that give it a name; the model or the pictures stay those of the run that has them."""
    sets = [f'run="{work.run.name}-2"']
    if work.kind == "generate" and work.job.get("model") is None:
        sets.append(f'model="runs/{work.run.name}/export"')
    if work.kind == "evaluate" and work.job.get("samples") is None:
        sets.append(f'samples="runs/{work.run.name}/samples"')
    return " ".join(f"--set '{item}'" for item in sets)


def _instead(work: Work) -> str:
    if work.kind == "train":
        return "To go on with the old one, put the old values back."
    if work.kind in RESULTS:
        return f"To put its results in place of {work.run.name}/{RESULTS[work.kind]}, add --replace."
    return "To go on under this name with the new values (a new revision of the column), add --replace."


def _earlier(work: Work) -> dict[str, Any] | None:
    """The newest attempt at the same kind of work in this run folder."""
    if work.kind not in ("stage", "reduce", "train", *RESULTS):
        return None  # a plan, a view and an export are known by what they are
    for attempt in reversed(attempts(work.run)):
        data = _read(attempt)
        if data is not None and (data["kind"], data["column"]) == (work.kind, work.column):
            return data
    return None


def _read(attempt: Attempt) -> dict[str, Any] | None:
    return attempt.read() if attempt.file.exists() else None  # a submission that broke off


def _results(work: Work, earlier: Mapping[str, Any]) -> bool:
    """Whether something came of the earlier job: a shard, a checkpoint, a picture, or scores."""
    if work.kind == "train":
        return any((work.run / "checkpoints").glob("step-*"))
    if work.kind in RESULTS:
        begun = work.kind == "generate" and any((work.run / "samples").glob("*/sample.json"))
        return begun or (work.run / RESULTS[work.kind]).exists()
    folder = Path(earlier["dataset"]) / "columns" / earlier["column"] / earlier["revision"]
    return any(folder.glob("*/*.tar"))


def _differing(work: Work, earlier: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    before = earlier["job"]
    if work.kind == "train":
        return differences(_identity(before), _identity(work.job))
    if work.kind in RESULTS:
        if "prompts" in work.job and "prompts" in before:  # which are about no dataset
            return differences(*(flat(job, FREE_OF_RESULTS.__contains__) for job in (before, work.job)))
        places = ((before, earlier["dataset"]), (work.job, str(work.dataset)))  # not as they happen to be written
        return differences(*(flat({**job, "dataset": place}, FREE_OF_RESULTS.__contains__) for job, place in places))
    return differences(flat(before, _free), flat(work.job, _free))


def _identity(job: Mapping[str, Any]) -> dict[str, Any]:
    from semiocity.train.options import TrainJob, identity

    return identity(TrainJob.model_validate(job))


def flat(job: Mapping[str, Any], left_out: Callable[[str], bool], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of a job's settings, without those whose dotted key is `left_out`."""
    found: dict[str, Any] = {}
    for key, value in job.items():
        name = f"{prefix}{key}"
        if left_out(name):
            continue
        if isinstance(value, Mapping) and value:
            found |= flat(value, left_out, f"{name}.")
        else:
            found[name] = value
    return found


def _free(name: str) -> bool:
    return name in FREE or name.rpartition(".")[2].startswith("rehearse")


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (before, after) of what differs; None where a key is absent."""
    keys = sorted({*before, *after})
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def _show(value: Any) -> str:
    return "(none)" if value is None else canonical(value)
