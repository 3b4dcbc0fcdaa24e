"""What an exception in a stage says: of a row, of the memory, or of the installation."""

from __future__ import annotations

import re
import signal
import sys

from semiocity.errors import UserError
from semiocity.stages.base import BadRow, BrokenStage, Tombstone

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
LONGEST_REASON = 200
OUT_OF_MEMORY = "out of memory"
KILLED = "killed its process"
"""How the reason of a row begins that nothing but its own process survived."""
HUNG = "took longer than"

_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}


def fatal(error: Exception) -> bool:
    """Whether it is no affair of one row: a faulty installation or stage."""
    return isinstance(error, (UserError, ImportError, NotImplementedError, BrokenStage))


def device_lost(error: Exception) -> bool:
    """Whether this process can do nothing on its GPU any more, whatever row it takes."""
    return str(error).startswith("CUDA error") and not out_of_memory(error)


def out_of_memory(error: Exception) -> bool:
    """Whether the host's or the GPU's memory did not suffice."""
    # By name, since torch may not be installed where stages without weights run.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def tombstone(error: Exception) -> Tombstone:
    """What stands for a row that raises this when it is alone. The same input gives the same words."""
    if out_of_memory(error):  # its message has numbers that differ from time to time
        return Tombstone("retry", OUT_OF_MEMORY)
    text = ADDRESS.sub("", " ".join(str(error).split()))[:LONGEST_REASON]
    if isinstance(error, BadRow):
        return Tombstone("permanent", text)
    kind = "retry" if isinstance(error, OSError) else "permanent"
    return Tombstone(kind, f"{type(error).__name__}: {text}")  # type: ignore[arg-type]


def killed(code: int) -> Tombstone:
    """What stands for a row that ends its process: `code` is an exit status, negative for a signal."""
    if code >= 0:
        return Tombstone("permanent", f"{KILLED}: exit {code}")
    name = signal.Signals(-code).name
    if -code in _CRASHES:
        return Tombstone("permanent", f"{KILLED}: {name}")
    return Tombstone("retry", f"{KILLED}: {name}" + (f" ({OUT_OF_MEMORY}?)" if -code == signal.SIGKILL else ""))


def hung(timeout_s: float) -> Tombstone:
    """What stands for a row that takes longer, alone, than a batch may."""
    return Tombstone("retry", f"{HUNG} {timeout_s:g} s (args.batch_timeout_s)")


def free_memory() -> None:
    """Give back what the GPU's allocator keeps."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
