"""The cluster and the image themselves: what every other test here takes for granted."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import submitit
from lab import Cluster, until

from semiocity.launch import container

pytestmark = pytest.mark.slurm

REQUIREMENTS = Path(__file__).parents[2] / "containers" / "requirements.lock"
LOOK = """
import json, os, sys, submitit, torch, cloudpickle
names = ("SLURM_JOB_ID", "SLURM_PROCID", "PYTHONPATH", "HF_HUB_OFFLINE", "PYTHONNOUSERSITE", "FROM_JOB", "FROM_SHELL")
print(json.dumps({
    "executable": sys.executable, "python": sys.version_info[:2], "path": sys.path, "folder": os.getcwd(),
    "versions": [submitit.__version__, cloudpickle.__version__, torch.__version__.partition("+")[0]],
    "writable": os.access("code", os.W_OK), "environment": {name: os.environ.get(name) for name in names},
}))
"""


def locked(name: str) -> str:
    found = re.search(rf"^{name}==(\S+)", REQUIREMENTS.read_text(), re.MULTILINE)
    assert found, name
    return found[1]


def test_two_nodes_run_side_by_side_with_their_gpus(cluster: Cluster, tmp_path: Path) -> None:
    script = "srun --gpu-bind=none bash -c 'echo $SLURMD_NODENAME $SLURM_PROCID $CUDA_VISIBLE_DEVICES'"
    log = tmp_path / "log"
    job = cluster.sbatch(script, "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=2", log=log)
    assert cluster.wait(job) == "COMPLETED"
    lines = sorted(line.split() for line in log.read_text().splitlines())
    assert [line[1:] for line in lines] == [["0", "0,1"], ["1", "0,1"]]
    assert len({line[0] for line in lines}) == 2
    assert job not in cluster.squeue()


def test_urgent_jobs_preempt_and_requeue(cluster: Cluster, tmp_path: Path) -> None:
    """A job of `main` gets TERM, is put back, and runs again when the urgent one is done."""
    log = tmp_path / "log"
    (tmp_path / "task").write_text(
        "trap 'echo told' TERM\n"
        "echo start ${SLURM_RESTART_COUNT:-0}\n"
        "[ ${SLURM_RESTART_COUNT:-0} -gt 0 ] && exit\n"
        "for _ in $(seq 600); do sleep 1; done\n"
    )
    cluster.call("scontrol", "update", "PartitionName=main", "GraceTime=1")
    try:
        job = cluster.sbatch(f"srun -n1 -N1 bash {tmp_path}/task", "--nodes=4", "--exclusive", "--requeue", log=log)
        cluster.wait(job, {"RUNNING"})
        until(lambda: log.exists() and "start" in log.read_text(), "the task started")
        urgent = cluster.sbatch("true", "--nodes=4", "--exclusive", "--partition=urgent", log=tmp_path / "urgent")
        assert cluster.wait(urgent) == "COMPLETED"
        assert cluster.wait(job) == "COMPLETED"
    finally:
        cluster.call("scontrol", "update", "PartitionName=main", "GraceTime=20")
    assert cluster.job(job)["Restarts"] == "1"
    # TERM comes to every process of a step, and to some of them again.
    said = " ".join(re.findall(r"^(?:start|told).*$", log.read_text(), re.MULTILINE))
    assert re.fullmatch(r"start 0( told)+ start 1", said), said


@pytest.mark.apptainer
def test_a_job_in_the_image_sees_its_own_packages_only(
    cluster: Cluster, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside: the lock's versions, the code snapshot first on the path and read-only, SLURM's variables, no hub."""
    code = tmp_path / "code"
    code.mkdir()
    python = container.python_command(
        image,
        binds=[container.bind(tmp_path), container.bind(code, read_only=True)],
        env={"FROM_JOB": "a,b=c"},
        nv=False,
        pythonpath=code,
        pwd=tmp_path,
    )
    (tmp_path / "look.py").write_text(LOOK)
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    monkeypatch.setenv("FROM_SHELL", "passes")
    log = tmp_path / "log"
    job = cluster.sbatch(f"srun {python} -u look.py", log=log)
    assert cluster.wait(job) == "COMPLETED", log.read_text()
    seen = json.loads(log.read_text().splitlines()[-1])
    assert seen["executable"] == "/opt/venv/bin/python3"
    assert seen["versions"] == [locked("submitit"), locked("cloudpickle"), locked("torch")]
    assert seen["versions"][0] == submitit.__version__
    assert tuple(seen["python"]) == sys.version_info[:2]
    assert seen["path"][1] == str(code)
    assert not [entry for entry in seen["path"] if ".local" in entry or "somewhere" in entry]
    assert seen["folder"] == str(tmp_path)
    assert not seen["writable"]
    assert seen["environment"] == {
        "SLURM_JOB_ID": job,
        "SLURM_PROCID": "0",
        "PYTHONPATH": str(code),
        "HF_HUB_OFFLINE": "1",
        "PYTHONNOUSERSITE": "1",
        "FROM_JOB": "a,b=c",
        "FROM_SHELL": "passes",
    }


@pytest.mark.apptainer
def test_submitit_round_trip_through_the_image(
    cluster: Cluster, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function pickled on this side runs in the image's Python, and its result comes back."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    python = container.python_command(
        image, binds=[container.bind(tmp_path)], env={}, nv=False, pythonpath=None, pwd=tmp_path
    )
    executor = submitit.AutoExecutor(folder=tmp_path / "submitit", cluster="slurm", slurm_python=python)
    executor.update_parameters(timeout_min=5)
    job = executor.submit(platform.freedesktop_os_release)
    assert cluster.wait(job.job_id) == "COMPLETED", job.stderr()
    assert job.result()["VERSION_CODENAME"] == "bookworm"


@pytest.mark.apptainer
def test_awkward_values_arrive_in_the_container(image: Path, tmp_path: Path) -> None:
    """Apptainer reads its --env options as CSV at some times and not at others."""
    values = {
        "COMMA": "ib0,ib1", "EQUALS": "a=b", "BOTH": "a=b,c=d", "QUOTE": 'a"b', "ALL": 'q="z",w=1', "EMPTY": "",
        "SPACE": "a  b", "APOSTROPHE": "it's", "DOLLAR": "$HOME `id` \\", "PERCENT": "%s", "UTF8": "Zürich",
    }  # fmt: skip
    python = container.python_command(image, binds=[], env=values, nv=False, pythonpath=None, pwd=Path("/tmp"))
    program = "import json, os; print(json.dumps(dict(os.environ)))"
    done = subprocess.run(f"{python} -c '{program}'", shell=True, capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    assert {name: seen.get(name) for name in values} == values


@pytest.mark.apptainer
def test_the_image_is_labelled_with_its_content(image: Path) -> None:
    labels = container.labels(image)
    assert image == container.image_path(image.parent, labels[container.LABEL])
    assert labels["semiocity.python"] == "{}.{}".format(*sys.version_info[:2])
