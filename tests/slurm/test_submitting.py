"""Submission on a real SLURM: calls and files counted, limits kept, mistakes refused, nothing queued twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from project import Project, make_project

pytestmark = pytest.mark.slurm

SETS = ["--set", "source.size=[32, 32]", "--set", "source.train=20", "--set", "source.val=4", "--set", "shard_rows=4"]
SITE = 'executor = "slurm"\npartition = "main"\n'
SHARDS = 6


class Shims:
    """Stand-ins before SLURM's commands on the PATH: they note each call, then make it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls.txt"
        folder.mkdir()
        self.calls.touch()
        for name in ("sbatch", "squeue", "scontrol", "sacct", "scancel"):
            self.put(name, 'exec "$real" "$@"')

    def put(self, name: str, then: str) -> None:
        lines = ["#!/bin/bash", f"real={shutil.which(name)}", f'echo "{name} $*" >>{self.calls}', then]
        (self.folder / name).write_text("\n".join([*lines, ""]))
        (self.folder / name).chmod(0o755)

    def count(self) -> Counter[str]:
        """Calls since the last question; `sbatch --test-only` apart from `sbatch`."""
        lines = self.calls.read_text().splitlines()
        self.calls.write_text("")
        return Counter("test-only" if "--test-only" in line else line.split()[0] for line in lines)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, cluster: Any) -> Project:
    """A project with a packed dataset of six shards; jobs run in this environment, without an image."""
    folder = tmp_path_factory.mktemp("packed")
    made = make_project(folder, 'executor = "local"\n', {})
    made.run("pack", "shards/city.toml", *SETS)
    shutil.rmtree(folder / "runs")
    return Project(folder, cluster.environment)


@pytest.fixture
def shims(tmp_path: Path) -> Shims:
    return Shims(tmp_path / "bin")


@pytest.fixture
def project(packed: Project, shims: Shims, tmp_path: Path) -> Project:
    folder = Path(shutil.copytree(packed.folder, tmp_path / "project"))
    (folder / "jobs/cluster.toml").write_text(SITE)
    for job in (folder / "jobs").glob("*.toml"):  # the size of tasks is ours to choose
        job.write_text("\n".join(line for line in job.read_text().splitlines() if "shards_per_task" not in line) + "\n")
    return Project(folder, {**packed.environment, "PATH": f"{shims.folder}:{os.environ['PATH']}"})


def attempt(project: Project, run: str = "caption-city", number: int = 1) -> dict[str, Any]:
    return json.loads((project.folder / f"runs/{run}/attempts/{number:04d}/attempt.json").read_text())


def receipts(project: Project, column: str = "caption") -> dict[str, int]:
    found = (project.folder / f"data/city/columns/{column}").glob("*/00000/*.json")
    return {path.name: path.stat().st_mtime_ns for path in found}


def test_calls_and_files_of_an_array(project: Project, shims: Shims) -> None:
    project.run("caption", "jobs/caption.toml")
    assert shims.count() == {"test-only": 1, "scontrol": 1, "sbatch": 2}
    again = project.run("caption", "jobs/caption.toml", "--wait")
    calls = shims.count()
    assert calls["sbatch"] == 0 and calls["scontrol"] == 0
    assert "complete, nothing to do" in again.stdout
    assert len(receipts(project)) == SHARDS
    folder = project.folder / "runs/caption-city/attempts/0001"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [
        "attempt.json",
        "environment.json",
        "logs/done.log",
        "packed.json",
        "tasks-00000.sbatch",
        f"tasks-{SHARDS:05d}.sbatch",
    ]
    assert not list((project.folder / "data").rglob("*.tmp")) and not list(project.folder.rglob("*.lease"))
    status = project.run_status("caption-city")
    assert status["tasks"] == {"done": SHARDS + 1}


