"""The time limit: what watches for it in the batch script, and whether a job's notice ahead of it suffices.

Standard library only.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semiocity.errors import UserError
from semiocity.files import read_json
from semiocity.launch.compact import packed_states
from semiocity.launch.runs import Attempt, attempts

if TYPE_CHECKING:
    from semiocity.launch.jobs import Work

STOP = 'kill -USR1 "$limit" 2>/dev/null'
"""Shell line after srun: nobody need watch any more."""
RECENT, ENOUGH = 3, 32
"""Attempts of a run, and tasks of an attempt, that are looked at."""


def watch(attempt: Attempt, code: Path, index: str, retries: Mapping[str, int], come_back: bool) -> list[str]:
    """Shell lines before srun; `index` is the task's, as the shell reads it.

    The batch script must outlive the TERM that comes with the limit; of another TERM (scancel, a requeue by somebody
    else) teardown.sh sees to it that nothing comes. A trap that does something, unlike one that ignores, is not handed
    on to srun.
    """
    script = code / "semiocity" / "launch" / "limit.sh"
    budgets = " ".join(f"{name}={times}" for name, times in retries.items())
    words = shlex.join([str(script), str(attempt.folder)])
    return [
        "trap 'export SEMIOCITY_TOLD=yes' TERM",
        f"bash {words} $$ {index} {'yes' if come_back else 'no'} {budgets} &",
        "limit=$!",
    ]


# ---------------------------------------------------------------- is the notice long enough?


def warning(work: Work) -> str | None:
    """What to say where a unit of work takes longer than the notice that the job gets ahead of its time limit."""
    found = unit_s(work)
    delay_s = work.resources.signal_delay_s
    if found is None or found[1] <= delay_s:
        return None
    what, seconds = found
    return (
        f"time limit: {what} took {seconds:.0f} s, but resources.signal_delay_s = {delay_s}: at the limit the work "
        f"since the last {'checkpoint' if work.kind == 'train' else 'batch'} may be lost; "
        f"--set resources.signal_delay_s={_rounded(1.5 * seconds)}"
    )


def _rounded(seconds: float) -> int:
    return int(-(-seconds // 60) * 60)


def unit_s(work: Work) -> tuple[str, float] | None:
    """What a stopped task finishes before it leaves, and the seconds that took lately; None where nothing tells."""
    if work.kind == "train":
        return _training(work)
    if work.kind == "stage":
        return _batch(work)
    return None


def _training(work: Work) -> tuple[str, float] | None:
    """A step, and what is known of saving: a checkpoint's files are written between the first one's last byte and the
    moment when `latest` names it, and somewhat before."""
    try:
        speed = read_json(work.run / "progress.json").get("samples_per_s")
    except (FileNotFoundError, UserError):
        return None
    if not speed:
        return None
    step_s, save_s = work.job["global_batch"] / speed, 0.0
    latest = work.run / "checkpoints" / "latest"
    with suppress(OSError, ValueError):
        folder = latest.parent / latest.read_text().strip()
        save_s = latest.stat().st_mtime - min(path.stat().st_mtime for path in folder.iterdir())
    return ("a step with its checkpoint", step_s + max(save_s, 0.0))


def _batch(work: Work) -> tuple[str, float] | None:
    """The slowest batch that tasks of the newest attempts told of."""
    batch = work.job["args"].get("batch", 1)
    for attempt in reversed(attempts(work.run)[-RECENT:]):
        speeds = [facts["rows_per_s"] for facts in _told(attempt) if facts.get("rows_per_s")]
        if speeds:
            return (f"a batch of {batch}", batch / min(speeds))
    return None


def _told(attempt: Attempt) -> list[dict[str, Any]]:
    found = list(packed_states(attempt).values())[:ENOUGH]
    with suppress(OSError):
        for path in sorted((attempt.folder / "tasks").iterdir())[: ENOUGH - len(found)]:
            with suppress(OSError, UserError):
                found.append(read_json(path))
    return found
