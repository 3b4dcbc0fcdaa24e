"""Jobs in the queue that wait for a person and not for their turn: what SLURM's reason means, and what to do.

Reasons are squeue's `%r` (SLURM 22.05 to 24.05: `job_reason_string`, and what slurmctld writes in words after a start
that failed). Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from semiocity.launch.squeue import Seen, whole_jobs

RELEASE = "`scontrol release {job}` lets it try again"
ANEW = "`semiocity cancel {run}`, mend that, and submit it again"


class Meaning(NamedTuple):
    """What a reason says."""

    what: str
    todo: str
    """With {job} and {run} to be filled in."""
    stuck: bool = True
    """It never starts by itself; else it does when the site has done something."""


MEANINGS: tuple[tuple[str, Meaning], ...] = (
    (
        r"launch ?failed|env ?retrieval ?failed|prolog",
        Meaning(
            "a node could not start it, and SLURM holds it since",
            f"{RELEASE}; if it is held again, tell the site which node (`scontrol show job {{job}}`)",
        ),
    ),
    (r"requeued in (held|special exit) state|specialexit", Meaning("requeued and held", RELEASE)),
    (
        r"jobheldadmin",
        Meaning(
            "held by an administrator, or by SLURM after starts that failed",
            "`scontrol release {job}` if you may, else ask the site",
        ),
    ),
    (r"jobhelduser", Meaning("held by you (`scontrol hold`)", "`scontrol release {job}`")),
    (r"dependencyneversatisfied", Meaning("what it waits for can never come", "`semiocity cancel {run}`, then again")),
    (r"badconstraints", Meaning("no node has what it asks for", ANEW + "; `semiocity doctor` names what nodes have")),
    (
        r"partitionnodelimit",
        Meaning("it asks for more nodes than its partition gives", "fewer resources.nodes: " + ANEW),
    ),
    (
        r"partitiontimelimit|maxwalldurationperjob",
        Meaning("it asks for more time than it may have", "less resources.timeout_min: " + ANEW),
    ),
    (
        r"(assoc|qos)\w*max\w*(cpu|gres|tres|node|mem)\w*perjob|(assoc|qos)max(cpu|gres|tres|node|mem)\w*perjoblimit",
        Meaning("it asks for more than one job may have", "smaller [resources]: " + ANEW),
    ),
    (
        r"(assoc|qos)grp\w*minutes",
        Meaning("the budget of the account or QoS is used up", "ask the site for more, or another account: " + ANEW),
    ),
    (
        r"invalidaccount|accountnotallowed|invalidqos|qosnotallowed|partitionconfig",
        Meaning("its account, QoS or partition no longer takes it", "mend jobs/cluster.toml: " + ANEW),
    ),
    (r"reservationdeleted", Meaning("its reservation is gone", ANEW)),
    (
        r"partitiondown|partitioninactive",
        Meaning("its partition is down", "it starts when the site opens it again", stuck=False),
    ),
    (
        r"reqnodenotavail|nodedown|nodes required for job are",
        Meaning("its nodes are down or reserved, as for maintenance", "it starts when they are back", stuck=False),
    ),
)
"""Pattern in the reason, in small letters and with spaces → what it means. The first that is found counts."""


class Held(NamedTuple):
    """Jobs that one reason keeps."""

    jobs: tuple[str, ...]
    """`123_4` for tasks of arrays."""
    reason: str
    """SLURM's own words."""
    what: str
    todo: str
    stuck: bool

    def __str__(self) -> str:
        count = f"{len(self.jobs)} tasks wait" if len(self.jobs) > 1 else "1 task waits"
        return f"{count} ({self.reason}): {self.what}; {self.todo}"


def meaning(reason: str) -> Meaning | None:
    """What a reason means, if it is one that a person should know of."""
    words = reason.lower().replace("_", " ")
    return next((meant for pattern, meant in MEANINGS if re.search(pattern, words)), None)


def find(seen: Mapping[str, Seen], run: str, only: Iterable[str] | None = None) -> list[Held]:
    """Those jobs of `run` among `seen` (of these the ids in `only`) that somebody should look after, by reason."""
    wanted = None if only is None else set(only)
    groups: dict[str, list[str]] = {}
    for job, (state, reason) in seen.items():
        if state != "RUNNING" and (wanted is None or job in wanted):
            groups.setdefault("specialexit" if state == "SPECIAL_EXIT" else reason, []).append(job)
    found = []
    for reason, jobs in sorted(groups.items()):
        if (meant := meaning(reason)) is not None:
            todo = meant.todo.format(job=_named(jobs), run=run)
            found.append(Held(tuple(jobs), reason, meant.what, todo, meant.stuck))
    return found


def _named(jobs: Sequence[str]) -> str:
    """For scontrol: one task by its id, several by those of their arrays."""
    return jobs[0] if len(jobs) == 1 else " ".join(whole_jobs(jobs))
