"""Who does a stage's work: this process, or one of its own that may die without taking the task along.

`Here` is the usual way. `Apart` is for shards in which an attempt was killed: the stage lives in a child that gets rows
through a pipe. What kills it, kills it under our eyes; a signal to us is told from one of its own making.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
import traceback
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import NamedTuple, Protocol

from semiocity.child import settle_in
from semiocity.errors import BadNode, UserError
from semiocity.stages import faults
from semiocity.stages.base import BrokenStage, DatasetInfo, Made, Row, Stage, Tombstone

SETTLE_S = 1.0
"""A job that is killed as a whole may lose the child a moment before us: then nobody is to draw conclusions."""


class Failure(NamedTuple):
    """Why a batch could not be made as a whole."""

    tombstone: Tombstone
    """What stands for the row, should it have been alone."""
    memory: bool
    """Whether fewer rows at a time may do."""
    error: Exception | None = None


Outcome = list[Made | Tombstone] | Failure


class Hands(Protocol):
    apart: bool

    def load(self, info: DatasetInfo, device: str) -> None:
        """Prepare the stage, once; further calls do nothing."""

    def call(self, rows: list[Row]) -> Outcome:
        """Make one batch. Raises what is no affair of its rows."""

    def close(self) -> None: ...


class Here:
    """The stage in this process. A batch that hangs ends the process, with its stacks in the log."""

    apart = False

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.loaded = False

    def load(self, info: DatasetInfo, device: str) -> None:
        if not self.loaded:
            _load(self.stage, info, device)
            self.loaded = True

    def call(self, rows: list[Row]) -> Outcome:
        timeout_s = self.stage.args.batch_timeout_s
        if timeout_s and rows:  # by a thread of C: a batch may hang without ever letting go of the interpreter
            faulthandler.dump_traceback_later(timeout_s, exit=True, file=sys.__stderr__ or 2)
        try:
            return attempt(self.stage, rows)
        finally:
            if timeout_s and rows:
                faulthandler.cancel_dump_traceback_later()

    def close(self) -> None:
        return


class Apart:
    """The stage in a child of this process, which must not have touched a GPU itself. A dead child is replaced."""

    apart = True

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.how: tuple[DatasetInfo, str] | None = None
        self.child: ForkProcess | None = None
        self.pipe: Connection | None = None

    def load(self, info: DatasetInfo, device: str) -> None:
        self.how = (info, device)
        if self.child is None:
            self._start()

    def call(self, rows: list[Row]) -> Outcome:
        if not rows:
            return []
        if self.child is None:
            self._start()
        assert self.child is not None and self.pipe is not None
        timeout_s = self.stage.args.batch_timeout_s
        try:
            self.pipe.send(rows)
            if not self.pipe.poll(timeout_s or None):
                self._end()
                return Failure(faults.hung(timeout_s), memory=False)
            answer = self.pipe.recv()
        except (EOFError, OSError):
            self.child.join(timeout=SETTLE_S)
            if self.child.is_alive():
                raise  # not about the child: whatever a signal's handler ran into, say
            code = self._end()
            if code == -signal.SIGKILL:
                time.sleep(SETTLE_S)
            return Failure(faults.killed(code), memory=code == -signal.SIGKILL)
        match answer:
            case ("device lost", str(name), str(text)):
                self._end()
                return Failure(Tombstone("permanent", text), memory=False, error=RuntimeError(f"{name}: {text}"))
            case ("fatal", str(name), str(text)):
                self._end()
                _raise(name, text)
        return answer

    def close(self) -> None:
        if self.child is not None:
            self._end()

    def _start(self) -> None:
        """Fork, and wait until the stage is loaded: what fails there is no row's fault."""
        assert self.how is not None
        fork = multiprocessing.get_context("fork")
        self.pipe, theirs = fork.Pipe()
        self.child = fork.Process(target=_serve, args=(self.stage, *self.how, theirs, self.pipe, os.getpid()))
        self.child.start()
        theirs.close()
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise RuntimeError(
                f"stage {self.stage.name}: its process died while it loaded ({faults.killed(self._end()).reason})"
            ) from None
        if answer is not None:
            self._end()
            _raise(*answer[1:])

    def _end(self) -> int:
        """End the child if it lives; its exit status."""
        assert self.child is not None and self.pipe is not None
        self.pipe.close()
        self.child.join(timeout=0.5)  # it ends by itself when the pipe does
        self.child.kill()
        self.child.join()
        code = self.child.exitcode
        self.child = self.pipe = None
        return code or 0


def _load(stage: Stage, info: DatasetInfo, device: str) -> None:
    """Load the stage onto the device of its execution class. Raises BadNode when this node does not have it."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise BadNode(
                'args.device is "cuda", but this node has no usable GPU; ask for one with resources.gpus_per_node = 1, '
                'or set args.device = "cpu"'
            )
    stage.load(info, device)


def attempt(stage: Stage, rows: list[Row]) -> Outcome:
    """One batch in this process. Raises what is no affair of its rows."""
    try:
        results = stage.process(rows) if rows else []
    except Exception as error:
        if faults.fatal(error) or faults.device_lost(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the batch
        failure = Failure(faults.tombstone(error), faults.out_of_memory(error), error)
    else:
        if len(results) != len(rows):
            raise BrokenStage(f"stage {stage.name} gave {len(results)} results for {len(rows)} rows")
        return results
    faults.free_memory()
    return failure


def _serve(stage: Stage, info: DatasetInfo, device: str, pipe: Connection, theirs: Connection, parent: int) -> None:
    """The child: load, then answer every batch with its outcome until the pipe ends."""
    settle_in(parent)
    theirs.close()
    try:
        _load(stage, info, device)
        pipe.send(None)
        while True:
            pipe.send(_answer(stage, pipe.recv()))
    except (EOFError, BrokenPipeError):
        os._exit(0)
    except Exception as error:
        traceback.print_exc()
        pipe.send(("fatal", type(error).__name__, str(error)))


def _answer(stage: Stage, rows: list[Row]) -> object:
    try:
        outcome = attempt(stage, rows)
    except Exception as error:
        if not faults.device_lost(error):
            raise
        return ("device lost", type(error).__name__, faults.tombstone(error).reason)
    return outcome._replace(error=None) if isinstance(outcome, Failure) else outcome


def _raise(name: str, text: str) -> None:
    for kind in (UserError, BadNode):
        if name == kind.__name__:
            raise kind(text)
    raise RuntimeError(f"{name}: {text}")
