"""TensorBoard on loopback, behind a random path prefix (`loopback.py`).

Trainings write their own events; the curves of arrays are written here, while it serves (`throughput.py`). It is
started inside this process, because a command line (`tensorboard --path_prefix=…`) can be read by everybody
with `ps`.
"""

from __future__ import annotations

import time
from pathlib import Path

from semiocity.errors import UserError
from semiocity.launch import loopback
from semiocity.launch.throughput import record_all

EVERY_S = 15.0
"""Between two looks at the arrays."""


def serve(runs: Path, port: int = 0, host: str | None = None) -> tuple[str, str]:
    """Start TensorBoard over every run in `runs` in the background; returns (ssh line, URL). Port 0 lets the system
    choose. Raises UserError when there is nothing to show or TensorBoard is not installed."""
    record_all(runs)
    if not any(runs.glob("*/tb")):
        raise UserError(f"{runs}: no run has anything to show yet: nothing was packed, made or trained")
    try:
        from tensorboard import program
    except ImportError:
        raise UserError("TensorBoard is not installed here: pip install 'semiocity[train]'") from None
    prefix = loopback.secret_prefix()
    board = program.TensorBoard()
    board.configure(
        logdir=str(runs),
        host=loopback.HOST,
        port=port or loopback.free_port(),
        path_prefix=prefix,
        load_fast="false",
    )
    launched = board.launch()
    number = int(launched.rstrip("/").split("//")[1].split("/")[0].rpartition(":")[2])
    return loopback.own_ssh_line(number, host), loopback.address(number, prefix)


def run(runs: Path, port: int, host: str | None) -> int:
    """Serve until interrupted."""
    print(loopback.announcement(*serve(runs, port, host)), flush=True)
    try:
        while True:
            time.sleep(EVERY_S)
            record_all(runs)
    except KeyboardInterrupt:
        return 0
