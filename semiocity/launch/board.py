"""TensorBoard on loopback, and the one ssh line that brings it to the user's own screen.

TensorBoard asks nobody for a password, and loopback on a shared login node is open to everyone there. So it gets a
random path prefix: whatever lies outside it is answered 404. It is started inside this process, because a command
line (`tensorboard --path_prefix=…`) can be read by everybody with `ps`.
"""

from __future__ import annotations

import getpass
import secrets
import socket
import time
from pathlib import Path

from semiocity.errors import UserError


def ssh_line(port: int, user: str, host: str) -> str:
    """The command for the user's own machine that forwards `port`."""
    return f"ssh -N -o ExitOnForwardFailure=yes -L {port}:127.0.0.1:{port} {user}@{host}"


def serve(runs: Path, port: int = 0, host: str | None = None) -> tuple[str, str]:
    """Start TensorBoard over every run in `runs` in the background; returns (ssh line, URL). Port 0 lets the system
    choose. Raises UserError when there is nothing to show or TensorBoard is not installed."""
    if not any(runs.glob("*/tb")):
        raise UserError(f"{runs}: no run has TensorBoard events yet; `semiocity train` writes them to runs/NAME/tb")
    try:
        from tensorboard import program
    except ImportError:
        raise UserError("TensorBoard is not installed here: pip install 'semiocity[train]'") from None
    prefix = f"/{secrets.token_urlsafe(16)}"
    board = program.TensorBoard()
    board.configure(logdir=str(runs), host="127.0.0.1", port=port or free_port(), path_prefix=prefix, load_fast="false")
    address = board.launch()
    number = int(address.rstrip("/").split("//")[1].split("/")[0].rpartition(":")[2])
    return ssh_line(number, getpass.getuser(), host or socket.getfqdn()), f"http://127.0.0.1:{number}{prefix}/"


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(runs: Path, port: int, host: str | None) -> int:
    """Serve until interrupted."""
    line, url = serve(runs, port, host)
    print(f"On your own machine:\n  {line}\nthen open\n  {url}\nCtrl-C ends it.", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return 0
