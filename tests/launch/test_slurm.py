"""What is sent to SLURM, held against golden files. `SEMIOCITY_GOLDEN=write pytest …` writes them anew."""

import os
import re
from pathlib import Path

import pytest

from semiocity.config import Cluster, Resources
from semiocity.launch import slurm
from semiocity.launch.runs import Attempt

GOLDEN = Path(__file__).parents[1] / "golden"
RUN = Path("/project/runs/demo")

CASES: dict[str, tuple[Cluster, Resources, Path | None, int]] = {
    "caption-array": (
        Cluster(executor="slurm", partition="cpu", setup=["module load apptainer"]),
        Resources(array_parallelism=8, timeout_min=90),
        Path("/images/semiocity.sif"),
        40,
    ),
    "train-8gpu": (
        Cluster(
            executor="slurm",
            partition="gpu",
            account="city",
            network_interface="ib0",
            sbatch={"exclusive": True, "mail-type": "FAIL"},
        ),
        Resources(
            nodes=2,
            ranks_per_node=8,
            gpus_per_node=8,
            cpus_per_rank=8,
            mem_gb=480,
            timeout_min=1440,
            signal_delay_s=600,
        ),
        Path("/images/semiocity.sif"),
        1,
    ),
    "pack-no-image": (Cluster(executor="slurm"), Resources(), None, 3),
}


def launch(name: str) -> slurm.Launch:
    cluster, resources, image, _ = CASES[name]
    return slurm.Launch(
        name, cluster, resources, image, RUN / "code" / "abc", (RUN, Path("/project/data/city")), Path("/project")
    )


@pytest.mark.parametrize("name", CASES)
def test_sbatch_file_is_golden(name: str) -> None:
    text = slurm.sbatch_file(launch(name), Attempt(RUN, 1), CASES[name][3])
    # The interpreter's place is this machine's affair when no image is used.
    text = re.sub(r"^(srun .*?)\S+/python3?(\.\d+)? -u", r"\1PYTHON -u", text, flags=re.MULTILINE)
    path = GOLDEN / f"{name}.sbatch"
    if os.environ.get("SEMIOCITY_GOLDEN") == "write":
        path.write_text(text + "\n")
    assert text + "\n" == path.read_text()


def test_teardown_requeues_only_what_asked_for_it(tmp_path: Path) -> None:
    """Run the lines in a real shell, with a scontrol that notes what it is asked."""
    import subprocess

    attempt = Attempt(tmp_path, 1)
    attempt.requeue.mkdir(parents=True)
    asked = tmp_path / "asked"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >>{asked}\n')
    (tmp_path / "scontrol").chmod(0o755)

    def run(code: int, **variables: str) -> tuple[int, str]:
        asked.write_text("")
        lines = [f"(exit {code})", *slurm.teardown(attempt, Cluster(max_restarts=2))]
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "12", **variables}
        done = subprocess.run(["bash", "-c", "\n".join(lines)], env=environment)
        return done.returncode, asked.read_text().strip()

    assert run(85) == (85, "")  # the exit code alone is no request
    attempt.requeue_file("12", 0).touch()
    assert run(85) == (85, "requeue 12")
    assert run(137) == (137, "requeue 12")  # another rank's death hides the code, the file still counts
    assert run(85, SLURM_RESTART_COUNT="1") == (85, "")  # the request of the time before is not this one's
    attempt.requeue_file("12", 2).touch()
    assert run(85, SLURM_RESTART_COUNT="2") == (85, "")  # came back often enough
    attempt.requeue_file("10_3", 1).touch()
    array = {"SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "1", "SLURM_JOB_ID": "14"}
    assert run(85, **array) == (85, "requeue 14")
    assert run(0) == (0, "requeue 12")


def test_secrets_stay_out_of_the_sbatch_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("WANDB_API_KEY", "wandbsecret")
    for name in CASES:
        assert "secret" not in slurm.sbatch_file(launch(name), Attempt(RUN, 1), 1)


def test_gpus_are_hidden_from_cpu_jobs_only() -> None:
    assert slurm.environment(launch("pack-no-image"))["DS_ACCELERATOR"] == "cpu"
    assert "CUDA_VISIBLE_DEVICES" not in slurm.environment(launch("train-8gpu"))