def test_long_arrays_are_split_and_each_task_finds_its_shards(project: Project, shims: Shims) -> None:
    (project.folder / "jobs/cluster.toml").write_text(SITE + "max_array = 2\n")
    project.run("caption", "jobs/caption.toml", "--wait")
    assert shims.count()["sbatch"] == 4
    assert len(receipts(project)) == SHARDS
    data = attempt(project)
    whole = [job.partition("_")[0] for job in data["jobs"]]
    assert list(Counter(whole).values()) == [2, 2, 2, 1]
    assert project.run_status("caption-city")["tasks"] == {"done": SHARDS + 1}


@pytest.mark.parametrize(
    ("site", "sets", "words"),
    [
        (SITE.replace("main", "nope"), [], ["Invalid partition name", "nope"]),
        (SITE, ["--set", 'resources.partition="gpu"'], ["Invalid partition name", "gpu"]),
        (SITE, ["--set", "resources.gpus_per_node=4"], ["Requested node configuration is not available"]),
        (SITE + '[sbatch]\nnodelist = "n9"\n', [], ["Invalid node name"]),
        (SITE + "[sbatch]\nno-such-option = true\n", [], ["no-such-option"]),
    ],
)
def test_a_mistake_costs_one_message_and_queues_nothing(
    project: Project, shims: Shims, cluster: Any, site: str, sets: list[str], words: list[str]
) -> None:
    (project.folder / "jobs/cluster.toml").write_text(site)
    before = cluster.squeue()
    done = project.run("caption", "jobs/caption.toml", *sets, check=False)
    assert done.returncode == 2
    assert all(word in done.stderr for word in [*words, "nothing was queued"])
    assert shims.count() == {"test-only": 1}
    assert cluster.squeue() == before
    assert not (project.folder / "runs/caption-city").exists()


