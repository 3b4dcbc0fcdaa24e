"""For processes that are forked to do what may kill them. Standard library only."""

from __future__ import annotations

import ctypes
import os
import signal

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def settle_in(parent: int) -> None:
    """In a child that `parent` (a process id) has just forked: end with it, and leave its signals to it.

    SLURM signals every process of a step; the parent decides what to make of it.
    """
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
