"""Job files are checked with names and remedies; what ships is valid."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from semiocity.config import load_toml
from semiocity.errors import UserError
from semiocity.evaluate.options import EvaluateJob, GenerateJob

JOBS = Path(__file__).parents[2] / "jobs"


def test_shipped_jobs_are_valid() -> None:
    assert load_toml(JOBS / "generate.toml", GenerateJob).images_per_layout == 5
    assert load_toml(JOBS / "evaluate.toml", EvaluateJob).extractor.kind == "segmenter"


@pytest.mark.parametrize(
    ("model", "setting", "message"),
    [
        (GenerateJob, "images_per_layuot=3", "images_per_layuot: unknown key; did you mean images_per_layout?"),
        (GenerateJob, "steps=0", "steps: Input should be greater than or equal to 1"),
        (GenerateJob, 'sampler="euler"', "sampler: Input should be 'ddim' or 'ancestral'"),
        (EvaluateJob, "segmenter.width=1", "segmenter.width: Input should be greater than or equal to 4"),
        (EvaluateJob, "segmenter.epochs=1", "segmenter.epochs: unknown key"),
        (EvaluateJob, 'frechet.reference="val"', "frechet.reference: Input should be 'train' or 'held_out'"),
    ],
)
def test_faults_are_named(model: type, setting: str, message: str) -> None:
    file = JOBS / ("generate.toml" if model is GenerateJob else "evaluate.toml")
    with pytest.raises(UserError) as caught:
        load_toml(file, model, [setting])
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


def test_noise_in_every_step_is_ddims() -> None:
    with pytest.raises(UserError, match=r"eta is 0\.5 but the sampler is ancestral"):
        load_toml(JOBS / "generate.toml", GenerateJob, ['sampler="ancestral"', "eta=0.5"])


def test_inception_needs_its_weights() -> None:
    with pytest.raises(UserError, match=r"extractor.*weights: missing"):
        load_toml(JOBS / "evaluate.toml", EvaluateJob, ['extractor={kind="inception"}'])


def test_options_need_neither_numpy_nor_torch() -> None:
    code = "import sys, semiocity.evaluate.options; assert not {'numpy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
