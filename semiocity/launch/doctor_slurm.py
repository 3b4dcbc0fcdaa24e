"""Findings about SLURM: what its controller says (`ask`), and pure functions from those facts to findings."""

from __future__ import annotations

import fnmatch
import getpass
import grp
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from semiocity.config import Cluster, Resources
from semiocity.launch.findings import Finding, fault, ok, warning

Facts = Mapping[str, Any]
PROGRAMS = ("sbatch", "squeue", "scontrol", "scancel", "sinfo")


def ask() -> dict[str, Any]:
    """Everything the checks want, in five calls: {"missing" programs} or {"error"} when the controller does not answer,
    else {"config": key → value, "partitions": [key → value], "nodes": [...], "limits": [...] | None}.

    `limits` are the user's associations and their QoS; None without accounting.
    """
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return {"missing": missing}
    code, out, error = _call("scontrol", "show", "config")
    if code:
        return {"missing": [], "error": error.strip() or out.strip()}
    facts: dict[str, Any] = {"missing": [], "user": getpass.getuser(), "groups": _groups(), "config": _config(out)}
    facts["partitions"] = [
        _pairs(line) for line in _call("scontrol", "show", "partition", "--oneliner")[1].splitlines()
    ]
    lines = _call("sinfo", "--noheader", "--Node", "--format=%N|%P|%c|%m|%G|%f|%T")[1].splitlines()
    names = ("name", "partition", "cpus", "memory_mb", "gres", "features", "state")
    facts["nodes"] = [dict(zip(names, line.split("|"))) for line in lines if line.count("|") == 6]
    facts["limits"] = _limits()
    return facts


def _call(*argv: str) -> tuple[int, str, str]:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return done.returncode, done.stdout, done.stderr


def _config(text: str) -> dict[str, str]:
    pairs = (re.match(r"(\w+)\s*=\s*(.*)", line) for line in text.splitlines())
    return {match[1]: match[2].strip() for match in pairs if match}


def _pairs(line: str) -> dict[str, str]:
    return {name: value for name, mark, value in (word.partition("=") for word in line.split()) if mark}


def _groups() -> list[str]:
    found = []
    for number in os.getgroups():
        try:
            found.append(grp.getgrgid(number).gr_name)
        except KeyError:
            continue
    return found


def _limits() -> list[dict[str, str]] | None:
    if shutil.which("sacctmgr") is None:
        return None
    fields = "Account,Partition,QOS,DefaultQOS,MaxSubmitJobs,MaxJobs"
    user = getpass.getuser()
    code, out, _ = _call("sacctmgr", "-nP", "show", "assoc", f"user={user}", f"format={fields}")
    if code or "disabled" in out:
        return None
    names = ("account", "partition", "qos", "default_qos", "max_submit", "max_jobs")
    rows = [dict(zip(names, line.split("|"))) for line in out.splitlines() if "|" in line]
    code, out, _ = _call("sacctmgr", "-nP", "show", "qos", "format=Name,MaxSubmitJobsPerUser")
    per_user = dict(line.split("|")[:2] for line in out.splitlines() if "|" in line) if not code else {}
    for row in rows:
        row["qos_max_submit"] = per_user.get(row["default_qos"] or row["qos"].split(",")[0], "")
    return rows


# ---------------------------------------------------------------- findings


def answers(facts: Facts) -> Finding:
    """SLURM's commands are here and its controller answers."""
    if facts["missing"]:
        return fault(
            "SLURM", f"no {', '.join(facts['missing'])} on PATH", "log in to a login node, or load SLURM's module first"
        )
    if "error" in facts:
        return fault("SLURM", f"the controller does not answer: {facts['error']}", "try again in some minutes")
    config = facts["config"]
    return ok("SLURM", f"{config.get('SLURM_VERSION', '')}, cluster {config.get('ClusterName', '?')}")


def array(config: Mapping[str, str], cluster: Cluster) -> Finding:
    """MaxArraySize against max_array."""
    there = int(config.get("MaxArraySize", "0") or 0)
    if there and cluster.max_array and cluster.max_array > there:
        return fault(
            "arrays", f"max_array is {cluster.max_array}, the cluster's MaxArraySize {there}", f"max_array = {there}"
        )
    return ok("arrays", f"up to {(cluster.max_array or there) - 1} tasks in one; MaxArraySize {there}")


