"""The stop flag: signals only set it; the work looks at it between units and saves by itself."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType

REQUEUE_EXIT = 85
"""Exit code of a task that saved and wants to come back. A hint only: the requeue file decides."""

# USR2 comes before the time limit (`--signal`), TERM with a preemption or scancel, INT from a terminal.
SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class StopFlag:
    """Callable that says whether this process was asked to stop. Signals may come several times."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """Name of the first signal, such as SIGTERM; None while nobody asked."""

    def install(self) -> StopFlag:
        """Take over the signals that mean "save and stop". Only in a task's main thread."""
        for number in SIGNALS:
            signal.signal(number, self._set)
        return self

    def _set(self, number: int, _frame: FrameType | None) -> None:
        if self.reason is None:
            self.reason = signal.Signals(number).name
            # Nothing may be raised here: it would look like an error of whatever the process is at. A print might be in
            # the middle of another, and the log's reader may be gone.
            with suppress(OSError):
                os.write(2, f"{self.reason}: finishing the unit of work at hand, then saving\n".encode())

    def __call__(self) -> bool:
        return self.reason is not None
