"""The columns that trainings of Flux read: what diffusers' own classes give, and nothing else, per row."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from safetensors.torch import load
from stage_data import STREET, read_column, run_stage, street_rows, write_base
from tiny_flux import CHANNELS, TOKENS, save_flux

from semiocity.config import StageJob, load_toml
from semiocity.data.aspects import bucket_ids
from semiocity.data.manifest import merge, read_column_manifest, read_manifest
from semiocity.errors import UserError
from semiocity.stages.base import make_stage
from semiocity.train.options import TrainJob

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_flux(tmp_path_factory.mktemp("models") / "flux")


@pytest.fixture(scope="module")
def pipeline(model: Path) -> Any:
    return FluxPipeline.from_pretrained(model)


@pytest.fixture(scope="module")
def wide_street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 rows in 2 shards, of three shapes, one of them damaged, with captions."""
    rows = street_rows(6, 64)
    for i, key in enumerate(sorted(rows)):
        picture = Image.open(io.BytesIO(rows[key]["image"][1])).crop((0, 0, (64, 48, 64)[i % 3], (48, 64, 64)[i % 3]))
        sink = io.BytesIO()
        picture.save(sink, "PNG")
        rows[key]["image"] = ("png", sink.getvalue() if i != 4 else b"<html>")
    folder = write_base(tmp_path_factory.mktemp("data") / "street", rows, shard_rows=3, classes=STREET)
    made = run_stage(make_stage("caption", {"captioner": "labels"}), folder)
    merge(folder, "caption", made.name)
    return folder


def latent(model: Path, **args: Any) -> Any:
    return make_stage("latent", {"encoder": "flux", "model": model, **args})


@torch.no_grad()
def test_latents_are_the_vaes_of_the_fitted_picture_and_its_mirror_image(
    wide_street: Path, model: Path, pipeline: Any
) -> None:
    sizes = [[32, 48], [32, 32], [48, 32]]
    stage = latent(model, buckets={"sizes": sizes}, flip=True, batch=2)
    stage.check()
    found = read_column(run_stage(stage, wide_street))
    pictures = read_column(wide_street / "columns" / "base" / read_manifest(wide_street)["columns"]["base"]["revision"])
    shapes = set()
    for i, key in enumerate(sorted(found)):
        fields, scalars, tombstone = found[key]
        if i == 4:
            assert tombstone is not None
            assert tombstone[0] == "permanent"
            assert "image cannot be decoded" in tombstone[1]
            continue
        image = Image.open(io.BytesIO(pictures[key][0]["image"] or b""))
        bucket = sorted(sizes, key=lambda s: s[0] / s[1])[
            int(bucket_ids(np.array([image.width]), np.array([image.height]), [(32, 48), (32, 32), (48, 32)])[0])
        ]
        assert (scalars["width"], scalars["height"]) == tuple(bucket)
        shapes.add(tuple(bucket))
        moments = load(fields["moments"] or b"")["moments"]
        assert moments.dtype == torch.float16
        assert moments.shape == (2, 2 * CHANNELS, bucket[1] // 8, bucket[0] // 8)
        # The largest box of the bucket's shape in the middle, by Pillow alone.
        wide, high = bucket
        cut_w, cut_h = (
            min(image.width, round(image.height * wide / high)),
            min(image.height, round(image.width * high / wide)),
        )
        left, top = (image.width - cut_w) // 2, (image.height - cut_h) // 2
        fitted = image.resize((wide, high), Image.Resampling.LANCZOS, box=(left, top, left + cut_w, top + cut_h))
        for variant, picture in enumerate((fitted, fitted.transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
            expected = pipeline.vae.encode(pixels).latent_dist
            assert torch.allclose(moments[variant, :CHANNELS].float(), expected.mean[0], atol=5e-3, rtol=5e-3)
            assert torch.allclose(moments[variant, CHANNELS:].float(), expected.logvar[0], atol=5e-3, rtol=5e-3)
        assert not torch.equal(moments[1], moments[0].flip(-1)), "the mirror image must be encoded itself"
    assert len(shapes) == 3


def test_the_mean_alone_is_half_as_large(wide_street: Path, model: Path) -> None:
    both = read_column(run_stage(latent(model, size=32, keep="moments"), wide_street))
    mean = read_column(run_stage(latent(model, size=[32, 32], keep="mean"), wide_street))
    key = min(both)
    halved = load(mean[key][0]["moments"] or b"")["mean"]
    assert torch.equal(halved, load(both[key][0]["moments"] or b"")["moments"][:, :CHANNELS])


@torch.no_grad()
def test_texts_are_those_of_the_pipeline(wide_street: Path, model: Path, pipeline: Any) -> None:
    stage = make_stage("text", {"encoder": "flux", "model": model, "tokens": TOKENS, "batch": 2})
    stage.check()
    made = run_stage(stage, wide_street)
    captions = wide_street / "columns" / "caption" / read_manifest(wide_street)["columns"]["caption"]["revision"]
    words = {key: (fields["text"] or b"").decode() for key, (fields, _, _) in read_column(captions).items()}
    for key, (fields, scalars, _) in read_column(made).items():
        found = load(fields["embeddings"] or b"")
        prompt, pooled, _ = pipeline.encode_prompt(words[key], max_sequence_length=TOKENS)
        assert found["prompt"].dtype == found["pooled"].dtype == torch.float16
        assert torch.allclose(found["prompt"].float(), prompt[0], atol=5e-3, rtol=5e-3)
        assert torch.allclose(found["pooled"].float(), pooled[0], atol=5e-3, rtol=5e-3)
        assert scalars["tokens"] == len(pipeline.tokenizer_2(words[key]).input_ids)
    merge(wide_street, "text", made.name)
    assert read_column_manifest(wide_street, "text", made.name)["model"] == stage.model_revision()


@pytest.mark.parametrize("name", ["latent", "text"])
def test_shipped_jobs_are_valid(name: str) -> None:
    job = load_toml(JOBS / f"{name}.toml", StageJob)
    stage = make_stage(job.stage, job.args)
    assert (stage.name, stage.args.device, job.resources.gpus_per_node) == (name, "cuda", 1)


def test_other_weights_are_another_revision_wherever_they_lie(model: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(model, tmp_path / "moved"))
    assert latent(moved, size=32).model_revision() == latent(model, size=32).model_revision()
    weights = moved / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert latent(moved, size=32).model_revision() != latent(model, size=32).model_revision()
    texts = [make_stage("text", {"encoder": "flux", "model": folder}).model_revision() for folder in (model, moved)]
    assert texts[0] == texts[1], "the VAE has no say in texts"


@pytest.mark.parametrize(
    ("stage", "args", "message"),
    [
        ("latent", {}, "give either size = SIDE"),
        ("latent", {"size": 32, "buckets": {"area": 4096}}, "give either size = SIDE"),
        ("latent", {"size": 40}, "args.size: 40×40: 40 is no multiple of 16, the side of a token; 32 or 48 would do"),
        ("text", {"tokens": 513}, "tokens: Input should be less than or equal to 512"),
        ("text", {"caption": "caption"}, "caption: String should match pattern"),
    ],
)
def test_wrong_arguments_are_refused(model: Path, stage: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_stage(stage, {"encoder": "flux", "model": model, **args}).check()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no such folder. Compute nodes have no network"),
        (lambda folder: shutil.rmtree(folder / "text_encoder_2"), "no folder text_encoder_2"),
        (lambda folder: (folder / "text_encoder" / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "tokenizer" / "tokenizer.json").unlink(), "tokenizer.json or vocab.json"),
        (
            lambda folder: shutil.copy(folder / "vae" / "config.json", folder / "text_encoder" / "config.json"),
            "holds a AutoencoderKL, not a clip_text_model",
        ),
        (
            lambda folder: os.truncate(folder / "text_encoder" / "model.safetensors", 1000),
            "has 1000 bytes, its header asks for|no whole safetensors file",
        ),
    ],
)
def test_an_unfit_folder_is_refused_on_the_login_node(model: Path, tmp_path: Path, broken: Any, message: str) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "broken"))
    broken(folder)
    with pytest.raises(UserError, match=message):
        make_stage("text", {"encoder": "flux", "model": folder}).check()