def submitted(facts: Facts, cluster: Cluster) -> Finding:
    """How many jobs may be queued: the controller's MaxJobCount, and the user's own limits where there are some."""
    rows = facts.get("limits") or []
    own = [int(row[key]) for row in rows for key in ("max_submit", "qos_max_submit") if row.get(key, "").isdigit()]
    everybody = int(facts["config"].get("MaxJobCount", "0") or 0)
    least = min([*own, *([everybody] if everybody else [])], default=0)
    said = f"MaxJobCount {everybody}" + (f", yours {min(own)}" if own else "")
    if cluster.max_submitted is not None and least and cluster.max_submitted > least:
        return fault("queued jobs", f"max_submitted is {cluster.max_submitted}; {said}", f"max_submitted = {least}")
    if own and cluster.max_submitted is None:
        return warning("queued jobs", said, f"max_submitted = {min(own)}, so that arrays are sent in portions")
    return ok("queued jobs", said)


def partition(facts: Facts, name: str | None, account: str | None, qos: str | None) -> list[Finding]:
    """The partition exists, is up, and takes this user, account and QoS. None means the default."""
    there = {p["PartitionName"]: p for p in facts["partitions"] if "PartitionName" in p}
    if name is None:
        default = [p for p, facts_ in there.items() if facts_.get("Default") == "YES"]
        if not default:
            return [fault("partition", "none is named, and the cluster has no default", _one_of(there))]
        name = default[0]
    if name not in there:
        return [fault("partition", f"{name}: no such partition", _one_of(there))]
    found, facts_ = [], there[name]
    if facts_.get("State", "UP") != "UP":
        found.append(fault("partition", f"{name} is {facts_['State']}", "wait, or take another: " + _one_of(there)))
    for key, mine, what in (
        ("AllowAccounts", [account] if account else None, f"account {account}"),
        ("AllowQos", [qos] if qos else None, f"QoS {qos}"),
        ("AllowGroups", facts.get("groups", []), "your groups"),
    ):
        allowed = facts_.get(key, "ALL")
        if allowed != "ALL" and mine is not None and not set(mine) & set(allowed.split(",")):
            found.append(
                fault("partition", f"{name} does not take {what}, only {allowed}", "ask the site, or change it")
            )
    for key, mine_, what in (("DenyAccounts", account, "account"), ("DenyQos", qos, "QoS")):
        if mine_ and mine_ in facts_.get(key, "").split(","):
            found.append(fault("partition", f"{name} refuses {what} {mine_}", "take another one"))
    if found:
        return found
    return [ok("partition", f"{name}: {facts_.get('TotalNodes', '?')} nodes, at most {facts_.get('MaxTime', '?')}")]


def _one_of(there: Mapping[str, Any]) -> str:
    return f"partition: one of {', '.join(sorted(there))}"


def account(facts: Facts, cluster: Cluster) -> Finding:
    """The account and QoS are among the user's own, where the cluster keeps accounts."""
    rows = facts.get("limits")
    enforced = "associations" in facts["config"].get("AccountingStorageEnforce", "")
    if rows is None:
        if enforced and not cluster.account:
            return warning("account", "accounts are enforced and none is named", "account = the project you may use")
        return ok("account", f"{cluster.account or 'none'}; no accounting to ask")
    mine = sorted({row["account"] for row in rows})
    if cluster.account and cluster.account not in mine:
        return fault("account", f"{cluster.account}: not yours", f"account: one of {', '.join(mine) or 'none'}")
    if enforced and not mine:
        return fault("account", "you have none here, and jobs without are refused", "ask the site for one")
    allowed = {qos for row in rows for qos in row["qos"].split(",") if qos}
    if cluster.qos and cluster.qos not in allowed:
        return fault("account", f"QoS {cluster.qos}: not yours", f"qos: one of {', '.join(sorted(allowed)) or 'none'}")
    return ok("account", f"{cluster.account or 'your default'} of {', '.join(mine)}")


def requeue(config: Mapping[str, str], cluster: Cluster) -> Finding:
    """Whether jobs may come back by themselves. `--requeue` of a job goes before the cluster's JobRequeue."""
    if not cluster.requeue:
        return ok("requeue", "switched off in the site file: stopped jobs wait for `semiocity retry`")
    if config.get("JobRequeue") == "0":
        return warning(
            "requeue",
            "JobRequeue=0: jobs come back only as they ask for it themselves, which some sites forbid",
            "`semiocity doctor --node` tries it; requeue = false if it fails",
        )
    return ok("requeue", "allowed")


def time_limit(facts: Facts, name: str | None, asked: Resources) -> Finding:
    """The job's time against the partition's."""
    found = _partition(facts, name)
    most = minutes(found.get("MaxTime", "UNLIMITED")) if found else None
    if most is not None and asked.timeout_min > most:
        return fault(
            "time limit",
            f"resources.timeout_min is {asked.timeout_min}, the partition gives {most} min",
            f"--set resources.timeout_min={most}; the job comes back and goes on",
        )
    return ok("time limit", f"{asked.timeout_min} of {'unlimited' if most is None else most} min")


