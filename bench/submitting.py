"""Claim: 1,000 shards of light work take at most 0.8 of datatrove's wall time on the same SLURM cluster, each side at
the best setting found for it, and at most half of it with each side's defaults.

A loopback cluster of four nodes with four places each. The work is the same for all: read a shard's four small
pictures from its tar, hash each of them exactly and perceptually, write a record a picture. Measured from the command
to the moment when every result and its summary (our manifest, datatrove's stats.json) is there. Calls of SLURM's
commands are counted by stand-ins on the PATH, also those that jobs make; files are those beside the results. In the end
a tenth of the tasks are killed while they run, and one command finishes the rest.

submitting.py [SHARDS [all|best [JOBS,…]]]    datatrove needs SEMIOCITY_PEERS (`make peers`), SLURM as in tests/slurm
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "slurm"))

from lab import Cluster  # noqa: E402
from project import make_project  # noqa: E402

PEERS = os.environ.get("SEMIOCITY_PEERS")
DATATROVE = Path(PEERS).parents[1] / "datatrove/bin/python" if PEERS else None
ROWS, PLACES = 4, 16
COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "sacct", "scancel")
JOBS = (16, 4, 2)
"""Numbers of jobs to try for the best setting: one for each place of the cluster, down to one for each core here."""


@dataclass(frozen=True)
class Result:
    seconds: float
    calls: Counter[str]
    files: int
    """Files beside the results when all was done."""
    most: int
    """The same at any moment."""


@dataclass
class Place:
    """The cluster, a packed dataset, and a folder for each contender's run."""

    folder: Path
    cluster: Cluster
    shards: int

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.folder / 'shims'}:{os.environ['PATH']}"
        own = {"PATH": path, "PYTHONPATH": f"{ROOT}:{ROOT / 'bench'}"}
        return {**os.environ, **self.cluster.environment, **own}

    @property
    def tars(self) -> Path:
        base = self.folder / "packed/data/city/columns/base"
        return next(path for path in base.iterdir() if path.is_dir())

    def shims(self) -> None:
        (self.folder / "shims").mkdir()
        for name in COMMANDS:
            lines = ["#!/bin/bash", f"echo {name} >>{self.folder}/calls", f'exec {shutil.which(name)} "$@"', ""]
            (self.folder / "shims" / name).write_text("\n".join(lines))
            (self.folder / "shims" / name).chmod(0o755)

    def idle(self) -> None:
        """Wait until nothing is left in the queue, and forget the calls."""
        while self.cluster.squeue():
            time.sleep(0.2)
        (self.folder / "calls").write_text("")

    def measure(self, start: Callable[[], None], done: Callable[[], bool], extra: Path) -> Result:
        self.idle()
        most = [0]
        over = threading.Event()

        def watch() -> None:
            while not over.wait(1.0):
                most[0] = max(most[0], files(extra))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        began = looked = time.monotonic()
        idle = 0
        start()
        while not done():
            time.sleep(0.05)
            if time.monotonic() - looked > 10:
                looked = time.monotonic()
                idle = 0 if "RUNNING" in self.cluster.squeue().values() else idle + 1
                if idle > 3 and not done():
                    raise SystemExit(f"nothing runs any more, and not all is done: {extra}")
        seconds = time.monotonic() - began
        over.set()
        watcher.join()
        while self.cluster.squeue():
            time.sleep(0.2)
        calls = Counter((self.folder / "calls").read_text().split())
        count = files(extra)
        return Result(seconds, calls, count, max(count, most[0]))


def files(folder: Path) -> int:
    """Files below a folder, code snapshots aside."""
    count = 0
    for where, folders, names in os.walk(folder):
        if Path(where).name == "code":
            folders.clear()
            continue
        count += len(names)
    return count


@contextmanager
def place(shards: int) -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="submitting-", dir="/tmp"))
    (folder / "slurm").mkdir()
    cluster = Cluster.start(folder / "slurm")
    try:
        made = Place(folder, cluster, shards)
        made.shims()
        (folder / "packed").mkdir()
        project = make_project(folder / "packed", 'executor = "local"\n', {})
        rows = [f"source.train={shards * ROWS - 8}", "source.val=8", f"shard_rows={ROWS}", "source.size=[64, 64]"]
        project.run("pack", "shards/city.toml", *(word for row in rows for word in ("--set", row)))
        yield made
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------- contenders


def ours(at: Place, name: str, *sets: str) -> Result:
    """`semiocity hash`, in a copy of the project."""
    folder = at.folder / name
    shutil.copytree(at.folder / "packed", folder)
    (folder / "jobs/cluster.toml").write_text('executor = "slurm"\npartition = "main"\n')
    job = folder / "jobs/hash.toml"
    job.write_text("".join(line for line in job.read_text().splitlines(True) if "shards_per_task" not in line))
    manifest = folder / "data/city/manifest.json"

    def done() -> bool:
        return "hash" in json.loads(manifest.read_text())["columns"]

    result = at.measure(lambda: semiocity(at, folder, sets), done, folder / "runs")
    column = json.loads(manifest.read_text())["columns"]["hash"]
    if (column["shards"], column["rows"]) != (at.shards, at.shards * ROWS):
        raise SystemExit(f"{name}: {column}")
    return result


def semiocity(at: Place, folder: Path, sets: Sequence[str], *more: str) -> None:
    words = [word for item in sets for word in ("--set", item)]
    command = [sys.executable, "-m", "semiocity", "hash", "jobs/hash.toml", *words, *more]
    subprocess.run(command, cwd=folder, env=at.environment, check=True, stdout=subprocess.DEVNULL)


