"""Rows made one after the other in a process of its own, for shards in which an attempt died: the row that ends that
process is named, and a new process goes on behind it.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection

from semiocity.child import settle_in
from semiocity.data.journal import Result
from semiocity.errors import OutOfMemory

ROW_S = 600.0
"""A row that takes longer is taken for hung."""
SETTLE_S = 1.0
"""A job that is killed as a whole may lose the child a moment before us: then nobody is to draw conclusions."""

Make = Callable[[int], Iterable[Result]]
"""From the number of the first row to the results of all rows from there on, one a row."""


def one_by_one(
    make: Make, rows: int, refuse: Callable[[int, str], Result], timeout_s: float = ROW_S
) -> Iterator[Result]:
    """The results of rows 0 to `rows` - 1, made in a child of this process, which must not have touched a GPU.

    `refuse(row, reason)` is the result of a row that ends the child, or takes longer than `timeout_s` seconds. Raises
    what `make` raises, and OutOfMemory for a row whose process was killed from outside (SIGKILL) twice.
    """
    done, spared = 0, False
    while done < rows:
        child = _Child(make, done)
        try:
            while done < rows and (result := child.next(timeout_s)) is not None:
                yield result
                done, spared = done + 1, False
        finally:
            ended = child.end()
        if done == rows:
            return
        if child.hung or ended != "SIGKILL":
            yield refuse(done, child.hung or f"killed its process: {ended}")
            done += 1
        elif spared:
            name = refuse(done, "")[1][0]
            raise OutOfMemory(
                f"{name}: the process that reads it was killed twice (SIGKILL), as for lack of memory; ask for more "
                "resources.mem_gb, or lower image.max_pixels in the recipe"
            )
        else:
            spared = True
            time.sleep(SETTLE_S)


class _Child:
    """A forked process that makes rows from `begin` on."""

    def __init__(self, make: Make, begin: int) -> None:
        fork = multiprocessing.get_context("fork")
        self.hung = ""
        self.pipe, theirs = fork.Pipe(duplex=False)
        self.process = fork.Process(target=_serve, args=(make, begin, theirs, self.pipe, os.getpid()))
        self.process.start()
        theirs.close()

    def next(self, timeout_s: float) -> Result | None:
        """The next row's result; None when the process has died of it, or hangs. Raises what the row's work raises."""
        try:
            if not self.pipe.poll(timeout_s):
                self.hung = f"took longer than {timeout_s:g} s"
                return None
            answer = self.pipe.recv()
        except (EOFError, OSError):
            return None
        if isinstance(answer, BaseException):
            raise answer
        result: Result = answer
        return result

    def end(self) -> str:
        """End it if it lives: the signal's name, or `exit N`."""
        self.pipe.close()
        self.process.join(timeout=0.5)
        self.process.kill()
        self.process.join()
        code = self.process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit {code}"


def _serve(make: Make, begin: int, pipe: Connection, theirs: Connection, parent: int) -> None:
    settle_in(parent)
    theirs.close()
    try:
        for result in make(begin):
            pipe.send(result)
    except BrokenPipeError:
        os._exit(0)  # nobody wants the rest
    except Exception as error:
        traceback.print_exc()
        pipe.send(_portable(error))


def _portable(error: Exception) -> Exception:
    """The error, or its words where it cannot be handed to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
