"""A task whose log nobody reads any more, because SLURM's step daemon died, goes on: at a signal and at a print."""

from __future__ import annotations

import os
import subprocess
import sys

SIGNALLED = """
import os, signal, sys
from semiocity.launch.preempt import StopFlag
stop = StopFlag().install()
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGTERM)
os.write(int(sys.argv[1]), str(stop.reason).encode())
"""
PRINTING = """
import os, sys
from semiocity.launch.entry import survive
survive()
sys.stdin.readline()
for step in range(3):
    print("step", step, flush=True)
    print("a warning", file=sys.stderr)
os.write(int(sys.argv[1]), b"all steps")
"""


def said_without_readers(code: str) -> tuple[int, bytes]:
    """Exit status of a program whose output's readers are gone, and what it says another way."""
    ours, theirs = os.pipe()
    program = subprocess.Popen(
        [sys.executable, "-u", "-c", code, str(theirs)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[theirs],
    )  # fmt: skip
    os.close(theirs)
    assert program.stdin and program.stdout and program.stderr
    program.stdout.close()
    program.stderr.close()
    program.stdin.write(b"\n")
    program.stdin.close()
    status = program.wait()
    with os.fdopen(ours, "rb") as file:
        return status, file.read()


def test_a_signal_is_heard_and_raises_nothing() -> None:
    assert said_without_readers(SIGNALLED) == (0, b"SIGTERM")


def test_lines_that_nobody_reads_are_no_error() -> None:
    assert said_without_readers(PRINTING) == (0, b"all steps")