def grace(facts: Facts, name: str | None, asked: Resources) -> Finding:
    """Seconds between a preemption's TERM and the kill, against what a save may take."""
    found = _partition(facts, name)
    mode = (found or {}).get("PreemptMode", "OFF")
    if not found or mode in ("OFF", "") or facts["config"].get("PreemptType", "preempt/none").endswith("none"):
        return ok("preemption", "jobs of this partition are not preempted")
    seconds = int(found.get("GraceTime", "0") or 0)
    if seconds < asked.signal_delay_s:
        return warning(
            "preemption",
            f"{mode}: {seconds} s between TERM and the kill, a save may take resources.signal_delay_s = "
            f"{asked.signal_delay_s}",
            "work since the last checkpoint or shard may be lost: a smaller checkpoint_every",
        )
    return ok("preemption", f"{mode} with {seconds} s to save")


def nodes(facts: Facts, name: str | None, asked: Resources, cluster: Cluster) -> list[Finding]:
    """Whether some node of the partition has the GPUs, cores, memory and features that the job asks for."""
    found = _partition(facts, name)
    mine = [n for n in facts["nodes"] if found and n["partition"].rstrip("*") == found["PartitionName"]]
    if not mine:
        return []
    faults = []
    most = max((gpus_of(n["gres"], cluster.gpu_type) for n in mine), default=0)
    kinds = sorted({kind for n in mine for kind in re.findall(r"gpu:([^:,(]+):", n["gres"])})
    if asked.gpus_per_node > most:
        of = f" of type {cluster.gpu_type}" if cluster.gpu_type else ""
        hint = f"the types are {', '.join(kinds)}" if kinds else "resources.gpus_per_node, or another partition"
        faults.append(fault("nodes", f"gpus_per_node is {asked.gpus_per_node}; nodes have at most {most}{of}", hint))
    cores, cpus = asked.ranks_per_node * asked.cpus_per_rank, max(int(n["cpus"].rstrip("+")) for n in mine)
    if cores > cpus:
        faults.append(
            fault(
                "nodes",
                f"a node needs {cores} cores for its ranks; they have {cpus}",
                "a smaller resources.cpus_per_rank",
            )
        )
    memory = max(int(n["memory_mb"].rstrip("+")) for n in mine) / 1024
    if asked.mem_gb is not None and asked.mem_gb > memory:
        faults.append(
            fault(
                "nodes", f"mem_gb is {asked.mem_gb:g}; nodes have {memory:.0f}", f"--set resources.mem_gb={int(memory)}"
            )
        )
    if cluster.constraint and re.fullmatch(r"[\w.-]+", cluster.constraint):
        features = {feature for n in mine for feature in n["features"].split(",")}
        if cluster.constraint not in features:
            have = ", ".join(sorted(features - {"(null)"})) or "none"
            faults.append(fault("nodes", f"constraint {cluster.constraint}: no node has it", f"their features: {have}"))
    able = {n["name"] for n in mine if not fnmatch.fnmatch(n["state"], "*down*") and "drain" not in n["state"]}
    if asked.nodes > len(able):
        every = len({n["name"] for n in mine})
        todo = "wait for the others" if every >= asked.nodes else "fewer resources.nodes, or another partition"
        faults.append(fault("nodes", f"{asked.nodes} are asked for; {len(able)} of {every} are up", todo))
    return faults or [ok("nodes", f"{len(able)} up, up to {cpus} cores, {memory:.0f} GB, {most} GPUs")]


def gpus_of(gres: str, kind: str | None) -> int:
    """GPUs in a node's generic resources: `gpu:a100:4(S:0-1),nvme:1` has 4."""
    total = 0
    for item in re.sub(r"\([^)]*\)", "", gres).split(","):
        words = item.split(":")
        if words[0] == "gpu" and (kind is None or len(words) < 3 or words[1] == kind):
            total += int(words[-1]) if words[-1].isdigit() else 1
    return total


def minutes(text: str) -> int | None:
    """A limit of SLURM in minutes: `1-12:30:00`, `90:00`; None for none."""
    if text in ("UNLIMITED", "INFINITE", "NONE", ""):
        return None
    days, dash, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if dash:
        hours, mins = [*parts, 0, 0][:2]
    elif len(parts) == 3:
        hours, mins = parts[:2]
    else:
        hours, mins = 0, parts[0]
    return int(days or 0) * 1440 + hours * 60 + mins


def _partition(facts: Facts, name: str | None) -> Mapping[str, str] | None:
    rows: Sequence[Mapping[str, str]] = facts["partitions"]
    for row in rows:
        if row.get("PartitionName") == name or (name is None and row.get("Default") == "YES"):
            return row
    return None
