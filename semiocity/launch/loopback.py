"""Pages on loopback, and the one ssh line that brings them to the user's own screen. Standard library only.

Loopback on a shared login node is open to everyone who is logged in there. So whatever is served gets a random path
prefix, and all that lies outside it is answered 404. The prefix appears on the user's terminal, never in a command
line, which everybody could read with `ps`.
"""

from __future__ import annotations

import getpass
import secrets
import socket

HOST = "127.0.0.1"


def secret_prefix() -> str:
    """A path prefix that nobody guesses: a slash and 22 random characters."""
    return f"/{secrets.token_urlsafe(16)}"


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def ssh_line(port: int, user: str, host: str) -> str:
    """The command for the user's own machine that forwards `port`."""
    return f"ssh -N -o ExitOnForwardFailure=yes -L {port}:{HOST}:{port} {user}@{host}"


def own_ssh_line(port: int, host: str | None = None) -> str:
    """`ssh_line` for the present user; `host` is this machine's name as seen from outside, where it differs."""
    return ssh_line(port, getpass.getuser(), host or socket.getfqdn())


def address(port: int, prefix: str) -> str:
    """The URL behind a prefix."""
    return f"http://{HOST}:{port}{prefix}/"


def announcement(line: str, url: str) -> str:
    """What the terminal says: how to get there, and how to end it."""
    return f"On your own machine:\n  {line}\nthen open\n  {url}\nCtrl-C ends it."
