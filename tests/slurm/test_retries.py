"""What fails on a real SLURM: every cause is named, what can be mended by coming back comes back, and nothing else."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faulty_stage import copy_package, job_toml
from project import Project, make_project

from semiocity.data.manifest import ShardPath
from semiocity.data.shard import ShardReader
from semiocity.launch import ends

pytestmark = [pytest.mark.slurm]

SETS = ["--set", "source.size=[32, 32]", "--set", "source.train=24", "--set", "source.val=8", "--set", "shard_rows=8"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, cluster: Any) -> Project:
    """A packed dataset of 4 shards with 8 rows, no image, and a package that has the stage `faulty`."""
    folder = tmp_path_factory.mktemp("project")
    code = copy_package(tmp_path_factory.mktemp("package"))
    environment = {**cluster.environment, "PYTHONPATH": str(code)}
    made = make_project(folder, "", environment)
    made.run("pack", "shards/city.toml", *SETS)
    (folder / "jobs" / "cluster.toml").write_text('executor = "slurm"\npartition = "main"\n')
    return made


def run(project: Project, name: str, *more: str, wait: bool = True, check: bool = True, **args: object) -> Path:
    """Run the stage as the column and run `name`; the column's folder."""
    job = project.folder / "jobs" / f"{name}.toml"
    job.write_text(job_toml(**args))
    sets = ["--set", f'column="{name}"', "--set", f'run="{name}"', *more]
    done = project.run("faulty", str(job), *sets, *(["--wait"] if wait else []), check=check)
    assert check or done.returncode == 1 or done.returncode == 2, done
    folders = list((project.folder / "data/city/columns" / name).glob("*/"))
    return folders[0] if folders else Path("/nowhere")


def keys(project: Project, shard: int) -> list[str]:
    base = next((project.folder / "data/city/columns/base").glob("*/"))
    with ShardReader(ShardPath(base, shard)) as reader:
        return reader.keys


def tombstones(folder: Path) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for shard in range(4):
        with ShardReader(ShardPath(folder, shard)) as reader:
            found |= {key: dead for i, key in enumerate(reader.keys) if (dead := reader.tombstoned(i))}
    return found


def notes(project: Project, name: str) -> list[dict[str, str]]:
    """Notes of attempts that ended badly, oldest first, but for the merge, which refuses what is incomplete."""
    paths = sorted((project.folder / "runs" / name).glob("attempts/*/ends/*"), key=lambda path: path.stat().st_mtime)
    return [note for path in paths if (note := ends.read(path))["cause"] != "refused"]


def test_a_row_that_kills_its_task_is_found_by_the_job_itself(project: Project, cluster: Any) -> None:
    victim = keys(project, 3)[5]
    calm = run(project, "calm", batch=4)
    seen = project.folder / "seen.txt"
    folder = run(project, "segfault", batch=4, victim=victim, fault="SIGSEGV", seen=str(seen))
    assert tombstones(folder) == {victim: ("permanent", "killed its process: SIGSEGV")}
    assert [(note["cause"], note["budget"]) for note in notes(project, "segfault")] == [("crash", "crash")]
    status = project.run_status("segfault")
    assert set(status["tasks"]) == {"done"} and status["restarts"] == 1 and not status["problems"]
    # It alone came back, although the last task of an array goes by the id of the array.
    array = status["jobs"][0]
    assert [cluster.job(f"{array}_{task}")["Restarts"] for task in range(4)] == ["0", "0", "0", "1"]
    # Shards that nothing happened to are those of an undisturbed run, byte for byte.
    for shard in (0, 1, 2):
        assert ShardPath(folder, shard).tar.read_bytes() == ShardPath(calm, shard).tar.read_bytes()
    # What was finished before is not computed again: only the batch that holds the row.
    counts = {key: seen.read_text().splitlines().count(key) for key in keys(project, 3)}
    assert all(counts[key] == 1 for key in keys(project, 3)[:4])
    left = [path.name for path in folder.rglob(".*")] + [path.name for path in folder.rglob("*.lease")]
    assert not left


def test_a_node_that_lacks_something_is_excluded_and_the_job_goes_elsewhere(project: Project, cluster: Any) -> None:
    folder = run(project, "elsewhere", "--set", "resources.shards_per_task=4", node="n1")
    assert not tombstones(folder)
    found = notes(project, "elsewhere")
    # Once; on a machine so busy that SLURM kills the batch script before it could say where not to run, again.
    assert 1 <= len(found) <= 3
    assert {(note["cause"], note["host"], note["nodes"]) for note in found} == {("bad_node", "n1", "n1")}
    attempt = json.loads((project.folder / "runs/elsewhere/attempts/0001/attempt.json").read_text())
    job = cluster.job(attempt["jobs"][0])
    assert (job["ExcNodeList"], job["Restarts"]) == ("n1", str(len(found))) and job["NodeList"] != "n1"


