"""The time limit inside a unit of work on a real SLURM, which looks at limits twice a minute: not for every day."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from faulty_stage import copy_package, job_toml
from project import Project, make_project

from semiocity.data.manifest import ShardPath
from semiocity.data.shard import ShardReader
from semiocity.launch import ends

pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(1800)]

SETS = ["--set", "source.size=[32, 32]", "--set", "source.train=4", "--set", "source.val=4", "--set", "shard_rows=8"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, cluster: Any) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("limit")
    code = copy_package(tmp_path_factory.mktemp("package"))
    made = make_project(folder, "", {**cluster.environment, "PYTHONPATH": str(code)})
    made.run("pack", "shards/city.toml", *SETS)
    (folder / "jobs" / "cluster.toml").write_text('executor = "slurm"\npartition = "main"\n')
    yield made
    made.run("cancel", "stuck", "--yes", check=False)  # if it failed, it would come back beside every later test


def notes(project: Project, name: str) -> list[dict[str, str]]:
    paths = sorted((project.folder / "runs" / name).glob("attempts/*/ends/*"), key=lambda path: path.stat().st_mtime)
    return [note for path in paths if (note := ends.read(path))["cause"] != "refused"]


def submit(project: Project, name: str, **args: object) -> None:
    job = project.folder / "jobs" / f"{name}.toml"
    job.write_text(job_toml(**args))
    sets = [f'column="{name}"', f'run="{name}"', "resources.timeout_min=1", "resources.signal_delay_s=10"]
    project.run("faulty", str(job), *(word for item in sets for word in ("--set", item)))


def test_a_job_that_got_further_comes_back_and_goes_on(project: Project) -> None:
    """Batches of 25 s, notice of 10 s: the limit comes inside one of four. Its next life does the others."""
    submit(project, "slow", batch=2, rehearse_slow_batch_s=25.0)
    project.wait(lambda: set(project.run_status("slow")["tasks"]) == {"done"}, "done in several lives", 900)
    found = notes(project, "slow")
    assert found and all((note["cause"], note["budget"]) == ("time_limit", "time_limit") for note in found)
    folder = next((project.folder / "data/city/columns/slow").glob("*/"))
    with ShardReader(ShardPath(folder, 0)) as reader:
        assert not any(reader.tombstoned(i) for i in range(len(reader)))


def test_a_job_that_gets_nowhere_stays_and_status_says_why(project: Project) -> None:
    """One batch outlasts the limit: coming back ten times would burn ten limits for nothing."""
    base = next((project.folder / "data/city/columns/base").glob("*/"))
    with ShardReader(ShardPath(base, 0)) as reader:
        victim = reader.keys[0]
    submit(project, "stuck", batch=8, victim=victim, fault="hang", batch_timeout_s=3600)
    project.wait(lambda: bool(project.run_status("stuck")["problems"]), "given up", 900)
    found = notes(project, "stuck")
    assert [note["hard"] for note in found] == ["yes"] * len(found) and len(found) <= 3
    assert found[-1]["again"] == "no"
    problem = project.run_status("stuck")["problems"][0]
    assert problem["cause"] == "time_limit" and "signal_delay_s" in problem["reason"]
