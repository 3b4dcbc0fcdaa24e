"""Training jobs: wrong ones are refused before anything is submitted, naming the key and what would be right."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from semiocity.config import check, load_toml
from semiocity.errors import UserError
from semiocity.models.sdm import PAPER
from semiocity.train.options import TrainJob, identity, needs
from semiocity.train.tasks.sdm import model_config
from semiocity.train.tasks.sdm_options import SDMOptions

JOBS = Path(__file__).parents[2] / "jobs"


def job(**changes: Any) -> TrainJob:
    base = {"dataset": "data/x", "task": "sdm", "steps": 10, "global_batch": 8, "data": {"size": 64}}
    model = {"mult": [1, 2], "attention_resolutions": [32]}
    return check({**base, "model": model, **changes}, TrainJob, "job.toml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "sdn"}, "task: no such task: 'sdn'; there are: .*sdm"),
        ({"model": {"chanels": 3}}, "model: .*chanels: unknown key; did you mean channels"),
        ({"model": {"channels": 0}}, "model: .*channels"),
        ({"data": {"size": 63}}, "data.size: height 63 is no multiple of 2.*62 or 64 would do"),
        ({"data": {"size": [64, 33]}}, "data.size: width 33"),
        ({"data": {"size": 0}}, "data.size: must be at least 1"),
        (
            {"model": {"mult": [1, 2], "attention_resolutions": [7]}},
            "attention_resolutions: at height 64 no level of this model has side 7; the sides are 64, 32",
        ),
        ({"model": {"mult": [1, 0.3], "channels": 8, "attention_resolutions": []}}, "mult: 0.3 times 8"),
        ({"model": {"mult": [1], "attention_resolutions": [], "sample_guidance": 2}}, "label_dropout"),
        ({"data": {"size": 64, "fields": {"lable": "x.y"}}}, "data.fields.lable: .*reads only: image, label"),
        (
            {"resources": {"nodes": 2, "ranks_per_node": 2}, "accumulation": 3},
            r"global_batch is 8, no multiple of 4 ranks × accumulation 3 = 12; 12 would do",
        ),
        ({"global_batch": 9, "resources": {"ranks_per_node": 2}}, "8 or 10 would do"),
        ({"zero": {"stage": 0}}, 'zero: stage 0 .*precision must be "fp32"'),
        ({"keep_last": 1}, "keep_last"),
        ({"keep_every": 1500}, "keep_every is 1500, no multiple of checkpoint_every = 1000, .*; 2000 would do"),
        ({"stepps": 3}, "stepps: unknown key; did you mean steps"),
    ],
)
def test_wrong_jobs_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        job(**changes)
    assert str(caught.value).startswith("job.toml: ")


def test_needs_names_what_is_read() -> None:
    assert needs(job()) == ("base.image", "base.label")
    edges = {"mult": [1, 2], "attention_resolutions": [], "edges": True}
    assert needs(job(model=edges)) == ("base.image", "base.instance", "base.label")
    assert needs(job(data={"size": 64, "fields": {"label": "annotate.label"}})) == ("annotate.label", "base.image")


def test_resolved_jobs_read_back_the_same() -> None:
    made = job()
    assert check(made.model_dump(mode="json"), TrainJob, "again") == made


def test_identity_leaves_out_what_may_change() -> None:
    one = identity(job())
    free = {"log_every": 7, "keep_last": 9, "accumulation": 2, "dataset": "elsewhere", "zero": {"stage": 3}}
    assert identity(job(**free)) == one
    assert identity(job(steps=11)) == one, "with a constant rate a run may be made longer"
    cosine = {"optimizer": {"schedule": "cosine"}}
    assert identity(job(**cosine)) != identity(job(steps=11, **cosine))
    assert identity(job(seed=1)) != one
    assert identity(job(model={"mult": [1, 2], "attention_resolutions": []})) != one


@pytest.mark.parametrize("name", ["demo-train", "train-sdm"])
def test_shipped_jobs_are_right(name: str) -> None:
    made = load_toml(JOBS / f"{name}.toml", TrainJob)
    assert "base.label" in needs(made)


def test_defaults_are_the_papers_model() -> None:
    assert model_config(SDMOptions(), classes=35, height=256) == PAPER


def test_login_node_needs_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from semiocity.config import load_toml;"
        "from semiocity.train.options import TrainJob, needs;"
        f"needs(load_toml(Path({str(JOBS / 'demo-train.toml')!r}), TrainJob));"
        "print(sorted({'torch', 'numpy', 'PIL', 'deepspeed', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
