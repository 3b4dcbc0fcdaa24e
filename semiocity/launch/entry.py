"""`python -m semiocity.launch.entry RUN ATTEMPT INDEX`: one task of an attempt, as an sbatch file starts it.

Three plain words and the run folder are all that a task needs: nothing is pickled, and a person can start one by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

from semiocity.launch import task
from semiocity.launch.compact import compact
from semiocity.launch.runs import Attempt


def main(words: list[str]) -> None:
    run, number, index = words
    task.main(run, int(number), int(index))
    attempt = Attempt(Path(run), int(number))
    if int(index) == attempt.read()["merge"]:
        compact(attempt)  # all others have ended


if __name__ == "__main__":
    main(sys.argv[1:])
