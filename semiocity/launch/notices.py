"""A notice when a run ends, fails or stops for good: to a webhook, from the task that ends the run. Mail is SLURM's own
(launch.site).

The webhook's URL is a secret: it is read when it is used, from an environment variable or a file, and never written. A
webhook that does not answer is said once in the log, and harms nothing. Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semiocity.launch import causes, ends
from semiocity.launch.findings import Finding, ok, warning

if TYPE_CHECKING:
    from semiocity.config import Notify
    from semiocity.launch.runs import Attempt
    from semiocity.launch.world import World


def settings(notify: Notify) -> dict[str, Any]:
    """What a task needs to know, for attempt.json: where the URL is, not the URL."""
    file = str(notify.webhook_file.expanduser().absolute()) if notify.webhook_file else None
    return {"env": notify.webhook_env, "file": file, "timeout_s": notify.timeout_s}


def binds(notify: Notify) -> tuple[Path, ...]:
    """What the container must see for it. A file that is not there would keep the container from starting."""
    file = notify.webhook_file.expanduser().absolute() if notify.webhook_file else None
    return (file,) if file and file.is_file() else ()


def check(notify: Notify) -> list[Finding]:
    """Whether the places that are to hold the URL do."""
    if notify.webhook_env and not os.environ.get(notify.webhook_env):
        todo = f"export {notify.webhook_env}=… in the shell that submits"
        return [warning("notices", f"{notify.webhook_env} is not set", todo)]
    if notify.webhook_file is None:
        return [ok("notices", f"{notify.webhook_env or notify.mail or 'none'}")]
    file = notify.webhook_file.expanduser()
    try:
        mode = file.stat().st_mode
    except OSError as error:
        return [warning("notices", f"{file}: {error.strerror}", "one line, the URL; or drop notify.webhook_file")]
    if mode & 0o077:
        return [warning("notices", f"{file} can be read by others", f"chmod 600 {file}")]
    return [ok("notices", str(file))]


def url_of(places: Mapping[str, Any]) -> str | None:
    """The URL, from the place that the settings name; None when there is none."""
    if places.get("env"):
        return os.environ.get(places["env"]) or None
    if places.get("file"):
        try:
            return Path(places["file"]).read_text(encoding="utf-8").strip() or None
        except OSError:
            return None
    return None


def message(data: Mapping[str, Any], state: str, reason: str) -> dict[str, Any]:
    """What is sent: `text` is what chat services show, the rest is for programs."""
    run, dataset = Path(data["run"]).name, Path(data["dataset"]).name
    what = data["column"] or data["kind"]
    ending = "is done" if state == "done" else f"failed: {reason}"
    return {
        "text": f"semiocity: {what} of {dataset} ({run}) {ending}",
        "run": run,
        "kind": data["kind"],
        "dataset": dataset,
        "state": state,
        "reason": reason,
    }


def ends_run(data: Mapping[str, Any], index: int, state: str = "failed") -> bool:
    """Whether a task is the one whose end is the run's: the merge behind an array, or a task without companions. A
    pipeline ends with the gate that goes no further; when all goes well, with its last steps, which are runs."""
    if data["kind"] == "pipeline":
        return state == "failed"
    return index == data["merge"] if data["merge"] is not None else len(data["tasks"]) == 1


def failed(
    data: Mapping[str, Any], index: int, attempt: Attempt, world: World, cause: str, reason: str, again: bool
) -> None:
    """Send the notice of a task that failed, unless the job comes back by itself. Of several ranks the one tells whose
    word counts as the cause. `again`: whether it may end otherwise when it is tried again."""
    first = ends.read(ends.end_file(attempt, world.job_id, world.restart))
    if not comes_back(data, index, attempt, world.job_id, cause, again):
        _one_tells(data, index, world, first.get("rank") == str(world.rank), reason)


def stopped(data: Mapping[str, Any], index: int, attempt: Attempt, world: World, cause: str) -> None:
    """Send the notice of a task that saved and leaves before its time, unless the job comes back by itself or a person
    ended it. Call it on every rank."""
    if cause == causes.CANCELLED or attempt.cancelled.exists():
        return
    if not comes_back(data, index, attempt, world.job_id, cause, True):
        reason = f"{causes.WHAT[cause]}, saved, and does not come back by itself; `semiocity retry` goes on with it"
        _one_tells(data, index, world, world.rank == 0, reason)


def hung(data: Mapping[str, Any], index: int, attempt: Attempt, world: World) -> Callable[[str, bool], None]:
    """What the watchdog of a training calls on every rank that hangs, with the reason and whether it may come back: the
    end is noted, for the batch script too, and told if it is the last."""

    def tell(reason: str, again: bool) -> None:
        # No node: the one that speaks need not be the one to blame.
        ends.note(attempt, world.job_id, world.restart, causes.HUNG, reason, "", world.rank, again)
        failed(data, index, attempt, world, causes.HUNG, f"{causes.WHAT[causes.HUNG]}: {reason}", again)

    return tell


def _one_tells(data: Mapping[str, Any], index: int, world: World, mine: bool, reason: str) -> None:
    """Of several ranks one tells, and the others stay until it has: with the first that leaves SLURM ends them all."""
    places = data.get("notify") or {}
    if not ends_run(data, index) or url_of(places) is None:
        return
    told = world.folder / "told" if world.folder is not None and world.size > 1 else None
    if mine:
        try:
            ended(data, index, "failed", reason)
        finally:
            if told is not None:
                with suppress(OSError):
                    told.parent.mkdir(parents=True, exist_ok=True)
                    told.touch()
    elif told is not None:
        end = time.monotonic() + float(places.get("timeout_s", 10)) + 1
        while not told.exists() and time.monotonic() < end:
            time.sleep(0.2)


def comes_back(data: Mapping[str, Any], index: int, attempt: Attempt, job: str, cause: str, again: bool) -> bool:
    """Whether what follows the task (teardown.sh, or `ends.settle` without SLURM) will bring it back."""
    budget = causes.BUDGETS.get(cause)
    if budget is None or not again:
        return False
    # Without SLURM each return of a task is a job of its own.
    names, mine = (
        ("*", f"task={index}\nbudget={budget}\n") if data["executor"] == "local" else (f"{job}.*", f"budget={budget}\n")
    )
    notes = (attempt.folder / "ends").glob(names)
    used = 1 + sum(mine in path.read_text(encoding="utf-8", errors="replace") for path in notes)
    if data["executor"] == "slurm" and not (data.get("cluster") or {}).get("requeue", True):
        return False
    return used <= int((data.get("notify") or {}).get("retries", {}).get(budget, 0))


def ended(data: Mapping[str, Any], index: int, state: str, reason: str = "") -> None:
    """Send the notice of a task's end, if it is the run's end and a webhook is named. Never raises."""
    places = data.get("notify") or {}
    if not ends_run(data, index, state):
        return
    url = url_of(places)
    if url is not None and (data["kind"] != "pipeline" or _first_gate(data)):
        send(url, message(data, state, reason), float(places.get("timeout_s", 10)))


def _first_gate(data: Mapping[str, Any]) -> bool:
    """Whether no other gate of the attempt has told yet: what one lacks, those behind it lack too."""
    try:
        (Path(data["run"]) / "attempts" / f"{data['attempt']:04d}" / "told").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        pass
    return True


def send(url: str, body: Mapping[str, Any], timeout_s: float) -> bool:
    """POST JSON; whether it was taken. What goes wrong is said without the URL."""
    try:
        request = urllib.request.Request(
            url, json.dumps(body).encode(), {"Content-Type": "application/json", "User-Agent": "semiocity"}
        )
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return 200 <= answer.status < 300
    except Exception as error:
        code = f" {error.code}" if isinstance(error, urllib.error.HTTPError) else ""
        print(f"the webhook took no notice: {type(error).__name__}{code}", file=sys.stderr, flush=True)
        return False
