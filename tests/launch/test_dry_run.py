"""`--dry-run`, held against golden files: every sbatch file that would be submitted, and how much that asks for; and
whichever verb it is, nothing is written. `SEMIOCITY_GOLDEN=write pytest …` writes the golden files anew."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from semiocity import cli
from semiocity.config import Cluster, Resources
from semiocity.launch import estimate, submission
from semiocity.launch.jobs import Work

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
GPU = Resources(gpus_per_node=1, cpus_per_rank=8, mem_gb=64, timeout_min=240, array_parallelism=4)
CASES: dict[str, dict[str, Any]] = {
    "stage-split": {"kind": "stage", "column": "caption", "revision": "r", "shards": 21, "resources": GPU},
    "view": {
        "kind": "view",
        "column": "night",
        "revision": "r",
        "shards": 2500,
        "together": 1000,
        "resources": Resources(shards_per_task=1000),
    },
    "generate": {"kind": "generate", "units": 2, "resources": GPU},
    "evaluate": {"kind": "evaluate", "resources": GPU},
}
CLUSTER = 'executor = "slurm"\npartition = "gpu"\nmax_array = 3\nshared_group = "city"\n'
SITE = Cluster(executor="slurm", partition="gpu", max_array=3, shared_group="city")


def golden(name: str, text: str, project: Path) -> None:
    text = text.replace(str(project), "/project").replace(str(ROOT), "/project")
    text = re.sub(r"\S+/python3?(\.\d+)? -u", "PYTHON -u", text)
    text = re.sub(r"(code/)[0-9a-f]{12}", r"\1SNAPSHOT", text)
    text = re.sub(r"(export-city-webdataset)-[0-9a-f]{6}", r"\1-FOLDER", text)
    path = GOLDEN / f"dry-run-{name}.txt"
    if os.environ.get("SEMIOCITY_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", CASES)
def test_dry_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = Work(run=tmp_path / "runs" / name, dataset=tmp_path / "data" / "city", job={}, **CASES[name])
    assert submission.submit(work, SITE, dry_run=True) is False
    assert not list(tmp_path.iterdir()), "nothing is written"
    golden(name, capsys.readouterr().out, tmp_path)


SMALL = ["--set", "source.train=40", "--set", "source.val=8", "--set", "source.size=[32, 32]", "--set", "shard_rows=16"]
PIPELINE = """
dataset = "data/city"
run = "demo"
[steps.pack]
pack = "shards/city.toml"
set = { "source.size" = [32, 32], "source.train" = 40, "source.val" = 8, shard_rows = 16 }
[steps.caption]
stage = "jobs/caption.toml"
[steps.hash]
stage = "jobs/hash.toml"
[steps.train]
train = "jobs/demo-train.toml"
"""
VERBS: dict[str, list[str]] = {
    "pack": ["pack", "shards/city.toml", *SMALL, "--set", "resources.timeout_min=7"],
    "train": ["train", "jobs/demo-train.toml", "--set", 'sample_split="train"', "--set", "validate_every=0"],
    "export": ["export", "data/city", "--to", "webdataset", "--out", "data/copy", "--array"],
    "pipeline": ["pipeline", "jobs/pipelines/p.toml"],
    "repeat": ["repeat", "caption-city"],
    "retry": ["retry", "caption-city"],
    "doctor": ["doctor", "--node"],
    "cancel": ["cancel", "caption-city"],
    "demo": ["demo"],
}
COMPARED = ("pack", "train", "export", "pipeline", "repeat")


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """`shared_group` changes that of the whole process."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that was packed and captioned on this machine; then it moved to a cluster."""
    folder = tmp_path_factory.mktemp("packed") / "p"
    for name in ("jobs", "shards"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("cluster.toml"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for arguments in (["pack", "shards/city.toml", *SMALL], ["caption", "jobs/caption.toml"]):
            assert cli.main(arguments) == 0
    (folder / "jobs/pipelines/p.toml").write_text(PIPELINE)
    (folder / "jobs/cluster.toml").write_text(CLUSTER)
    return folder


def everything(folder: Path) -> dict[str, str]:
    """Each file and folder, with a digest of what a file holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return found


@pytest.mark.parametrize("name", VERBS)
def test_no_verb_writes_anything(
    name: str, packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = packed
    if name in ("pack", "pipeline", "demo"):  # as it is before anything was made
        project = packed.parent / "bare"
        if not project.exists():
            for folder in ("jobs", "shards"):
                shutil.copytree(packed / folder, project / folder)
    monkeypatch.chdir(project)
    if name == "doctor":  # its checks of this machine are another test's affair
        monkeypatch.setattr("semiocity.launch.doctor.login", lambda *_: [])
    before = everything(project)
    assert cli.main([*VERBS[name], "--dry-run"]) == 0
    assert everything(project) == before
    out = capsys.readouterr().out
    if name == "cancel":
        assert "nothing is queued or running" in out
        return
    assert "#SBATCH --partition=gpu" in out
    if name in COMPARED:
        golden(name, out, project)


def test_the_dry_run_of_a_pipeline_names_its_gates(
    packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(packed)
    assert cli.main(["pipeline", "jobs/pipelines/p.toml", "--dry-run", "--phases", "caption,hash"]) == 0
    out = capsys.readouterr().out
    assert "# ---- step hash" in out and "# ---- step caption" not in out, "only what is missing"
    assert "gate" not in out, "and everything that it reads is there"


def test_summary_says_what_is_asked_and_what_is_likely() -> None:
    work = Work(run=Path("/r"), dataset=Path("/d"), job={}, **CASES["stage-split"])
    tasks = [[0, 1], [2]]
    assert estimate.summary(work, tasks, None) == "# 2 tasks, 3 shards, at most 8.0 GPU-hours by the time limit"
    assert estimate.summary(work, tasks, 600).splitlines()[1].startswith("# about 0.50 GPU-hours by what was measured")
    training = Work("train", Path("/r"), Path("/d"), {}, Resources(nodes=4, gpus_per_node=8, ranks_per_node=8))
    assert estimate.summary(training, [[]], None) == "# 1 task, at most 32.0 GPU-hours by the time limit"
    cores = Work("stage", Path("/r"), Path("/d"), {}, Resources(cpus_per_rank=2), shards=1)
    assert estimate.summary(cores, [[0]], None) == "# 1 task, 1 shard, at most 2.0 core-hours by the time limit"
