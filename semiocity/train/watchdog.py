"""A thread in every rank that notices when training stands still, says where, and ends the rank.

A collective in which one rank does not take part blocks all others inside C code, where no Python runs but this thread.
It measures the time since the last step against the median step. When that is exceeded, every rank that can dumps
its stacks, asks for the job to be brought back, and exits: the job goes on from its newest checkpoint.
"""

from __future__ import annotations

import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from semiocity import ranks
from semiocity.train.options import HangOptions

REQUEUE_EXIT = 85
"""As in semiocity.launch.preempt: saved or not, this job wants to come back."""
STEPS_TO_LEARN = 3
"""Steps before the median says anything; the first ones compile."""
GRACE_S = 10.0
"""How long ranks wait for one another to dump their stacks; and after another rank's failure, to fail by themselves."""
POLL_S = 1.0
IDLE_S = 5.0
"""Without a step for so long a rank looks whether the others are still there."""


class Watchdog:
    """Watches this rank between `__enter__` and `__exit__`. Call `beat` after every step.

    `told` hears why the rank ends and whether the job may come back, on every rank that hangs.
    """

    def __init__(
        self, place: ranks.Place, options: HangOptions, told: Callable[[str, bool], None] | None = None
    ) -> None:
        self.place, self.options, self.told = place, options, told
        self._steps_s: deque[float] = deque(maxlen=101)
        self._last = time.monotonic()
        self._paused: list[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self.place.folder is not None and self.options.times > 0:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self) -> None:
        """A step is done."""
        now = time.monotonic()
        self._steps_s.append(now - self._last)
        self._last = now

    @contextmanager
    def paused(self, why: str) -> Iterator[None]:
        """Within, no step is expected: saving, sampling, compiling. It does not count as time of a step."""
        began = time.monotonic()
        self._paused.append(why)
        try:
            yield
        finally:
            self._last += time.monotonic() - began
            self._paused.pop()

    @property
    def limit_s(self) -> float | None:
        """Seconds without a step that count as hung; None while too few steps are known."""
        if len(self._steps_s) < STEPS_TO_LEARN:
            return None
        return max(self.options.times * statistics.median(self._steps_s), self.options.at_least_s)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        looked = 0.0
        while not self._end.wait(POLL_S):
            idle = time.monotonic() - self._last
            limit = self.limit_s
            if limit is not None and idle > limit and not self._paused:
                self._hung(idle, limit)
            if idle - looked > IDLE_S or idle < looked:
                looked = idle if idle > IDLE_S else 0.0
                if looked and (gone := self._somebody_gone()):
                    self._follow(gone)

    def _hung(self, idle: float, limit: float) -> None:
        say(f"rank {self.place.rank}: no step for {idle:.0f} s (limit {limit:.0f} s): hung; dumping stacks")
        self.report_hang(f"no step for {idle:.0f} s, the limit is {limit:.0f} s")

    def report_hang(self, reason: str) -> None:
        """Dump this rank's stacks, wait for the others to do so, ask for the job to come back, and exit. For good."""
        folder = self.place.folder
        assert folder is not None
        with suppress(OSError):  # a full disk must not keep a hung rank alive
            folder.mkdir(parents=True, exist_ok=True)
            with ranks.stacks_file(folder, self.place.rank).open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            ranks.write(self.place, "hung", reason, where=_where())
        self._wait_for_the_others(folder)
        again = self._within_budget(folder)
        if again:
            with suppress(OSError):
                # Any rank may ask: rank 0 may be the one that is stuck.
                asked = folder.parents[1] / "requeue" / f"{self.place.job_id}.{self.place.restart}"
                asked.write_text("hung\n", encoding="ascii")  # the batch script takes it off the budget retries.hung
            say(f"rank {self.place.rank}: ending; the job comes back from its newest checkpoint")
        else:
            say(f"rank {self.place.rank}: ending for good: the job hung {self.options.requeues} times before")
        if self.told is not None:
            with suppress(Exception):  # nothing may keep a hung rank alive
                self.told(reason, again)
        self._kill_neighbours(folder)
        _exit(REQUEUE_EXIT)

    def _wait_for_the_others(self, folder: Path) -> None:
        end = time.monotonic() + GRACE_S
        while time.monotonic() < end:
            records = ranks.read(folder)
            if self.place.size == 1 or all(
                records.get(rank, {}).get("state", "running") != "running" for rank in range(self.place.size)
            ):
                return
            time.sleep(0.2)

    def _within_budget(self, folder: Path) -> bool:
        before = 0
        for _, restart, other in ranks.restarts(folder.parents[1], self.place.job_id):
            if restart < self.place.restart:
                before += any(record["state"] == "hung" for record in ranks.read(other).values())
        return before < self.options.requeues

    def _kill_neighbours(self, folder: Path) -> None:
        """End this machine's ranks that cannot do so by themselves: not every launcher does."""
        for rank, record in ranks.read(folder).items():
            if rank != self.place.rank:
                ranks.kill(record)

    def _somebody_gone(self) -> str | None:
        """Another rank that failed or was killed while this one waits for it."""
        assert self.place.folder is not None
        for rank, record in ranks.read(self.place.folder).items():
            if rank == self.place.rank:
                continue
            if record["state"] == "failed" and time.time() - record["time"] > GRACE_S:
                return f"rank {rank} on {record['host']} failed"
            if ranks.ended(record):
                return f"rank {rank} on this machine is gone"
        return None

    def _follow(self, gone: str) -> None:
        """Exit because of another rank. Some transports do not notice a dead peer for half an hour."""
        say(f"rank {self.place.rank}: {gone}; ending")
        with suppress(OSError):
            ranks.write(self.place, "follower", gone)
        _exit(1)


def _where() -> str:
    """Function, file and line at which the main thread is."""
    main = threading.main_thread().ident
    frame: Any = sys._current_frames().get(main) if main is not None else None
    while frame is not None and "semiocity" not in frame.f_code.co_filename:
        frame = frame.f_back  # what of ours called into a library
    if frame is None:
        return "a library"
    return f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