def test_two_submissions_at_the_same_moment_queue_everything_once(project: Project, shims: Shims) -> None:
    command = [sys.executable, "-m", "semiocity", "caption", "jobs/caption.toml"]
    environment = {**os.environ, **project.environment}
    both = [
        subprocess.Popen(
            command, cwd=project.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    output = ["".join(process.communicate()) for process in both]
    assert [process.returncode for process in both] == [0, 0], output
    assert sum("queued as SLURM job" in text for text in output) == 1, output
    assert shims.count()["sbatch"] == 2
    assert len(list((project.folder / "runs/caption-city/attempts").iterdir())) == 1
    project.run("caption", "jobs/caption.toml", "--wait")
    assert len(receipts(project)) == SHARDS


def test_a_submission_whose_answer_was_lost_is_not_made_again(project: Project, shims: Shims) -> None:
    """The controller took the job, and its answer timed out."""
    marker = shims.folder / "lost"
    shims.put(
        "sbatch",
        f'[[ "$*" == *--test-only* || -e {marker} ]] && exec "$real" "$@"\ntouch {marker}\n"$real" "$@" >/dev/null\n'
        "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1",
    )
    project.run("caption", "jobs/caption.toml", "--wait")
    calls = shims.count()
    assert calls["sbatch"] == 2, "one array, one merge"
    assert len(receipts(project)) == SHARDS
    assert project.run_status("caption-city")["tasks"] == {"done": SHARDS + 1}


def test_jobs_of_a_submission_that_was_killed_are_known_by_their_sbatch_file(project: Project, shims: Shims) -> None:
    """Killed between sbatch and the note: the next submission finds the jobs in the queue and adopts them."""
    slow = ["--set", "args.rehearse_slow_batch_s=3"]
    project.run("caption", "jobs/caption.toml", *slow)
    path = project.folder / "runs/caption-city/attempts/0001/attempt.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "jobs": []}))
    shims.count()
    done = project.run("caption", "jobs/caption.toml", *slow)
    assert "already queued or running" in done.stdout
    assert shims.count() == {"squeue": 1}
    assert attempt(project)["jobs"] == data["jobs"]
    project.run("caption", "jobs/caption.toml", "--wait")


def test_a_retry_beside_running_tasks_is_seen_and_followed_with_them(project: Project, cluster: Any) -> None:
    """One task of an array is lost and queued again while the others go on: both attempts are one run."""
    project.run("caption", "jobs/caption.toml", "--set", "args.rehearse_slow_batch_s=8")
    first = attempt(project)
    lost = first["jobs"][0]
    project.wait(lambda: project.run_status("caption-city")["tasks"].get("running", 0) > 0, "running")
    subprocess.run(["scancel", lost], env={**os.environ, **project.environment}, check=True)
    project.wait(lambda: "lost" in project.run_status("caption-city")["tasks"], "gone")
    words = [sys.executable, "-m", "semiocity", "retry", "caption-city", "--wait"]
    environment = {**os.environ, **project.environment}
    with subprocess.Popen(words, cwd=project.folder, env=environment, stderr=subprocess.PIPE, text=True) as waiting:
        second = project.folder / "runs/caption-city/attempts/0002"
        project.wait(lambda: len(list(second.glob("*.sbatch"))) == 2, "both queued")
        found = project.run_status("caption-city")
        assert found["attempts"] == [1, 2] and found["work"]["of"] == SHARDS and not found["problems"]
        assert sum(found["tasks"].get(state, 0) for state in ("running", "queued")) > 2, found
        assert waiting.wait() == 0, waiting.stderr.read() if waiting.stderr else ""
    data = attempt(project, number=2)
    assert data["tasks"] == [[0]]
    merge = (second / "tasks-00001.sbatch").read_text()
    assert all(job in merge for job in {job.partition("_")[0] for job in [*first["jobs"], data["jobs"][0]]})
    assert len(receipts(project)) == SHARDS
    found = project.run_status("caption-city")
    assert set(found["tasks"]) == {"done"} and not found["problems"] and found["work"]["done"] == SHARDS
    assert "complete, nothing to do" in project.run("caption", "jobs/caption.toml").stdout


def test_a_limit_makes_tasks_longer_and_the_rest_waits(project: Project, shims: Shims, cluster: Any) -> None:
    (project.folder / "jobs/cluster.toml").write_text(SITE + "max_submitted = 4\n")
    project.run("caption", "jobs/caption.toml", "--wait")
    assert [len(task) for task in attempt(project)["tasks"]] == [2, 2, 2]
    fixed = ["--set", "resources.shards_per_task=1", "--set", 'run="fixed"', "--set", 'column="fixed"']
    done = project.run("caption", "jobs/caption.toml", *fixed)
    assert "3 more tasks found no room" in done.stdout
    assert len(attempt(project, "fixed")["tasks"]) == 3
    # With --wait the rest follows by itself.
    project.run("caption", "jobs/caption.toml", *fixed, "--wait")
    assert len(receipts(project, "fixed")) == SHARDS
    assert len(list((project.folder / "runs/fixed/attempts").iterdir())) == 2


def test_a_limit_that_only_sbatch_knows(project: Project, shims: Shims) -> None:
    """Room for three jobs: three tasks are queued, no merge, and the next command does the rest and no more."""
    room = shims.folder / "room"
    shims.put(
        "sbatch",
        '[[ "$*" == *--test-only* ]] && exec "$real" "$@"\n'
        'tasks=$(sed -n "s/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p" "${@: -1}")\n'
        f"left=$(($(cat {room}) - ${{tasks:-0}} - 1))\n"
        "if [[ $left -lt 0 ]]; then\n"
        '  echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1\nfi\n'
        f'echo $left >{room}\nexec "$real" "$@"',
    )
    room.write_text("3")
    done = project.run("caption", "jobs/caption.toml", check=False)
    assert done.returncode == 0, done.stderr
    data = attempt(project)
    assert (len(data["tasks"]), len(data["jobs"]), data["merge"]) == (3, 3, None)
    assert room.read_text() == "0\n"
    project.wait(lambda: len(receipts(project)) == 3, "three shards")
    made = receipts(project)
    project.wait(lambda: not project.run_status("caption-city")["tasks"].keys() - {"done"}, "the array's end")
    room.write_text("100")
    project.run("caption", "jobs/caption.toml", "--wait")
    assert len(receipts(project)) == SHARDS and receipts(project).items() >= made.items()
    assert sorted(len(attempt(project, number=n)["tasks"]) for n in (1, 2)) == [3, 3], "nothing was queued twice"


def test_nodes_that_the_site_file_excludes_are_kept_away_from(project: Project, cluster: Any, tmp_path: Path) -> None:
    (project.folder / "jobs/cluster.toml").write_text(SITE + '[sbatch]\nexclude = "n[1-3]"\n')
    project.run("caption", "jobs/caption.toml", "--wait")
    seen = [cluster.job(job) for job in attempt(project)["jobs"]]
    assert {(job["ExcNodeList"], job["NodeList"]) for job in seen} == {("n[1-3]", "n4")}
    # As it reads beside a node that the run has learnt to avoid, of which the site file speaks, too.
    script = tmp_path / "script"
    script.write_text("#!/bin/bash\n#SBATCH --exclude='n[1-3],n2'\n#SBATCH --output=/dev/null\ntrue\n")
    job = cluster.call("sbatch", "--parsable", "--partition=main", str(script)).strip()
    assert cluster.job(job)["ExcNodeList"] == "n[1-3]"
    cluster.wait(job)


def test_a_wrong_account_costs_one_message_and_queues_nothing(project: Project, shims: Shims, cluster: Any) -> None:
    """The loopback cluster keeps no accounts: sbatch answers as one does that enforces them."""
    words = "Invalid account or account/partition combination specified"
    shims.put(
        "sbatch",
        'script=$([[ -f "${@: -1}" ]] && cat "${@: -1}" || cat)\n'
        'if [[ "$script" == *--account=nobody* ]]; then\n'
        f'  echo "sbatch: error: Batch job submission failed: {words}" >&2; exit 1\nfi\nexec "$real" "$@" <<<"$script"',
    )
    (project.folder / "jobs/cluster.toml").write_text(SITE + 'account = "nobody"\n')
    before = cluster.squeue()
    done = project.run("caption", "jobs/caption.toml", check=False)
    assert done.returncode == 2
    assert words in done.stderr and "nothing was queued" in done.stderr
    assert shims.count() == {"test-only": 1}
    assert cluster.squeue() == before
    assert not (project.folder / "runs/caption-city").exists()


def test_a_run_is_repeated_from_a_copy_of_its_folder_in_another_project(project: Project, tmp_path: Path) -> None:
    project.run("caption", "jobs/caption.toml", "--set", "args.batch=2", "--wait")
    made = {path.name: path.read_bytes() for path in (project.folder / "data/city/columns/caption").glob("*/00000/*")}
    other = tmp_path / "other"
    (other / "data").mkdir(parents=True)
    shutil.copytree(project.folder / "data/city", other / "data/city", ignore=shutil.ignore_patterns("caption"))
    manifest = other / "data/city/manifest.json"
    facts = json.loads(manifest.read_text())
    del facts["columns"]["caption"]
    manifest.write_text(json.dumps(facts))
    copy = Path(shutil.copytree(project.folder / "runs/caption-city", tmp_path / "archive/caption-city"))
    there = Project(other, project.environment)
    dry = there.run("repeat", str(copy), "--dry-run")
    assert "#SBATCH --partition=main" in dry.stdout and not (other / "runs").exists()
    there.run("repeat", str(copy), "--wait")
    again = {path.name: path.read_bytes() for path in (other / "data/city/columns/caption").glob("*/00000/*")}
    assert again == made
    data = json.loads((other / "runs/caption-city/attempts/0001/attempt.json").read_text())
    assert data["code"].startswith(str(other)) and data["job"]["args"]["batch"] == 2
    assert "complete, nothing to do" in there.run("repeat", "caption-city").stdout
