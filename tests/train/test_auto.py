"""`"auto"` from the command line: measured, chosen, printed with its reason, and gone from what would run."""

from pathlib import Path

import pytest

from semiocity.cli import main
from semiocity.errors import UserError
from semiocity.launch import jobs, memory

JOB = """task = "sdm"
dataset = "{city}"
steps = 1000
global_batch = 16
[data]
size = 32
[zero]
stage = "auto"
[resources]
ranks_per_node = 2
gpus_per_node = 2
mem_gb = 8
[model]
channels = 32
mult = [1, 2]
attention_resolutions = []
spade_hidden = 16
checkpoint = "auto"
"""


def test_auto_is_measured_and_chosen(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    job, site = tmp_path / "train.toml", tmp_path / "site.toml"
    job.write_text(JOB.format(city=city))
    site.write_text('executor = "slurm"\npartition = "gpu"\ngpu_gb = 80\n')
    assert main(["train", str(job), "--cluster", str(site), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "zero.stage = 2: the fastest that fits; a GPU then needs 2." in said.err
    assert "model.checkpoint = false: the fastest that fits" in said.err
    assert said.out.startswith("#!/bin/bash")

    # The activations of 8 samples do not fit beside what CUDA takes; recomputed they do.
    cluster = jobs.load_cluster(site).model_copy(update={"gpu_gb": 2.2})
    work, lines = memory.settle(jobs.train(job, []), cluster)
    assert work.job["model"]["checkpoint"] is True, lines
    assert any(line.startswith("model.checkpoint = true: activations would not fit; a GPU then") for line in lines)
    with pytest.raises(UserError, match=r"nothing that \"auto\" may choose .* fits a GPU of 1.5 GB"):
        memory.settle(jobs.train(job, []), cluster.model_copy(update={"gpu_gb": 1.5}))
