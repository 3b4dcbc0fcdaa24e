"""What runs inside a job: submitit calls `main` with three plain values, the rest is read from the run folder."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from semiocity.errors import UserError
from semiocity.files import write_json
from semiocity.launch import notices
from semiocity.launch.preempt import REQUEUE_EXIT, StopFlag
from semiocity.launch.runs import Attempt
from semiocity.launch.world import World, from_environment

REPORT_EVERY_S = 2.0


def main(run: str, number: int, index: int) -> str:
    """Do task `index` of attempt `number` of `run`. Returns "done", or exits with 85 after asking to be requeued.

    A failure leaves its reason in the task file and the exception in the log, and passes on.
    """
    stop = StopFlag().install()
    world = from_environment()
    attempt = Attempt(Path(run), number)
    reporter = Reporter(attempt.task_file(index), world) if world.rank == 0 else None
    report: Callable[..., None] = reporter or _silent
    report(state="running")
    data = attempt.read()
    notify: Callable[..., None] = notices.ended if world.rank == 0 else _silent
    try:
        work = MERGES[data["kind"]] if index == data["merge"] else KINDS[data["kind"]]
        finished = work(data, index, world, stop, report)
    except UserError as error:
        report(state="failed", reason=str(error))
        notify(data, index, "failed", str(error))
        print(f"semiocity: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except BaseException as error:
        report(state="failed", reason=f"{type(error).__name__}: {error}")
        notify(data, index, "failed", f"{type(error).__name__}: {error}")
        traceback.print_exc()
        raise
    if finished:
        report(state="done")
        notify(data, index, "done")
        return "done"
    report(state="stopped", reason=stop.reason or "stopped")
    if world.rank == 0:
        # Written only now: every rank has saved and passed a barrier, so the job may come back.
        attempt.requeue_file(world.job_id, world.restart).touch()
    raise SystemExit(REQUEUE_EXIT)


class Reporter:
    """Keeps a task's file current: state, place, and what the work last said. At most one write in two seconds."""

    def __init__(self, path: Path, world: World) -> None:
        self.path = path
        self.written = 0.0
        self.facts: dict[str, Any] = {
            "job": world.job_id,
            "restart": world.restart,
            "ranks": world.size,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": round(time.time(), 1),
        }

    def __call__(self, **facts: Any) -> None:
        self.facts.update(facts)
        now = time.time()
        if "state" in facts or now - self.written >= REPORT_EVERY_S:
            self.written = now
            write_json(self.path, {**self.facts, "updated": round(now, 1)})


def _silent(*_words: Any, **_facts: Any) -> None:
    pass


Work = Callable[[dict[str, Any], int, World, StopFlag, Callable[..., None]], bool]


def _pack(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    from semiocity.data.pack import pack_shards
    from semiocity.data.plan import Plan

    plan = Plan.open(Path(data["dataset"]), data["revision"])
    return pack_shards(plan, data["tasks"][index], _owner(world), stop, lambda facts: report(**facts))


def _stage(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    from semiocity.stages.base import make_stage
    from semiocity.stages.runner import run_shards

    job = data["job"]
    stage = make_stage(job["stage"], job["args"])
    return run_shards(
        stage,
        Path(data["dataset"]),
        data["column"],
        data["revision"],
        data["tasks"][index],
        _owner(world),
        stop,
        lambda facts: report(**facts),
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
    )


def _merge(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    from semiocity.data.edit import follow
    from semiocity.data.manifest import merge

    merge(Path(data["dataset"]), data["column"], data["revision"])
    follow(Path(data["dataset"]), data["column"], data["revision"], _owner(world))
    return True


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

    return run(TrainJob.model_validate(data["job"]), Path(data["run"]), Path(data["dataset"]), world, stop)


def _generate(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    from semiocity.evaluate.generate import run
    from semiocity.evaluate.options import GenerateJob

    job = GenerateJob.model_validate(data["job"])
    return run(job, Path(data["run"]), Path(data["dataset"]), index, len(data["tasks"]), stop)


def _evaluate(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Callable[..., None]) -> bool:
    from semiocity.evaluate.options import EvaluateJob
    from semiocity.evaluate.score import run

    run(EvaluateJob.model_validate(data["job"]), Path(data["run"]), Path(data["dataset"]))
    return True


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
