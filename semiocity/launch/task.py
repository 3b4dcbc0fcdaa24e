"""What runs inside a job: `main` gets three plain values, the rest is read from the run folder."""

from __future__ import annotations

import faulthandler
import os
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from semiocity import ranks
from semiocity.errors import BadNode, OutOfMemory, UserError
from semiocity.files import read_json, sweep, write_json
from semiocity.launch import causes, ends, notices
from semiocity.launch.preempt import REQUEUE_EXIT, StopFlag
from semiocity.launch.runs import Attempt, attempts
from semiocity.launch.world import World, from_environment
from semiocity.stages.base import BrokenStage

REPORT_EVERY_S = 2.0
FAULTS_IN_CODE = (
    *(TypeError, ValueError, LookupError, AttributeError, NameError, AssertionError, NotImplementedError),
    *(ImportError, SyntaxError, BrokenStage, OutOfMemory),
)
"""What happens again when it is tried again."""
SHARED_MEMORY_BYTES = 16 << 20
"""Least room in /dev/shm for a training: its ranks and reading workers talk through it."""


def main(run: str, number: int, index: int) -> str:
    """Do task `index` of attempt `number` of `run`. Returns "done", or exits with 85 after asking to be requeued.

    A failure leaves its reason in the task file and the exception in the log, and passes on.
    """
    faulthandler.enable()  # a segmentation fault leaves its stacks in the log
    stop = StopFlag().install()
    world = from_environment()
    attempt = Attempt(Path(run), number)
    world = replace(world, folder=ranks.folder_of(attempt.folder, world.job_id, world.restart))
    reporter = Reporter(attempt.task_file(index), world) if world.rank == 0 else None
    report: Callable[..., None] = reporter or _silent
    data = {**attempt.read(), "attempt": number}
    if world.rank == 0:
        _sweep(attempt, data, index, world)
    report(state="running")
    try:
        check_node(data)
        work = MERGES[data["kind"]] if index == data["merge"] else KINDS[data["kind"]]
        with ranks.recorded(world):
            finished = work(data, index, world, stop, report)
    except BaseException as error:
        if isinstance(error, UserError) and (later := _merges_later(attempt, data, index)):
            print(f"semiocity: {error}\nleft to attempt {later}, which merges when this is made", file=sys.stderr)
            report(state="done", said=f"left to attempt {later}")
            return "done"
        cause, reason = said(error)
        again = not isinstance(error, FAULTS_IN_CODE)
        ends.note(attempt, world.job_id, world.restart, cause, reason, node_name(), world.rank, again)
        report(state="failed", cause=cause, reason=reason)
        notices.failed(data, index, attempt, world, cause, reason, again)
        if isinstance(error, UserError):
            print(f"semiocity: {error}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None
        traceback.print_exc()
        raise
    if finished:
        report(state="done")
        if world.rank == 0 and not _merges_later(attempt, data, index):
            notices.ended(data, index, "done")
        return "done"
    report(state="stopped", reason=stop.reason or "stopped")
    cause = causes.of_signal(stop.reason)
    if world.rank == 0 and not attempt.cancelled.exists():
        # Written only now: every rank has saved and passed a barrier, so the job may come back.
        attempt.requeue_file(world.job_id, world.restart).write_text(cause, encoding="utf-8")
    notices.stopped(data, index, attempt, world, cause)
    raise SystemExit(REQUEUE_EXIT)


def node_name() -> str:
    """This machine, by the name that SLURM has for it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def said(error: BaseException) -> tuple[str, str]:
    """Cause and reason of a task that ends by an exception."""
    name = type(error).__name__
    match error:
        case BadNode():
            return causes.BAD_NODE, str(error)
        case OutOfMemory():
            return causes.OUT_OF_MEMORY, str(error)
        case UserError():
            return causes.REFUSED, str(error)
        case MemoryError():
            return causes.OUT_OF_MEMORY, f"{name}: {error}"
    return causes.GPU_OUT_OF_MEMORY if name == "OutOfMemoryError" else causes.CRASH, f"{name}: {error}"


def _sweep(attempt: Attempt, data: Mapping[str, Any], index: int, world: World) -> None:
    """Remove what this job's earlier lives were writing when they were killed."""
    if data["kind"] == "train":
        for name in ("progress.json", "done.json"):
            sweep(attempt.run, name)
    if world.restart == 0:
        return
    sweep(attempt.folder / "tasks", attempt.task_file(index).name)
    for _, restart, folder in ranks.restarts(attempt.folder, world.job_id):
        if restart < world.restart:
            sweep(folder)


def check_node(data: dict[str, Any]) -> None:
    """Raises BadNode when this node lacks what every task needs and other nodes of the cluster have."""
    if data["executor"] != "slurm" or data["kind"] == "pipeline":  # whose steps look at what each of them needs
        return
    if not Path(data["dataset"]).is_dir():
        raise BadNode(f"{data['dataset']}: not there on {node_name()}; its file system is not mounted")
    if data["kind"] == "train":
        try:
            free = shutil.disk_usage("/dev/shm").free
        except OSError as error:
            raise BadNode(f"/dev/shm on {node_name()}: {error.strerror}") from None
        if free < SHARED_MEMORY_BYTES:
            raise BadNode(f"/dev/shm on {node_name()}: {free >> 20} MB left; what died there may have left it")


class Reporter:
    """Keeps a task's file current: state, place, and what the work last said. At most one write in two seconds."""

    def __init__(self, path: Path, world: World) -> None:
        self.path = path
        self.written = 0.0
        self.facts: dict[str, Any] = {
            "spent_s": _spent_s(path, world.job_id),
            "job": world.job_id,
            "restart": world.restart,
            "ranks": world.size,
            "host": node_name(),
            "pid": os.getpid(),
            "started": round(time.time(), 1),
        }

    def __call__(self, **facts: Any) -> None:
        self.facts.update(facts)
        now = time.time()
        if "state" in facts or now - self.written >= REPORT_EVERY_S:
            self.written = now
            write_json(self.path, {**self.facts, "updated": round(now, 1)})


def _spent_s(path: Path, job: str) -> float:
    """Seconds that this job ran before it was brought back."""
    try:
        before = read_json(path)
    except (FileNotFoundError, UserError):
        return 0.0
    if before.get("job") != job:
        return 0.0
    return round(before.get("spent_s", 0.0) + before.get("updated", 0.0) - before.get("started", 0.0), 1)


def _silent(**_facts: Any) -> None:
    pass


Work = Callable[[dict[str, Any], int, World, StopFlag, Callable[..., None]], bool]


def _pack(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    from semiocity.data.pack import pack_shards
    from semiocity.data.plan import Plan

    plan = Plan.open(Path(data["dataset"]), data["revision"])
    return pack_shards(
        plan,
        data["tasks"][index],
        _owner(world),
        stop,
        lambda facts: report(**facts),
        gone=_gone(data),
        careful=ends.died_before(Attempt(Path(data["run"]), data["attempt"]), world.job_id, world.restart),
    )


def _stage(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    from semiocity.stages.base import make_stage
    from semiocity.stages.runner import run_shards

    job = data["job"]
    stage = make_stage(job["stage"], job["args"])
    run = Path(data["run"])
    return run_shards(
        stage,
        Path(data["dataset"]),
        data["column"],
        data["revision"],
        data["tasks"][index],
        _owner(world),
        stop,
        lambda facts: report(**facts),
        careful=ends.died_before(Attempt(run, data["attempt"]), world.job_id, world.restart),
        ended=ends.witness(run),
        gone=_gone(data),
    )


def _reduce(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    from semiocity.stages.reduce import make_reduce
    from semiocity.stages.reduce_runner import run_reduce

    job = data["job"]
    return run_reduce(
        make_reduce(job["reduce"], job["args"]),
        Path(data["dataset"]),
        data["column"],
        data["revision"],
        data["tasks"][index],
        _owner(world),
        stop,
        lambda facts: report(**facts),
        gone=_gone(data),
    )


def _merge(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    from semiocity.data import rejects
    from semiocity.data.manifest import BASE, corrected, merge

    place = Path(data["dataset"]), data["column"], data["revision"]
    merged = merge(*place)
    if place[1] == BASE:
        if not merged["rows"]:
            raise UserError(f"no row was packed: {rejects.summary(place[0])}")
        print(rejects.summary(place[0]))
    if corrected(*place) is not None:  # imports much, and is seldom needed
        from semiocity.data.corrected import follow

        follow(*place, _owner(world))
    return True


def _merges_later(attempt: Attempt, data: dict[str, Any], index: int) -> int | None:
    """The later attempt whose merge waits behind this task, if this is a merge: what is missing now, that attempt is
    making, and the run ends with it."""
    if index != data["merge"]:
        return None
    for other in attempts(attempt.run):
        if other.number <= attempt.number or other.cancelled.exists() or not other.file.exists():
            continue
        later = other.read()
        merge = later.get("merge")
        same = all(later.get(name) == data.get(name) for name in ("kind", "column", "revision"))
        if same and merge is not None and any(later["jobs"][merge:]):
            with suppress(FileNotFoundError, UserError):
                if read_json(other.task_file(merge)).get("state") in ("done", "failed"):
                    continue
            return other.number
    return None


def _merge_reduce(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    from semiocity.data.columns import Dataset
    from semiocity.stages.reduce import make_reduce

    _merge(data, index, world, stop, report)
    reduce = make_reduce(data["job"]["reduce"], data["job"]["args"])
    reduce.report(Dataset.open(Path(data["dataset"])), data["column"], Path(data["run"]))
    return True


def _merge_samples(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    from semiocity.evaluate.samples import merge_samples

    merge_samples(Path(data["run"]) / "samples")
    return True


def _view(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    from semiocity.data.view_build import build

    return build(_view_plan(data), data["tasks"][index], stop, lambda facts: report(**facts))


def _merge_view(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    from semiocity.data.view_build import merge

    merge(_view_plan(data))
    return True


def _export(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    from semiocity.data.export import engine, wish

    wanted, inputs = wish.Wish.from_json(data["job"]["export"]), data["job"]["inputs"]
    return engine.task(wanted, inputs, data["tasks"][index], _owner(world), stop, lambda facts: report(**facts))


def _finish_export(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    from semiocity.data.export import engine, wish

    engine.finish(wish.Wish.from_json(data["job"]["export"]), data["job"]["inputs"])
    return True


def _view_plan(data: dict[str, Any]) -> Any:
    from semiocity.data.views import ViewJob, plan_again

    return plan_again(ViewJob.model_validate(data["job"]), data["revision"])


def _train(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    from semiocity.train.loop import run
    from semiocity.train.options import TrainJob

    folder = Path(data["run"])
    hung = notices.hung(data, index, Attempt(folder, data["attempt"]), world)
    return run(TrainJob.model_validate(data["job"]), folder, Path(data["dataset"]), world, stop, hung)


def _generate(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    if "prompts" in data["job"]:
        from semiocity.evaluate import prompts
        from semiocity.evaluate.prompt_options import PromptJob

        return prompts.run(PromptJob.model_validate(data["job"]), Path(data["run"]), index, len(data["tasks"]), stop)
    from semiocity.evaluate.generate import run
    from semiocity.evaluate.options import GenerateJob

    job = GenerateJob.model_validate(data["job"])
    return run(job, Path(data["run"]), Path(data["dataset"]), index, len(data["tasks"]), stop)


def _evaluate(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    from semiocity.evaluate.options import EvaluateJob
    from semiocity.evaluate.score import run

    run(EvaluateJob.model_validate(data["job"]), Path(data["run"]), Path(data["dataset"]))
    return True


def _report(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    from semiocity.evaluate.report import write

    write(Path(data["run"]), Path(data["dataset"]))
    return True


def _pipeline(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    from semiocity.launch.pipeline_gate import run

    return run(data, index, report)


def _doctor(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    from semiocity.launch import doctor_task

    return doctor_task.run(data, world, report)


KINDS: dict[str, Work] = {
    "doctor": _doctor,
    "pack": _pack,
    "stage": _stage,
    "reduce": _reduce,
    "view": _view,
    "export": _export,
    "train": _train,
    "generate": _generate,
    "evaluate": _evaluate,
    "report": _report,
    "pipeline": _pipeline,
}

# What the attempt's last task does when all others have ended.
MERGES: dict[str, Work] = {
    "pack": _merge,
    "stage": _merge,
    "reduce": _merge_reduce,
    "view": _merge_view,
    "export": _finish_export,
    "generate": _merge_samples,
}


def _owner(world: World) -> Any:
    from semiocity.data.lease import Owner

    job, _, task = world.job_id.partition("_")
    return Owner(job, world.restart, int(task or 0), socket.gethostname(), os.getpid())


def _gone(data: dict[str, Any]) -> Callable[[Any], bool]:
    """Whether the holder of a lease was a task of an earlier attempt of this run that SLURM no longer had when this
    attempt was submitted."""
    live = set(data.get("live", ()))

    def gone(holder: Any) -> bool:
        names = {holder.job, f"{holder.job}_{holder.task}"}
        for attempt in attempts(Path(data["run"])):
            if not attempt.file.exists():
                continue
            earlier = attempt.read()
            if earlier["executor"] == "slurm" and earlier["jobs"] != data["jobs"] and names & set(earlier["jobs"]):
                return not names & live
        return False

    return gone
