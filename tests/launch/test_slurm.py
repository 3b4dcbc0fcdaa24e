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
    "train-pyxis": (
        Cluster(
            executor="slurm",
            partition="gpu",
            container={"runtime": "pyxis", "binds": ["/scratch", "/sw:/opt/sw:ro"], "python": "/opt/venv/bin/python3"},
        ),
        Resources(nodes=2, ranks_per_node=8, gpus_per_node=8, cpus_per_rank=8, timeout_min=1440),
        Path("/images/semiocity.sqsh"),
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


def test_secrets_stay_out_of_the_sbatch_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("WANDB_API_KEY", "wandbsecret")
    for name in CASES:
        assert "secret" not in slurm.sbatch_file(launch(name), Attempt(RUN, 1), 1)


def test_gpus_are_hidden_from_cpu_jobs_only() -> None:
    assert slurm.environment(launch("pack-no-image"))["DS_ACCELERATOR"] == "cpu"
    assert "CUDA_VISIBLE_DEVICES" not in slurm.environment(launch("train-8gpu"))
