"""The doctor on a real SLURM: what it asks the controller, and a job that tries signals and requeueing on a node."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from project import Project, make_project

from semiocity.cli import main
from semiocity.launch import doctor_node

pytestmark = pytest.mark.slurm


@pytest.fixture
def project(tmp_path: Path, cluster: Any) -> Project:
    return make_project(tmp_path / "project", 'executor = "slurm"\npartition = "main"\n', cluster.environment)


def report(project: Project, *arguments: str) -> dict[str, list[dict[str, str]]]:
    """Findings by check; the raw report on failure."""
    done = project.run("doctor", "--json", *arguments, check=False)
    assert done.returncode in (0, 1), done.stderr
    told = json.loads(done.stdout)
    assert told["healthy"] == (done.returncode == 0)
    by_check: dict[str, list[dict[str, str]]] = {}
    for finding in told["findings"]:
        assert finding["level"] == "ok" or finding["todo"], finding
        by_check.setdefault(finding["check"], []).append(finding)
    return by_check


def test_a_node_is_examined_signals_arrive_and_the_job_comes_back(project: Project) -> None:
    found = report(project, "--node")
    node = {name: [f for f in items if f["place"] != "login"] for name, items in found.items()}
    assert [f["level"] for f in node["signals"]] == ["ok", "ok"], node
    assert "SIGUSR2" in node["signals"][0]["found"] and "SIGTERM" in node["signals"][1]["found"]
    assert "came back" in node["requeue"][0]["found"]
    for check in ("versions", "run folder", "/dev/shm", "hub", "clock", "space"):
        assert [f["level"] for f in node[check]] == ["ok"] * len(node[check]), node[check]
    assert not project.run("status", check=False).stderr


def test_the_controller_knows_what_the_site_file_and_the_job_ask_for(project: Project) -> None:
    def faults(*sets: str, **site: str | int) -> dict[str, str]:
        lines = {"executor": '"slurm"', "partition": '"main"', **{k: json.dumps(v) for k, v in site.items()}}
        (project.folder / "jobs/cluster.toml").write_text("".join(f"{k} = {v}\n" for k, v in lines.items()))
        (project.folder / "job.toml").write_text("[resources]\n")
        words = [word for item in sets for word in ("--set", item)]
        found = report(project, "job.toml", *words)
        return {
            f["check"]: f"{f['found']}; {f['todo']}" for items in found.values() for f in items if f["level"] == "fault"
        }

    assert faults() == {}
    assert "nope: no such partition; partition: one of main, urgent" in faults(partition="nope")["partition"]
    assert "max_array = 1001" in faults(max_array=5000)["arrays"]
    assert "at most 2" in faults("resources.gpus_per_node=3")["nodes"]
    assert "resources.mem_gb=62" in faults("resources.mem_gb=100")["nodes"]
    assert "they have 4" in faults("resources.cpus_per_rank=5")["nodes"]
    assert "4 of 4 are up" in faults("resources.nodes=5")["nodes"]
    assert "no node has it" in faults(constraint="a100")["nodes"]


def test_a_container_that_cannot_start_is_a_fault_with_its_own_words(project: Project) -> None:
    """The site's apptainer does not work on the node: facts from outside still come, and the log's last line."""
    broken = project.folder / "apptainer"
    broken.write_text('#!/bin/sh\n[ "$1" = exec ] && { echo "FATAL: could not open image" >&2; exit 255; }\nexit 0\n')
    broken.chmod(0o755)
    image = project.folder / "x.sif"
    image.write_bytes(b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\0" + bytes(100))
    (project.folder / "jobs/cluster.toml").write_text(
        f'executor = "slurm"\npartition = "main"\n[container]\nimage = "{image}"\napptainer = "{broken}"\n'
        'binds = ["/no/such/place"]\n'
    )
    found = report(project, "--node")
    assert "ended before it said anything" in found["node job"][0]["found"]
    assert "could not open image" in found["node job"][0]["todo"]
    assert any(f["level"] == "fault" and f["place"] != "login" for f in found["binds"])


def test_a_job_that_does_not_start_is_a_fault_with_slurms_reason(project: Project, cluster: Any) -> None:
    """Its time comes later than anybody waits; nothing stays in the queue."""
    site = 'executor = "slurm"\npartition = "main"\n[sbatch]\nbegin = "now+2hours"\n'
    (project.folder / "jobs/cluster.toml").write_text(site)
    before = cluster.squeue()
    (found,) = report(project, "--node", "--wait-min", "0.05")["node job"]
    assert "did not start within 0.05 min" in found["found"]
    assert found["todo"] == "squeue gives as reason: BeginTime"
    assert cluster.squeue() == before


def test_a_job_that_does_not_come_back_is_a_fault(
    project: Project, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a site holds what is requeued. The doctor gives up after COME_BACK_S and takes the job away."""
    shim = tmp_path / "bin" / "scontrol"
    shim.parent.mkdir()
    real = shutil.which("scontrol")
    lines = ["#!/bin/bash", '[ "$1" = requeue ] && set -- requeuehold "${@:2}"', f'exec {real} "$@"', ""]
    shim.write_text("\n".join(lines))
    shim.chmod(0o755)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(doctor_node, "COME_BACK_S", 15.0)
    before = cluster.squeue()
    assert main(["doctor", "--node", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    (found,) = [finding for finding in told["findings"] if finding["check"] == "node job"]
    assert "did not come back after it asked to be requeued" in found["found"]
    assert cluster.squeue() == before
