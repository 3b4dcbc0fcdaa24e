"""Facts about a machine, asked with one shell script: on the login node, and on a compute node before the container
starts, where nothing of ours is installed. Standard library only.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# POSIX sh. Every line it prints is KEY, a tab, VALUE; a key may come several times. A probe that fails prints nothing.
SCRIPT = r"""
say() { printf '%s\t%s\n' "$1" "$2"; }
say host "$(hostname 2>/dev/null)"
say time "$(date +%s)"
if path=$(command -v "$1" 2>/dev/null); then
  say apptainer "$path"
  say apptainer_version "$("$1" --version 2>/dev/null | sed 's/[^0-9]*\([0-9][0-9.]*\).*/\1/')"
  say apptainer_suid "$("$1" buildcfg 2>/dev/null | sed -n 's/^APPTAINER_SUID_INSTALL=//p')"
fi
if command -v enroot >/dev/null 2>&1; then
  say enroot "$(command -v enroot)"
  say enroot_version "$(enroot version 2>/dev/null | head -n 1)"
fi
if command -v srun >/dev/null 2>&1; then
  say pyxis "$(srun --help 2>&1 | grep -q -e --container-image && echo yes || echo no)"
fi
[ -e /dev/fuse ] && say fuse_device "$([ -r /dev/fuse ] && [ -w /dev/fuse ] && echo usable || echo closed)"
for tool in squashfuse squashfuse_ll fusermount fusermount3; do
  command -v $tool >/dev/null 2>&1 && say tool $tool
done
[ -r /proc/sys/user/max_user_namespaces ] && say user_namespaces "$(cat /proc/sys/user/max_user_namespaces)"
if command -v unshare >/dev/null 2>&1; then
  say unshare "$(unshare --user --map-root-user true 2>/dev/null && echo yes || echo no)"
fi
say uid "$(id -u)"
say memlock "$(ulimit -l)"
say shm_kb "$(df -Pk /dev/shm 2>/dev/null | awk 'NR==2 {print $2, $4}')"
for name in /sys/class/net/*; do say interface "${name##*/}"; done
for port in /sys/class/infiniband/*/ports/*/state; do
  [ -r "$port" ] && say infiniband "$(echo "$port" | cut -d/ -f5) $(cat "$port")"
done
if command -v nvidia-smi >/dev/null 2>&1; then
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null |
    while IFS= read -r line; do say gpu "$line"; done
  say cuda_driver "$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9.]*\).*/\1/p')"
fi
shift
for path; do
  if [ -e "$path" ]; then
    say path "$path"
    say space_kb "$(df -Pk "$path" 2>/dev/null | awk 'NR==2 {print $4}') $path"
    say inodes "$(df -Pi "$path" 2>/dev/null | awk 'NR==2 {print $4}') $path"
  else
    say missing "$path"
  fi
done
"""
MANY = ("tool", "interface", "infiniband", "gpu", "path", "space_kb", "inodes", "missing")
"""Keys that may come several times: their facts are lists."""


def command(apptainer: str, paths: Sequence[str | Path], out: Path) -> str:
    """The shell line that writes the facts of the machine it runs on into `out`; it never fails a job."""
    words = ["/bin/sh", "-c", SCRIPT, "probe", apptainer, *map(str, paths)]
    return f"{shlex.join(words)} >{shlex.quote(str(out))} 2>/dev/null || true"


def probe(apptainer: str, paths: Sequence[str | Path], setup: Sequence[str] = ()) -> dict[str, Any]:
    """The facts of this machine, after the site's `setup` lines."""
    lines = [*setup, shlex.join(["/bin/sh", "-c", SCRIPT, "probe", apptainer, *map(str, paths)])]
    done = subprocess.run(["/bin/bash", "-c", "\n".join(lines)], capture_output=True, text=True)
    return parse(done.stdout)


def parse(text: str) -> dict[str, Any]:
    """Key → value, or list of values for the keys in MANY."""
    facts: dict[str, Any] = {key: [] for key in MANY}
    for line in text.splitlines():
        key, tab, value = line.partition("\t")
        if not tab:
            continue  # what a `module load` says
        if key in MANY:
            facts[key].append(value)
        else:
            facts[key] = value
    return facts


def quotas() -> list[str]:
    """Lines of `quota` about file systems where the soft limit is passed; a star marks those. Empty without quotas."""
    try:
        done = subprocess.run(["quota", "-w", "-p"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if "*" in line]


def lustre_quota(path: Path) -> str | None:
    """The line of `lfs quota` for the user on the file system of `path`; None where there is no Lustre."""
    try:
        done = subprocess.run(
            ["lfs", "quota", "-q", "-u", str(os.getuid()), str(path)], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return " ".join(done.stdout.split()) if done.returncode == 0 else None


def try_folder(folder: Path) -> dict[str, Any]:
    """Whether what we rely on works in a folder: writing, exclusive creation, rename over a file, fsync of the folder,
    file locks; and how far the file system's clock is from this machine's."""
    facts: dict[str, Any] = {"folder": str(folder)}
    mine = folder / f".doctor.{os.uname().nodename}.{os.getpid()}"
    other = mine.with_suffix(".new")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.close(os.open(mine, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        facts["write"] = True
        before = time.time()
        other.write_text("x")
        facts["clock_s"] = round(other.stat().st_mtime - before, 1)
        try:
            os.close(os.open(mine, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            facts["exclusive"] = False
        except FileExistsError:
            facts["exclusive"] = True
        other.replace(mine)
        facts["rename"] = mine.read_text() == "x"
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with mine.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                facts["lock"] = True
            except OSError as error:
                facts["lock"] = str(error.strerror)
    except OSError as error:
        facts["error"] = f"{error.strerror}: {error.filename or folder}"
    finally:
        for path in (mine, other):
            with suppress(OSError):
                path.unlink()
    return facts


def versions() -> dict[str, str]:
    """Python and the packages by which tasks are started: submitit and cloudpickle with the local executor alone."""
    import platform
    from importlib import metadata

    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in ("submitit", "cloudpickle", "pydantic"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found
