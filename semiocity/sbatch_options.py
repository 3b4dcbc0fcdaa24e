"""Which sbatch options a site file may not set for all jobs, since a key of its own or the job decides them.

sbatch takes the last word it is given: an option said twice would silently replace what was computed. Standard library
only.
"""

from __future__ import annotations

import re

_SUBMISSION = "the submission"
_RANKS = "the job's resources.ranks_per_node"
_DECIDED = {
    **{name: f"the key {name} of this file" for name in ("partition", "account", "qos", "constraint", "requeue")},
    "no-requeue": "the key requeue of this file",
    "time": "the job's resources.timeout_min",
    "nodes": "the job's resources.nodes",
    "ntasks": _RANKS,
    "ntasks-per-node": _RANKS,
    "tasks-per-node": _RANKS,
    "ntasks-per-gpu": _RANKS,
    "cpus-per-task": "the job's resources.cpus_per_rank",
    "cpus-per-gpu": "the job's resources.cpus_per_rank",
    "signal": "the job's resources.signal_delay_s",
    "mail-user": "notify.mail",
    **dict.fromkeys(("array", "chdir", "dependency", "error", "job-name", "open-mode", "output"), _SUBMISSION),
    **dict.fromkeys(("parsable", "test-only", "wait", "wrap"), _SUBMISSION),
}
MERGED = {"exclude": '"n13,n[20-22]"', "gres": '"nvme:1"'}
"""Options that are added to what a submission asks for by itself (semiocity.launch.site), with an example."""
_OF_MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")
_OF_GPUS = ("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket")
_GPU = re.compile(r"(?:^|,)(?:gres[/:])?gpu\b")


def refused(name: str, value: str | int | bool, *, exclusive: bool, mail: bool, gpus: bool, memory: bool) -> str | None:
    """Why an option, by its long name with dashes, must not stand in `[sbatch]`; None when it may.

    `exclusive` and `mail`: whether the site file's own keys say something. `gpus` and `memory`: whether jobs ask for
    them; where they do not, the site file may.
    """
    key, instead = _DECIDED.get(name), ""
    if name == "exclusive" and (exclusive or value is True):
        key = "the key exclusive of this file"
    elif name == "mail-type" and mail:
        key = "notify.mail_on"
    elif name in _OF_MEMORY and memory:
        key, instead = "the job's resources.mem_gb", 'memory_option = "none"'
    elif gpus and (name in _OF_GPUS or (name == "gres" and _GPU.search(str(value)))):
        key, instead = "the job's resources.gpus_per_node", 'gpu_option = "none"'
    if key:
        return f"{key} decides that; say it there" + (f", or {instead} where jobs must not ask" if instead else "")
    if name in MERGED and not (isinstance(value, str) and value):
        return f"expected a list such as {MERGED[name]} (got {value!r})"
    return None