def test_a_fault_in_code_does_not_come_back_and_is_named(project: Project) -> None:
    victim = keys(project, 0)[0]
    run(project, "broken", "--set", "resources.shards_per_task=4", check=False, victim=victim, fault="raise")
    (note,) = notes(project, "broken")
    assert (note["cause"], note["reason"]) == ("crash", "NotImplementedError: not today")
    status = project.run_status("broken")
    (problem,) = [problem for problem in status["problems"] if problem["task"] == 0]
    assert problem["reason"].startswith("crashed: NotImplementedError: not today")


def test_waiting_under_a_limit_ends_when_tasks_fail(project: Project) -> None:
    """`--wait` queues the rest when there is room again; what failed must not take that room for ever."""
    site = project.folder / "jobs" / "limited.toml"
    site.write_text('executor = "slurm"\npartition = "main"\nmax_submitted = 3\n')
    victim = keys(project, 0)[0]
    sets = ["--cluster", str(site), "--set", "resources.shards_per_task=1"]
    job = project.folder / "jobs" / "limited.job.toml"
    job.write_text(job_toml(victim=victim, fault="raise"))
    names = ["--set", 'column="limited"', "--set", 'run="limited"']
    done = project.run("faulty", str(job), *names, *sets, "--wait", check=False)
    assert done.returncode == 2 and "NotImplementedError: not today" in done.stderr, done
    made = sorted((project.folder / "runs/limited/attempts").iterdir())
    assert len(made) == 1, "the failing task was not queued again"
    data = json.loads((made[0] / "attempt.json").read_text())
    assert data["tasks"] == [[0], [1]], "two and their merge had room"
    (problem,) = [problem for problem in project.run_status("limited")["problems"] if problem["task"] == 0]
    assert "NotImplementedError: not today" in problem["reason"]


def test_a_task_killed_from_outside_comes_back_once(project: Project) -> None:
    sets = ["--set", "resources.shards_per_task=4"]
    folder = run(project, "killed", *sets, wait=False, batch=4, rehearse_slow_batch_s=1.0)
    task = project.folder / "runs/killed/attempts/0001/tasks/0000.json"

    def pid(restart: int) -> int:
        facts = json.loads(task.read_text()) if task.exists() else {}
        return facts["pid"] if facts.get("rows") and facts.get("restart") == restart else 0

    def inside(restart: int) -> bool:
        return pid(restart) > 0

    for restart in (0, 1):
        project.wait(partial(inside, restart), "inside a shard")
        os.kill(pid(restart), signal.SIGKILL)
    project.wait(lambda: len(notes(project, "killed")) == 2, "two notes")
    project.wait(lambda: bool(project.run_status("killed")["problems"]), "given up")
    first, second = notes(project, "killed")
    assert (first["cause"], first["code"], "over_budget" in first) == ("killed", "137", False)
    assert (second["cause"], second["over_budget"]) == ("killed", "1")
    (problem,) = [problem for problem in project.run_status("killed")["problems"] if problem["task"] == 0]
    assert "killed without a word" in problem["reason"] and "retries.crash = 1 is used up" in problem["reason"]
    # The same command takes the dead task's lease at once, and makes the same bytes.
    folder = run(project, "killed", *sets, batch=4)
    calm = run(project, "calm", batch=4)
    for shard in range(4):
        assert ShardPath(folder, shard).tar.read_bytes() == ShardPath(calm, shard).tar.read_bytes()


def test_a_node_that_goes_down_costs_a_batch_and_scancel_is_final(project: Project, cluster: Any) -> None:
    """SLURM brings the job back by itself; it goes on inside the shard. What a person cancels stays away."""
    seen = project.folder / "down.txt"
    run(
        project,
        "down",
        "--set",
        "resources.shards_per_task=4",
        wait=False,
        batch=2,
        rehearse_slow_batch_s=2.0,
        seen=str(seen),
    )
    attempt = json.loads((project.folder / "runs/down/attempts/0001/attempt.json").read_text())
    job = attempt["jobs"][0]
    done = keys(project, 0)[:4]

    def lines() -> list[str]:
        return seen.read_text().splitlines() if seen.exists() else []

    project.wait(lambda: len(lines()) >= 6, "two batches done, the third under way")
    node = cluster.job(job)["NodeList"]
    cluster.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    try:
        project.wait(lambda: len(lines()) >= 10, "gone on elsewhere")
    finally:
        with suppress(RuntimeError):  # it may have come back by itself
            cluster.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
    assert [lines().count(key) for key in done] == [1] * 4, "what was finished is not computed again"
    assert cluster.job(job)["Restarts"] == "1"
    cluster.call("scancel", job.partition("_")[0])
    project.wait(lambda: "cancelled" in project.run_status("down")["causes"], "known to be cancelled")
    assert cluster.job(job)["JobState"] == "CANCELLED"
