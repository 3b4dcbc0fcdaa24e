"""`python -m semiocity.launch.entry RUN ATTEMPT INDEX`: one task of an attempt, as an sbatch file starts it.

Three plain words and the run folder are all that a task needs: nothing is pickled, and a person can start one by hand.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

from semiocity.launch import task
from semiocity.launch.compact import compact
from semiocity.launch.runs import Attempt


class Surviving(io.FileIO):
    """A log whose reader may die: SLURM's step daemon takes our output, and what is done without it is kept."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


def survive() -> None:
    """From now on no line of this process's output is an error because nobody reads it any more."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        old.flush()
        raw = io.BufferedWriter(Surviving(number, "w", closefd=False))
        how = {"line_buffering": old.line_buffering, "write_through": old.write_through}
        setattr(sys, name, io.TextIOWrapper(raw, old.encoding, old.errors, **how))


def main(words: list[str]) -> None:
    run, number, index = words
    task.main(run, int(number), int(index))
    attempt = Attempt(Path(run), int(number))
    if int(index) == attempt.read()["merge"]:
        compact(attempt)  # all others have ended


if __name__ == "__main__":
    survive()
    main(sys.argv[1:])