def peer(at: Place, name: str, worker: str, **settings: Any) -> Result:
    """datatrove or plain submitit, by submitting_peers.py."""
    out = at.folder / name
    python = DATATROVE if worker == "datatrove" else sys.executable
    facts = {"tars": str(at.tars), "shards": at.shards, "out": str(out), **settings}
    command = [str(python), str(ROOT / "bench/submitting_peers.py"), worker, json.dumps(facts)]
    environment = at.environment
    if worker == "datatrove":
        environment["PATH"] = f"{at.folder / 'shims'}:{Path(str(python)).parent}:{environment['PATH']}"
    begun: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        log = (at.folder / f"{name}.log").open("wb")
        begun.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    def done() -> bool:
        if begun[0].poll():
            raise SystemExit((at.folder / f"{name}.log").read_text()[-3000:])
        if worker == "submitit":  # the program waits for its results itself
            return begun[0].poll() == 0
        return (out / "logs/stats.json").exists() and len(list((out / "logs/completions").iterdir())) == at.shards

    result = at.measure(start, done, out / "logs")
    begun[0].wait()
    made = sum(len(path.read_text().splitlines()) for path in (out / "results").glob("*.jsonl"))
    if made != at.shards * ROWS:
        raise SystemExit(f"{name}: {made} records instead of {at.shards * ROWS}")
    return result


def killed(at: Place) -> tuple[int, int, int, int]:
    """Kill a tenth of the tasks in the middle of their work; then one command. Returns tasks killed, shards made
    before, made by that command, and made twice."""
    folder = at.folder / "killed"
    shutil.copytree(at.folder / "packed", folder)
    (folder / "jobs/cluster.toml").write_text('executor = "slurm"\npartition = "main"\n')
    sets = ("resources.shards_per_task=4",)
    semiocity(at, folder, sets)
    wanted, struck = max(1, at.shards // 4 // 10), set[str]()
    while (states := at.cluster.squeue()) and len(struck) < wanted:
        # One at a time, so that those are hit that have come to different points.
        for job in [job for job, state in states.items() if "_" in job and state == "RUNNING" and job not in struck][
            :1
        ]:
            at.cluster.call("scancel", "--quiet", "--signal=KILL", "--full", job)
            struck.add(job)
        time.sleep(0.2)
    at.idle()
    before = receipts(folder)
    semiocity(at, folder, sets, "--wait")
    after = receipts(folder)
    twice = sum(after[path] != stamp for path, stamp in before.items())
    if len(after) != at.shards:
        raise SystemExit(f"{len(after)} of {at.shards} shards after the command that finishes")
    return len(struck), len(before), len(after) - len(before), twice


def receipts(folder: Path) -> dict[Path, int]:
    found = (folder / "data/city/columns/hash").glob("*/*/*.json")
    return {path: path.stat().st_mtime_ns for path in found}


# ---------------------------------------------------------------- main


def main(shards: int = 1000, which: str = "all", jobs_to_try: str = "") -> None:
    if DATATROVE is None or not DATATROVE.exists():
        raise SystemExit("SEMIOCITY_PEERS names no environment with datatrove (`make peers`)")
    found: dict[str, Result] = {}

    def run(name: str, contender: Callable[..., Result], *arguments: Any, **settings: Any) -> None:
        found[name] = contender(at, name.replace(" ", "-").replace(",", ""), *arguments, **settings)
        print(f"  {name:<44} {described(found[name])}", flush=True)

    with place(shards) as at:
        print(f"{shards} shards of {ROWS} pictures, {PLACES} places on four nodes")
        for jobs in map(int, jobs_to_try.split(",")) if jobs_to_try else JOBS:
            size = -(-shards // jobs)
            run(f"ours, {jobs} jobs", ours, f"resources.shards_per_task={size}")
            for srun in (True, False):
                label = f"datatrove, {jobs} jobs{'' if srun else ' without srun'}"
                run(label, peer, "datatrove", tasks_per_job=size, with_srun=srun)
            run(f"submitit, {jobs} jobs", peer, "submitit", per_job=size)
        if which == "all":
            run("ours, defaults", ours)
            run("datatrove, defaults", peer, "datatrove")
            run("submitit, defaults", peer, "submitit", per_job=1)
        struck, before, after, twice = killed(at)
    print(f"{struck} tasks killed: {before} shards were there, one command made the other {after}, and {twice} again")
    best = {
        side: min((n for n in found if n.startswith(side) and "jobs" in n), key=lambda n: found[n].seconds)
        for side in SIDES
    }
    goals = [goal(f"{shards:,} shards of light work, best settings, s", found, best["ours"], best["datatrove"], 0.8)]
    if which == "all":
        goals += [goal("the same, each side's defaults, s", found, "ours, defaults", "datatrove, defaults", 0.5)]
    again = {"claim": f"shards made again after {struck} tasks were killed", "ours": twice, "peer": None, "ratio": None}
    goals.append({**again, "goal": "0", "met": twice == 0})
    figures = {name: described(result) for name, result in sorted(found.items(), key=lambda item: item[1].seconds)}
    print(json.dumps({"goals": goals, "figures": figures, "unit": "seconds, files, calls of SLURM's commands"}))


def goal(claim: str, found: dict[str, Result], ours: str, peer: str, most: float) -> dict[str, Any]:
    mine, theirs = found[ours].seconds, found[peer].seconds
    facts = {"claim": claim, "ours": round(mine, 1), "peer": round(theirs, 1), "ratio": round(mine / theirs, 2)}
    return {**facts, "goal": f"ratio <= {most}", "met": mine / theirs <= most}


def described(result: Result) -> str:
    calls = ", ".join(f"{count} {command}" for command, count in sorted(result.calls.items()))
    return f"{result.seconds:.1f} s; {result.files} files (at most {result.most}); {calls}"


SIDES = ("ours", "datatrove", "submitit")

if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 1000, *sys.argv[2:4])
