"""How much memory this machine has left for us: what the kernel says, or what SLURM or a container allows if that is
less."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MEMINFO = Path("/proc/meminfo")
OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")


class _Files(NamedTuple):
    """How a version of control groups names what it knows of memory."""

    limit: str
    usage: str
    cached: str
    """In memory.stat: pages of files that are given up when memory is short."""


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def available_bytes() -> int:
    """Bytes that can still be had here. All processes of a job on this machine share them."""
    free = next(
        int(line.split()[1]) * 1024
        for line in MEMINFO.read_text(encoding="ascii").splitlines()
        if line.startswith("MemAvailable:")
    )
    return max(0, min([free, *_left_in_groups()]))


def _left_in_groups() -> list[int]:
    """Bytes below the limit of each control group that this process is in, and of those around them."""
    left = []
    with suppress(OSError):
        for line in OWN_GROUPS.read_text(encoding="ascii").splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                root, files = GROUPS, _V2
            elif "memory" in controllers.split(","):
                root, files = GROUPS / "memory", _V1
            else:
                continue
            inner = root / path.lstrip("/")
            for folder in (inner, *inner.parents):
                if not folder.is_relative_to(root):
                    break
                with suppress(OSError, ValueError):  # no limit: "max", or no such file
                    left.append(_left(folder, files))
    return left


def _left(folder: Path, files: _Files) -> int:
    limit = int((folder / files.limit).read_text(encoding="ascii"))
    used = int((folder / files.usage).read_text(encoding="ascii"))
    for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(" ")
        if name == files.cached:
            used -= int(value)
    return limit - used
