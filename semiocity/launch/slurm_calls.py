"""A call of one of SLURM's commands. Standard library only."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from semiocity.errors import UserError


def call(argv: Sequence[str]) -> str:
    """The command's output; UserError with its own words when it fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{argv[0]}: {error}") from None
    if done.returncode != 0:
        raise UserError(f"{argv[0]}: {done.stderr.strip()}")
    return done.stdout