def test_a_missing_pipeline_is_refused_with_the_command_that_pins_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By stages and trainings alike, whether the folder is missing or a part, and never by an unpinned download."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(JOBS, tmp_path / "jobs")
    place = tmp_path / "models" / "FLUX.1-dev"
    tasks = [JOBS / "train-flux-lora-1gpu.toml", JOBS / "train-flux-full.toml"]

    def refusals() -> Iterator[str]:
        for name in ("latent", "text"):
            with pytest.raises(UserError) as error:
                make_stage(
                    name, {"encoder": "flux", "model": place, **({"size": 32} if name == "latent" else {})}
                ).check()
            yield str(error.value)
        for file in tasks:
            with pytest.raises(UserError) as error:
                load_toml(file, TrainJob)
            yield str(error.value)

    for said in refusals():
        assert f"{place}: no such folder" in said and "`semiocity fetch FLUX.1-dev`" in said, said
        assert "hf download" not in said and "top level" not in said
    fetched = place.with_name("FLUX.1-dev@0123456789ab")
    shutil.copytree(model, fetched)
    place.symlink_to(fetched.name)
    for part in ("vae", "text_encoder", "transformer"):
        (fetched / part / "config.json").unlink()
    for said in refusals():
        assert "config.json is missing; fetch it on the login node: `semiocity fetch FLUX.1-dev`" in said, said
    (fetched / ".semiocity-model.json").write_text(json.dumps({"files": {"vae/config.json": {"bytes": 3}}}))
    with pytest.raises(UserError, match=r"config.json is missing; fetch it again .*`semiocity fetch FLUX.1-dev`"):
        make_stage("text", {"encoder": "flux", "model": place}).check()
