"""Where ranks meet: one store on rank 0, at a port that is this restart's own, and proof that it is the right one.

A rank that outlived a preemption cannot join: it looks into the folder of its own restart, finds that a later one has
begun, and ends. Should it reach the new ranks' store by chance, the store's name is not what it expects.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from contextlib import suppress
from datetime import timedelta
from typing import Protocol

import torch.distributed as dist

from semiocity import ranks
from semiocity.errors import UserError
from semiocity.files import read_json, write_json

TRIES = 20
"""Ports that are tried before giving up."""
LOOK_EVERY_S = 0.2
ANSWER_S = 5
"""A store that has not said its name within this time is none of ours."""
NAME = "semiocity/name"


class World(ranks.Place, Protocol):
    """What a rank needs to know to find the others."""

    @property
    def master_addr(self) -> str: ...
    def port(self, attempt: int) -> int: ...


def meet(world: World, timeout_s: float) -> tuple[dist.Store, int]:
    """The store through which this restart's ranks find one another, and its port. Every rank calls it.

    Raises UserError when there is no free port, or nobody is met within `timeout_s`; Superseded on a rank of the past.
    """
    ranks.refuse_superseded(world)
    name = f"{world.job_id}.{world.restart}"
    if world.rank == 0:
        return _open(world, name, timeout_s)
    return _find(world, name, timeout_s)


def _open(world: World, name: str, timeout_s: float) -> tuple[dist.Store, int]:
    server, port = _listen(world)
    nonce = uuid.uuid4().hex
    store = dist.TCPStore(
        "localhost",
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
        master_listen_fd=server.detach(),
    )
    store.set(NAME, f"{name}/{nonce}")
    if world.folder:
        facts = {"port": port, "nonce": nonce, "host": socket.gethostname(), "time": round(time.time(), 1)}
        write_json(world.folder / ranks.RENDEZVOUS, facts)
    return dist.PrefixStore(nonce, store), port


def _listen(world: World) -> tuple[socket.socket, int]:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    # Without the folder the others would not hear of another port.
    for attempt in range(TRIES if world.folder else 1):
        port = world.port(attempt)
        try:
            # More than the ranks of any job: all of them come at once.
            return socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=4096), port
        except OSError as error:
            reason = error
    raise UserError(
        f"rank 0 on {socket.gethostname()} finds no port to meet the others, the last one was {port}: {reason}"
    )


def _find(world: World, name: str, timeout_s: float) -> tuple[dist.Store, int]:
    end = time.monotonic() + timeout_s
    seen = "rank 0 has not said where to meet"
    while time.monotonic() < end:
        ranks.refuse_superseded(world)
        place = _place(world)
        if place is None:
            time.sleep(LOOK_EVERY_S)
            continue
        port, nonce = place
        try:
            store = dist.TCPStore(world.master_addr, port, wait_for_workers=False, timeout=timedelta(seconds=ANSWER_S))
            its_name, _, its_nonce = store.get(NAME).decode("ascii", "replace").partition("/")
            if its_name == name and nonce in (None, its_nonce):
                store.set_timeout(timedelta(seconds=timeout_s))
                return dist.PrefixStore(its_nonce, store), port
            seen = f"{world.master_addr}:{port} belongs to other ranks"
        except (RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError
            seen = f"{world.master_addr}:{port}: {str(error).splitlines()[0]}"
        time.sleep(LOOK_EVERY_S)
    raise UserError(
        f"rank {world.rank} on {socket.gethostname()} did not meet rank 0 within {timeout_s:.0f} s: {seen}. Can the "
        "nodes reach one another's names and ports 10000 to 19999? network_interface in jobs/cluster.toml may help"
    )


def _place(world: World) -> tuple[int, str | None] | None:
    """Port and name of rank 0's store; None when it has not written them yet.

    Other ports are not tried by guess: a program that listens there and never answers would hold this rank for good.
    """
    if world.folder is None:
        return world.port(0), None
    with suppress(FileNotFoundError, UserError):
        # Opening the folder makes NFS forget that the file was not there a moment ago.
        os.listdir(world.folder)  # noqa: PTH208
        facts = read_json(world.folder / ranks.RENDEZVOUS)
        return facts["port"], facts["nonce"]
    return None
