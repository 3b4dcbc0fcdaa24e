"""Where a step of a pipeline stands, and why it has to be done (again). Login-node code; asks the disk, then squeue."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from semiocity.config import Cluster
from semiocity.data import manifest
from semiocity.errors import UserError
from semiocity.files import read_json
from semiocity.launch import submission
from semiocity.launch.jobs import Work
from semiocity.launch.pipeline_steps import Step, build
from semiocity.launch.runs import Attempt, attempts
from semiocity.launch.status_tasks import task_states

UNIMPORTANT = {"resources", "image", "run", "tasks", "dataset", "prompts"}
"""Keys of a job that do not change what comes out."""


RESULTS = {"generate": "samples/manifest.json", "evaluate": "scores.json", "report": "report.html"}


class Standing(NamedTuple):
    """Where a step stands."""

    state: Literal["complete", "ready", "running", "waits", "left out"]
    why: str
    work: Work | None = None
    jobs: tuple[str, ...] = ()
    """SLURM jobs that are at it."""


def look(step: Step, cluster: Cluster, dry_run: bool = False) -> Standing:
    """Where a step stands whose inputs are complete. Raises UserError when it cannot be done as it is."""
    work = build(step, dry_run)
    if is_complete(work) and not submission.rows_to_retry(work):
        return Standing("complete", "", work)
    busy = submission.under_way(work).tasks
    if busy and (work.shards == 0 or not submission.plan_tasks(work, cluster, busy, submission.rows_to_retry(work))):
        ids = ", ".join(sorted({job.partition("_")[0] for job in busy}))
        return Standing("running", ids if ids.startswith("process") else f"job {ids}", work, _queued(busy))
    return Standing("ready", why(work), work, _queued(busy))


def _queued(busy: Iterable[str]) -> tuple[str, ...]:
    """Those of the jobs that are SLURM's, for others to wait for."""
    return tuple(job for job in busy if job[:1].isdigit())


def is_complete(work: Work) -> bool:
    """Whether the results are there and up to date.

    Results without receipts (images, scores, pages, copies) are what the newest attempt left that ended well, if it
    had these settings and read these inputs.
    """
    if work.kind in submission.MERGED - {"generate"} or work.kind == "train":
        # A packing of no rows leaves nothing for later steps to do.
        done = submission.complete(work)
        return done and (work.kind != "pack" or bool(manifest.read_manifest(work.dataset)["rows"]))
    last = _last(work)
    if last is None or not (work.run / RESULTS[work.kind]).exists():
        return False
    return not _differences(work, last.read()) and _ended_well(last)


def why(work: Work) -> str:
    """One line: what is missing, or what has changed since it was made."""
    match work.kind:
        case "pack" | "stage" | "reduce":
            return _why_column(work)
        case "view":
            found = work.dataset / "views" / work.column / "view.json"
            return "its rule or its columns have changed" if found.exists() else "not built yet"
        case "train":
            return _why_train(work)
        case "export":
            missing = len(submission.missing(work))
            return f"missing shards: {missing} of {work.shards}" if missing else "written, but not finished"
        case _:
            last = _last(work)
            if last is None:
                return "not done yet"
            return "; ".join(_differences(work, last.read())) or "it did not end well, or its results are gone"


