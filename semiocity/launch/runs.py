"""Run folders: what one submission of a job leaves on disk, and the only interface between login node and tasks.

    runs/NAME/
      job.json                  the newest attempt's resolved job
      code/HASH/semiocity/      snapshot of this package; tasks import this and nothing else of ours
      attempts/0001/
        attempt.json            resolved job, site, executor, task map (index -> shards), job ids, code and image
        environment.json        who submitted, where, with which versions
        files/                  copies of what else it was submitted with: prompts, a pipeline's job files
        tasks-00000.sbatch      what was queued, one an array, named by its first task
        tasks/0003.json         what task 3 is doing, written by the task
        packed.json             the same of tasks that are done, once the attempt is over (compact.py)
        gathered.json           the same of tasks that are done, in one file; written by whoever asks for the status
        requeue/JOB.RESTART     "bring this job back", written by rank 0, read by the batch script
        cancelled               there when it was cancelled: nothing of it comes back
        logs/                   one a task; done.log holds those that were packed away

Standard library only: `status` reads these without anything installed.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import semiocity
from semiocity.errors import UserError
from semiocity.files import adopt_folder, read_json, write_json

FORMAT = 1


@dataclass(frozen=True)
class Attempt:
    """One submission inside a run folder."""

    run: Path
    number: int

    @property
    def folder(self) -> Path:
        return self.run / "attempts" / f"{self.number:04d}"

    @property
    def file(self) -> Path:
        return self.folder / "attempt.json"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def requeue(self) -> Path:
        return self.folder / "requeue"

    @property
    def packed(self) -> Path:
        return self.folder / "packed.json"

    @property
    def files(self) -> Path:
        """Copies of the user's files that it was submitted with."""
        return self.folder / "files"

    def sbatch_file(self, first: int) -> Path:
        """The sbatch file of the array whose first task has this index."""
        return self.folder / f"tasks-{first:05d}.sbatch"

    @property
    def gathered(self) -> Path:
        return self.folder / "gathered.json"

    @property
    def cancelled(self) -> Path:
        """There when the attempt was cancelled: nothing of it shall come back."""
        return self.folder / "cancelled"

    @property
    def avoided(self) -> Path:
        """Lines NODE, tab, CAUSE: where a job that was brought back must not run again."""
        return self.folder / "avoided"

    def task_file(self, index: int) -> Path:
        return self.folder / "tasks" / f"{index:04d}.json"

    def requeue_file(self, job_id: str, restart: int) -> Path:
        return self.requeue / f"{job_id}.{restart}"

    def read(self) -> dict[str, Any]:
        """attempt.json; UserError when this is no attempt of a format we know."""
        try:
            data = read_json(self.file)
        except FileNotFoundError:
            raise UserError(
                f"{self.file}: missing; {self.run} is no run folder of ours, or its submission broke off"
            ) from None
        if data.get("format") != FORMAT:
            raise UserError(f"{self.file}: format {data.get('format')}, this version reads {FORMAT}")
        return data

    def write(self, data: dict[str, Any]) -> None:
        write_json(self.file, {"format": FORMAT, **data})


def attempts(run: Path) -> list[Attempt]:
    """All attempts of a run, oldest first."""
    folder = run / "attempts"
    if not folder.is_dir():
        return []
    return [Attempt(run, int(name)) for name in sorted(p.name for p in folder.iterdir()) if name.isdigit()]


def new_attempt(run: Path) -> Attempt:
    """Create the next attempt's folder. Two submissions at once get different numbers (mkdir is atomic)."""
    (run / "attempts").mkdir(parents=True, exist_ok=True)
    number = max((attempt.number for attempt in attempts(run)), default=0) + 1
    while True:
        attempt = Attempt(run, number)
        try:
            attempt.folder.mkdir()
        except FileExistsError:
            number += 1
            continue
        for folder in (attempt.folder / "tasks", attempt.requeue, attempt.logs):
            folder.mkdir()
        return attempt


def all_runs(root: Path) -> list[Path]:
    """Run folders below `root`, by name."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if (path / "attempts").is_dir())


def find_run(name: str, root: Path = Path("runs")) -> Path:
    """The folder of a run, by its name or its path. Raises UserError naming what is near."""
    for folder in (root / name, Path(name)):
        if (folder / "attempts").is_dir():
            return folder.resolve()
    names = [run.name for run in all_runs(root)]
    near = get_close_matches(name, names, n=1)
    there = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names) or 'none'}"
    raise UserError(f"{root / name}: no such run; {there}")


SWEEP = "--"
"""Between the prefix of a sweep and the settings in the names of its runs: PREFIX--lr-0.001--seed-1."""


def find_runs(name: str, root: Path = Path("runs")) -> list[Path]:
    """The folder of a run, or of every run of the sweep with this prefix, by name. Raises UserError as `find_run`."""
    if not (root / name / "attempts").is_dir():
        prefix = name.removesuffix(SWEEP) + SWEEP
        if found := [run.resolve() for run in all_runs(root) if run.name.startswith(prefix)]:
            return found
    return [find_run(name, root)]


def snapshot(run: Path, compiled: bool = False) -> Path:
    """Copy this package into the run folder, once for each state of the code; returns the folder for PYTHONPATH.

    The copy is complete or absent (temporary name, rename), so tasks never import half of it. `compiled` adds Python's
    compiled files: containers see the copy read-only, and each task would compile it anew.
    """
    source = Path(semiocity.__file__).resolve().parent
    files = sorted(
        path
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    )
    state = hashlib.sha256()
    for path in files:
        state.update(f"{path.relative_to(source)}\0{path.stat().st_size}\0".encode())
        state.update(path.read_bytes())
    target = run / "code" / state.hexdigest()[:12]
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".code.", dir=target.parent))
    try:
        for path in files:
            copy = temporary / "semiocity" / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        if compiled:
            _compile(temporary, target)
        adopt_folder(temporary)
        temporary.rename(target)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not target.exists():  # another submission may have been quicker with the same code
            raise
    return target


def _compile(code: Path, target: Path) -> None:
    """Of another Python version, they are ignored. Unchecked, since the copy never changes."""
    import compileall
    from py_compile import PycInvalidationMode

    mode = PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(code, quiet=2, ddir=str(target), invalidation_mode=mode)


def alive(pid: str) -> bool:
    """Whether the local executor's controller `pid` lives: the process exists, and is no other that got its number."""
    try:
        return b"submitit" in Path(f"/proc/{int(pid)}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False


def last_line(log: Path, size: int = 8192) -> str:
    """The last line with something in it of a log; empty when there is none. Reads the end of the file only."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - size))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
