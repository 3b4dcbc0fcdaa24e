"""Submitting on this machine: real tasks, real shards, and nothing computed twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETS = ["--set", "source.size=[32, 32]", "--set", "source.train=40", "--set", "source.val=8", "--set", "shard_rows=8"]
# Four batches a shard, so that a shard takes some seconds; the batch is part of the column's revision.
BATCH = ["--set", "args.batch=2"]
SLOW = [*BATCH, "--set", "args.rehearse_slow_batch_s=0.8"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for name in ("jobs", "shards"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("cluster.toml"))
    done = semiocity("pack", "shards/city.toml", *SETS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def project(packed: Path, tmp_path: Path) -> Path:
    """A copy of a project with a packed dataset of six shards."""
    return Path(shutil.copytree(packed, tmp_path / "project"))


def semiocity(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "semiocity", *arguments], cwd=cwd, capture_output=True, text=True)


def attempt(project: Path, run: str, number: int = 1) -> dict:
    return json.loads((project / f"runs/{run}/attempts/{number:04d}/attempt.json").read_text())


def test_a_stage_is_made_once_and_only_what_is_missing_again(project: Path) -> None:
    assert semiocity("caption", "jobs/caption.toml", cwd=project).returncode == 0
    assert "nothing to do" in semiocity("caption", "jobs/caption.toml", cwd=project).stdout
    receipts = sorted((project / "data/city/columns/caption").glob("*/00000/*.json"))
    assert len(receipts) == 6
    before = {path: path.stat().st_mtime_ns for path in receipts}
    bytes_before = receipts[3].with_suffix(".tar").read_bytes()
    receipts[3].unlink()
    done = semiocity("caption", "jobs/caption.toml", cwd=project)
    assert done.returncode == 0, done.stderr
    assert attempt(project, "caption-city", 2)["tasks"] == [[3]]
    assert receipts[3].with_suffix(".tar").read_bytes() == bytes_before
    others = [path for path in receipts if path != receipts[3]]
    assert {path: path.stat().st_mtime_ns for path in others} == {path: before[path] for path in others}


def test_a_failing_task_is_reported_with_its_reason_and_log(project: Path) -> None:
    shard = next((project / "data/city/columns/base").glob("*/00000/00000002.tar"))
    shard.write_bytes(shard.read_bytes()[:1000])
    done = semiocity("caption", "jobs/caption.toml", cwd=project)
    assert done.returncode != 0
    assert "00000002" in done.stderr
    assert "_0_log.out" in done.stderr
    assert "Traceback" not in done.stderr
    status = semiocity("status", cwd=project)
    assert status.returncode == 1
    assert "failed" in status.stdout and "00000002" in status.stdout


def test_interrupt_saves_and_the_next_call_goes_on(project: Path) -> None:
    """Ctrl-C in a terminal: the signal reaches the whole process group."""
    process = subprocess.Popen(
        [sys.executable, "-m", "semiocity", "caption", "jobs/caption.toml", *SLOW],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    folder = project / "data/city/columns/caption"
    deadline = time.monotonic() + 60
    while not list(folder.glob("*/00000/*.json")):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Run the same command again" in stderr
    there = {path.name for path in folder.glob("*/00000/*.json")}
    assert 0 < len(there) < 6
    left = {path.name.split(".")[2] for path in folder.glob("*/00000/.*.tmp")}
    assert left <= {"journal"} and not list(folder.glob("*/00000/*.lease"))
    assert semiocity("caption", "jobs/caption.toml", *BATCH, cwd=project).returncode == 0
    assert not list(folder.glob("*/00000/.*"))
    assert len(list(folder.glob("*/00000/*.json"))) == 6
    redone = {shard for task in attempt(project, "caption-city", 2)["tasks"] for shard in task}
    assert not redone & {int(name[:8]) for name in there}


def test_two_commands_at_the_same_moment_and_another_job_under_the_name(project: Path) -> None:
    """One makes the shards, the other says so; then other arguments are refused until they are meant."""
    slow = ["--set", "args.rehearse_slow_batch_s=0.8"]
    command = [sys.executable, "-m", "semiocity", "caption", "jobs/caption.toml", *slow]
    both = [
        subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    output = ["".join(process.communicate()) for process in both]
    assert [process.returncode for process in both] == [0, 0], output
    assert sum("already queued or running" in text or "nothing to do" in text for text in output) == 1, output
    assert len(list((project / "runs/caption-city/attempts").iterdir())) == 1
    assert len(list((project / "data/city/columns/caption").glob("*/00000/*.json"))) == 6
    other = ["caption", "jobs/caption.toml", "--set", "args.batch=4"]
    done = semiocity(*other, cwd=project)
    assert done.returncode == 2 and "args.batch: 64 -> 4" in done.stderr, done.stderr
    assert semiocity(*other, "--replace", cwd=project).returncode == 0
    assert len(list((project / "data/city/columns/caption").glob("*/00000/*.json"))) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["caption", "jobs/caption.toml", "--set", "image=missing.sif"], "image missing.sif: no such file"),
        (["segment", "jobs/caption.toml"], "run it with `semiocity caption"),
        (["caption", "jobs/caption.toml", "--set", "dataset=data/none"], "no such file"),
        (["train", "jobs/demo-train.toml", "--set", "resources.nodes=2"], "several nodes need SLURM"),
        (["train", "jobs/demo-train.toml", "--set", "data.fields.label=annotate.label"], "no column annotate"),
        (["generate", "jobs/generate.toml", "--set", "run=nobody"], "no trained model yet"),
        (["caption", "jobs/caption.toml", "--set", "args.captioner=oracle"], "oracle"),
        (["segment", "jobs/segment-sam.toml", "--set", "resources.gpus_per_node=0"], "gpus_per_node is 0"),
        (["segment", "jobs/segment-sam.toml"], "models/sam"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_started(
    project: Path, arguments: list[str], message: str
) -> None:
    done = semiocity(*arguments, cwd=project)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in (project / "runs").iterdir() if path.name != "pack-city"]


def test_dry_run_prints_and_touches_nothing(project: Path) -> None:
    (project / "jobs/cluster.toml").write_text('executor = "slurm"\npartition = "gpu"\n')
    done = semiocity("caption", "jobs/caption.toml", "--dry-run", cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash")
    assert "#SBATCH --array=0-5" in done.stdout
    assert not (project / "runs/caption-city").exists()


def test_verify_and_repair_of_a_damaged_shard(project: Path) -> None:
    """What verify advises works: remove the receipt, pack again, all is well."""
    assert semiocity("verify", "data/city", cwd=project).returncode == 0
    shard = next((project / "data/city/columns/base").glob("*/00000/00000001.tar"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
    done = semiocity("verify", "data/city", cwd=project)
    assert done.returncode == 1
    assert "00000001" in done.stdout and "00000001.json" in done.stdout
    assert json.loads(semiocity("verify", "data/city", "--json", cwd=project).stdout)[0]["shard"] == 1
    shard.with_suffix(".json").unlink()
    done = semiocity("pack", "shards/city.toml", *SETS, cwd=project)
    assert done.returncode == 0, done.stderr
    assert shard.read_bytes() == whole
    assert semiocity("verify", "data/city", cwd=project).returncode == 0
