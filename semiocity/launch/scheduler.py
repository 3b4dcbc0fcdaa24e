"""Calls of SLURM's commands that are polite to a busy controller. Standard library only.

A controller under load refuses for some seconds, in words of its own. Such calls are made again after a pause that
doubles and is spread at random, so that a hundred users who were refused together do not come back together. A limit of
the site is no load: waiting would not help, and the caller decides.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from semiocity.errors import UserError

TRANSIENT = re.compile(
    "Socket timed out|Unable to contact slurm controller|Resource temporarily unavailable|"
    "Zero Bytes were transmitted|temporarily unable to accept job|Connection refused|Connection reset by peer"
)
"""What SLURM's commands say when the controller is busy or just being restarted."""

LIMIT = re.compile(r"(?:QOS|Assoc)\w*Submit\w*Limit")
"""What sbatch says when somebody has as many jobs in the queue as the site allows."""

PATIENCE_S = 600.0
CALL_S = 120.0
"""SLURM's commands give up by themselves within MessageTimeout, some tens of seconds."""


class Busy(UserError):
    """The controller did not answer for as long as we were willing to ask."""


class Full(UserError):
    """The site allows this user no more jobs in the queue."""


def call(
    argv: Sequence[str],
    text: str | None = None,
    *,
    patience_s: float = PATIENCE_S,
    unsure: Callable[[], str | None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """The output of one of SLURM's commands, `text` on its standard input. A busy controller is asked again.

    `unsure` is asked before a command is repeated: a request that timed out may have been carried out all the same, and
    then it returns what the command would have printed.

    Raises Full at the site's limit of submitted jobs, Busy when `patience_s` seconds were not enough, and UserError
    with the command's own words for every other refusal.
    """
    if shutil.which(argv[0]) is None:
        raise UserError(f"{argv[0]}: not found on this machine's PATH; is this a login node of the cluster?")
    waited, tries = 0.0, 0
    while True:
        words = _try(argv, text)
        if isinstance(words, str):
            return words
        fault = words[0]
        if LIMIT.search(fault):
            raise Full(f"{argv[0]}: {fault}")
        if not TRANSIENT.search(fault):
            raise UserError(f"{argv[0]}: {fault}")
        if unsure is not None and (done := unsure()) is not None:
            return done
        if waited >= patience_s:
            raise Busy(f"{argv[0]}: the controller did not answer for {waited:.0f} s: {fault}")
        pause_s = pause(tries)
        print(f"{argv[0]}: {_last(fault)}; asking again in {pause_s:.0f} s", file=sys.stderr, flush=True)
        sleep(pause_s)
        waited += pause_s
        tries += 1


def pause(tries: int) -> float:
    """Seconds before the next try: 2, 4, 8, … up to 60, each spread over half of itself at random."""
    return min(60.0, 2.0 * 2**tries) * random.uniform(0.75, 1.25)


def _try(argv: Sequence[str], text: str | None) -> str | tuple[str]:
    """What the command printed, or a tuple of its complaint."""
    try:
        done = subprocess.run(argv, input=text or "", capture_output=True, text=True, timeout=CALL_S)
    except subprocess.TimeoutExpired:
        return (f"Socket timed out: no answer within {CALL_S:.0f} s",)
    except OSError as error:
        return (str(error),)
    if done.returncode == 0:
        return done.stdout
    lines = [re.sub(r"^\w+: (error: )?", "", line) for line in done.stderr.strip().splitlines() if line.strip()]
    return ("; ".join(lines) or f"failed with status {done.returncode}",)


def _last(fault: str) -> str:
    return fault.rpartition("; ")[2]


# ---------------------------------------------------------------- questions


def max_array(patience_s: float = PATIENCE_S) -> int:
    """The cluster's MaxArraySize, one more than the largest index; SLURM's own default where it cannot be learnt."""
    try:
        found = re.search(r"MaxArraySize\s*=\s*(\d+)", call(["scontrol", "show", "config"], patience_s=patience_s))
    except UserError:
        found = None
    return int(found[1]) if found and int(found[1]) > 1 else 1001


def refusal(script: str, patience_s: float = PATIENCE_S) -> str | None:
    """Why the cluster would refuse this sbatch file, in sbatch's own words; None when it would take it.

    Nothing is queued. A limit of submitted jobs is no refusal: it is a matter of how many at a time.
    """
    try:
        call(["sbatch", "--test-only"], script, patience_s=patience_s)
    except (Full, Busy):
        return None
    except UserError as error:
        return str(error).removeprefix("sbatch: ")
    return None