def changes(old: Mapping[str, Any], new: Mapping[str, Any], what: str = "") -> list[str]:
    """`args.batch 8 → 16` for each dotted key in which two settings differ."""
    before, now = _flat(old), _flat(new)
    return [
        f"{what}{key} {_short(before.get(key))} → {_short(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def _why_column(work: Work) -> str:
    folder = manifest.column_folder(work.dataset, work.column, work.revision)
    missing = len(manifest.missing(folder, work.shards))
    current = manifest.current(work.dataset, work.column)
    if current is not None and current != work.revision and missing == work.shards:
        return _changed_column(work, current) or "made differently now"
    if missing == work.shards:
        return f"not made yet ({missing} shards)"
    if missing:
        return f"missing shards: {missing} of {work.shards}"
    if work.kind == "pack" and submission.complete(work):
        return "it has no rows: every file of the source was rejected, or there is none"
    if again := submission.rows_to_retry(work):
        return f"rows in {len(again)} shards failed for now"
    return "made, but not merged"


def _changed_column(work: Work, current: str) -> str:
    try:
        made = manifest.read_column_manifest(work.dataset, work.column, current)
    except UserError:
        return ""
    if work.kind == "pack":
        plan = work.dataset / "plans" / current / "plan.json"
        before = read_json(plan)["recipe"] if plan.exists() else {}
        places = ("source.root ", "source.link_roots ", "blur.detector.path ", "note ", "license ")
        found = [item for item in changes(before, work.job) if not item.startswith(places)]
        return "; ".join(found) or "files of the source have changed"
    if made["stage"]["name"] == manifest.EDIT:
        return "made anew below corrections by hand"
    found = []
    if work.kind == "stage":
        from semiocity.stages.base import make_stage, parents_of

        stage = make_stage(work.job["stage"], work.job["args"])
        found = changes(made["stage"]["args"], stage.settings(), "changed argument ")
        if made["stage"]["version"] != stage.version:
            found.append(f"stage version {made['stage']['version']} → {stage.version}")
        if made["model"] != stage.model_revision():
            found.append(f"changed model {_short(made['model'])} → {_short(stage.model_revision())}")
        classes = [{key: entry.get(key) for key in stage.execution()} for entry in made["executions"]]
        if stage.execution() not in classes:
            found += changes(classes[0] if classes else {}, stage.execution(), "execution ")
        parents = parents_of(stage)
    else:
        from semiocity.stages.reduce import make_reduce
        from semiocity.stages.reduce import parents_of as reduced

        reduce = make_reduce(work.job["reduce"], work.job["args"])
        found = changes(made["stage"]["args"], reduce.settings(), "changed argument ")
        parents = reduced(reduce)
    now = manifest.read_manifest(work.dataset)["columns"]
    for parent in parents:
        then = made["parents"].get(parent)
        then = then["revision"] if isinstance(then, Mapping) else then
        if then != now[parent]["revision"]:
            found.append(f"changed parent {parent} {then} → {now[parent]['revision']}")
    return "; ".join(found)


def refuse_other_training(work: Work) -> None:
    """UserError when the run of a training was begun with other settings. A draft of the work will do."""
    from semiocity.train.options import TrainJob, identity

    last = _last(work)
    begun = (work.run / "done.json").exists() or (work.run / "checkpoints").exists()
    if last is None or not begun:
        return
    before, now = (identity(TrainJob.model_validate(job)) for job in (last.read()["job"], work.job))
    view = now.get("data.view")
    if view is not None and "@" not in view:  # not pinned yet: whichever revision is there then
        before["data.view"] = str(before.get("data.view")).partition("@")[0]
    if changed := changes(before, now):
        raise UserError(
            f"{work.run}: this run was begun with other settings ({'; '.join(changed)}); set them back, or give "
            "the changed training another run"
        )


def _why_train(work: Work) -> str:
    refuse_other_training(work)
    try:
        progress = read_json(work.run / "progress.json")
        return f"step {progress['step']} of {work.job['steps']}"
    except (FileNotFoundError, KeyError):
        return "not trained yet"


def _last(work: Work) -> Attempt | None:
    """The newest attempt at this kind of work in the run."""
    for attempt in reversed(attempts(work.run)):
        if attempt.file.exists() and attempt.read()["kind"] == work.kind:
            return attempt
    return None


def _ended_well(attempt: Attempt) -> bool:
    return all(state["state"] == "done" for state in task_states(attempt, live={}))


def _differences(work: Work, then: Mapping[str, Any]) -> list[str]:
    old, new = ({key: job[key] for key in job if key not in UNIMPORTANT} for job in (then["job"], work.job))
    found = changes(old, new, "changed argument ")
    before = then.get("inputs", {})
    return found + [f"changed {name}" for name in sorted(work.inputs) if before.get(name) != work.inputs[name]]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            found |= _flat(inner, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = inner
    return found


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else "unset" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}…"
