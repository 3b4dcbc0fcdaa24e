"""Pictures of prompts: from every kind of Flux file, in parts, and again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_flux import CHANNELS, TOKENS, save_flux

from semiocity.errors import UserError
from semiocity.evaluate import noise, prompts
from semiocity.evaluate.prompt_options import PromptJob, Source, read_prompts, source_of
from semiocity.launch import prompt_jobs
from semiocity.models import flux_layout
from semiocity.train.options import TrainJob
from semiocity.train.tasks.base import DatasetFacts
from semiocity.train.tasks.flux_full import FluxFullTask
from semiocity.train.tasks.flux_lora import FluxLoraTask

FACTS = {"step": 1, "seed": 0, "dataset": "town", "dataset_digest": "d" * 64}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_flux(tmp_path_factory.mktemp("models") / "flux")


def task_of(kind: Any, name: str, model: Path, **own: Any) -> Any:
    job = TrainJob.model_validate(
        {
            "dataset": "town",
            "task": name,
            "steps": 1,
            "global_batch": 1,
            "data": {"size": 32},
            "zero": {"stage": 0, "precision": "fp32"},
            "model": {"pretrained": str(model), "text_tokens": TOKENS, "vae_dtype": "float32", **own},
        }
    )
    return kind(job, DatasetFacts("town", "d" * 64, (), (), None))


@pytest.fixture(scope="module")
def full(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a full fine-tune, its transformer other than the base's."""
    folder = tmp_path_factory.mktemp("full") / "export"
    folder.mkdir()
    task = task_of(FluxFullTask, "flux-full", model)
    state = {name: t + 0.05 for name, t in task.phases()[0].modules["transformer"].state_dict().items()}
    task.export({"transformer": state}, folder, FACTS)
    return folder


@pytest.fixture(scope="module")
def lora(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of adapters in the transformer and both text encoders."""
    folder = tmp_path_factory.mktemp("lora") / "export"
    folder.mkdir()
    own = {"rank": 2, "alpha": 6.0, "texts": "fly", "text_encoders": ["clip", "t5"]}
    task = task_of(FluxLoraTask, "flux-lora", model, **own)
    (phase,) = task.phases()
    torch.manual_seed(0)
    for module in phase.modules.values():
        for name, parameter in module.named_parameters():
            if ".lora_" in name:
                parameter.data.normal_(0, 0.3)
    trained = {
        part: {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
        for part, module in phase.modules.items()
    }
    task.export(trained, folder, FACTS)
    return folder


def job_of(tmp_path: Path, texts: str = "a street\n\n# no prompt\na red car\nthe sky\n", **more: Any) -> PromptJob:
    file = tmp_path / str(more.pop("name", "prompts.txt"))
    file.write_text(texts)
    defaults = {"run": "r", "size": 32, "steps": 2, "guidance": 2.0, "dtype": "float32", "device": "cpu"}
    return PromptJob.model_validate({"prompts": file, **defaults, "text_tokens": TOKENS, **more})


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


def test_a_picture_is_the_pipelines_from_the_noise_of_its_seed(full: Path, tmp_path: Path) -> None:
    job = job_of(tmp_path, model=full, images_per_prompt=2, seed=5)
    assert prompts.run(job, tmp_path, 0, 1, lambda: False)
    manifest = json.loads((tmp_path / "samples" / "manifest.json").read_text())
    assert [image["prompt"] for image in manifest["images"]] == ["a street"] * 2 + ["a red car"] * 2 + ["the sky"] * 2
    pipeline: Any = FluxPipeline.from_pretrained(full)
    for image in manifest["images"][:3]:
        start = torch.from_numpy(noise.normal(image["seed"], (1, CHANNELS, 4, 4)))
        expected = pipeline(
            image["prompt"],
            height=32,
            width=32,
            num_inference_steps=2,
            guidance_scale=2.0,
            max_sequence_length=TOKENS,
            latents=FluxPipeline._pack_latents(start, 1, CHANNELS, 4, 4),
            output_type="np",
        ).images[0]
        found = np.array(Image.open(tmp_path / "samples" / image["file"]))
        assert np.abs(found.astype(int) - (expected * 255).round().astype(int)).max() <= 1
    assert len({image["pixels"] for image in manifest["images"]}) == 6


def test_tasks_share_prompts_and_a_stopped_one_loses_nothing(full: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    job = job_of(tmp_path, model=full)
    assert prompts.run(job, whole, 0, 1, lambda: False)
    asked = iter([False, True])
    assert not prompts.run(job, parts, 0, 1, lambda: next(asked))
    (first,) = (parts / "samples").glob("*/00.png")
    inode = first.stat().st_ino
    assert not (parts / "samples" / "manifest.json").exists()
    for index in (1, 0):
        assert prompts.run(job, parts, index, 2, lambda: False)
    assert files(parts / "samples") == files(whole / "samples")
    assert first.stat().st_ino == inode
    # A line more makes its own pictures alone.
    more = job_of(tmp_path, "a street\na red car\nthe sky\na tree\n", model=full)
    assert prompts.run(more, parts, 0, 1, lambda: False)
    assert first.stat().st_ino == inode
    assert len(json.loads((parts / "samples" / "manifest.json").read_text())["images"]) == 4


def test_every_kind_of_file_paints(model: Path, full: Path, lora: Path, tmp_path: Path) -> None:
    """An export, its one file in the original layout, a plain pipeline, a LoRA's export, and its file for ComfyUI."""
    made: dict[str, dict[str, bytes]] = {}
    kinds: dict[str, dict[str, Any]] = {
        "pipeline": {"model": model},
        "full": {"model": full},
        "original": {"model": full / "flux.safetensors", "base": model},
        "lora": {"model": lora},
        "weak": {"model": lora, "lora_scale": 0.0},
    }
    for name, places in kinds.items():
        job = job_of(tmp_path, "a street\n", **places)
        assert prompts.run(job, tmp_path / name, 0, 1, lambda: False)
        made[name] = files(tmp_path / name / "samples")
    assert made["full"] == made["original"]
    assert made["weak"] == made["pipeline"]
    assert len({tuple(found.values()) for found in made.values()}) == 3


@torch.no_grad()
def test_adapters_are_loaded_into_every_part(model: Path, lora: Path) -> None:
    from semiocity.evaluate.flux_painter import load_pipeline

    about = json.loads((lora / "config.json").read_text())
    pipeline = load_pipeline(Source(model, lora=lora / "lora.safetensors", about=about), torch.float32)
    plain: Any = FluxPipeline.from_pretrained(model)
    state = load_file(lora / "lora.safetensors")
    inputs = torch.arange(8)[None]
    expected = {
        "text_encoder_2": "encoder.block.0.layer.0.SelfAttention.q",
        "text_encoder": next(n for n in state if n.startswith("text_encoder."))
        .removeprefix("text_encoder.")
        .partition(".lora")[0],
        "transformer": "single_transformer_blocks.1.attn.to_k",
    }
    for part, name in expected.items():
        x = torch.randn(2, dict(plain.components[part].named_modules())[name].in_features)
        before = dict(plain.components[part].named_modules())[name](x)
        after = dict(pipeline.components[part].named_modules())[name](x)
        down, up = state[f"{part}.{name}.lora_A.weight"], state[f"{part}.{name}.lora_B.weight"]
        assert torch.allclose(after, before + x @ down.T @ up.T * 3.0, atol=1e-4), part
    assert not torch.equal(pipeline.text_encoder_2(inputs)[0], plain.text_encoder_2(inputs)[0])


def test_comfyuis_file_is_the_same_update(model: Path, lora: Path) -> None:
    comfyui, diffusers = load_file(lora / "lora-comfyui.safetensors"), load_file(lora / "lora.safetensors")
    key, name = "lora_unet_single_blocks_0_linear1", "transformer.single_transformer_blocks.0.attn.to_v"
    whole = comfyui[f"{key}.lora_up.weight"] @ comfyui[f"{key}.lora_down.weight"]
    whole *= comfyui[f"{key}.alpha"] / len(comfyui[f"{key}.lora_down.weight"])
    value = diffusers[f"{name}.lora_B.weight"] @ diffusers[f"{name}.lora_A.weight"] * 3.0
    assert torch.allclose(whole[64:96], value, atol=1e-5)
    assert any(k.startswith("lora_te1_") for k in comfyui)
    assert any(k.startswith("lora_te2_") for k in comfyui)


def test_a_manifest_is_made_again_and_differences_are_named(full: Path, tmp_path: Path) -> None:
    assert prompts.run(job_of(tmp_path, model=full, seed=3), tmp_path, 0, 1, lambda: False)
    manifest = tmp_path / "samples" / "manifest.json"
    assert prompts.regenerate(manifest, tmp_path / "again") == []
    facts = json.loads(manifest.read_text())
    facts["images"][1].update(sha256="0" * 64, pixels="0" * 64)
    manifest.write_text(json.dumps(facts))
    assert prompts.regenerate(manifest, tmp_path / "other") == [f"{facts['images'][1]['file']}: other pixels"]


def test_lines_may_have_their_own_size_and_seed(tmp_path: Path) -> None:
    lines = ['{"prompt": "a", "width": 48, "height": 64, "seed": 9}', '{"prompt": "a"}', '{"prompt": "a", "images": 3}']
    found = read_prompts(job_of(tmp_path, "\n".join(lines), name="p.jsonl", images_per_prompt=2))
    assert [(p.width, p.height, p.seed, p.images) for p in found] == [(48, 64, 9, 2), (32, 32, 0, 2), (32, 32, 0, 3)]
    assert len({p.key for p in found}) == 3


@pytest.mark.parametrize(
    ("name", "texts", "message"),
    [
        ("p.txt", "# nothing\n", "no prompt in it"),
        ("p.txt", "a\nb\na\n", "line 3: the same prompt, size and seed as before"),
        ("p.jsonl", '{"promt": "a"}', "line 1: promt: unknown key; did you mean prompt"),
        ("p.jsonl", "a street", "line 1: no JSON"),
        ("p.jsonl", "[1]", "line 1: not an object"),
    ],
)
def test_faults_in_prompts_are_named(tmp_path: Path, name: str, texts: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_prompts(job_of(tmp_path, texts, name=name))


def test_a_job_is_checked_before_it_is_queued(model: Path, lora: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a\nb\n")
    file = tmp_path / "job.toml"
    file.write_text(f'prompts = "p.txt"\nrun = "r"\nmodel = "{model}"\nsize = 32\ntasks = 5\n')
    assert prompt_jobs.has_prompts(file, [])
    work = prompt_jobs.prompts(file, [])
    assert (work.units, work.kind) == (2, "generate")
    assert model in work.binds
    with pytest.raises(UserError, match="40 is no multiple of 16"):
        prompt_jobs.prompts(file, ["size=40"])
    with pytest.raises(UserError, match="no Flux pipeline and no export"):
        prompt_jobs.prompts(file, ["model=nowhere"])
    with pytest.raises(UserError, match="base: missing"):
        prompt_jobs.prompts(file, [f"model={lora / 'lora.safetensors'}"])
    with pytest.raises(UserError, match="gpus_per_node is 0"):
        prompt_jobs.prompts(file, ["device=cuda"])
    (tmp_path / "p.txt").write_text("a\nb\nc\n")
    with pytest.raises(UserError, match="changed since the job was submitted"):
        prompts.run(PromptJob.model_validate(work.job), tmp_path / "run", 0, 1, lambda: False)


def test_files_are_told_apart_by_their_tensors(model: Path, full: Path, lora: Path, tmp_path: Path) -> None:
    found = source_of(job_of(tmp_path, model=full / "flux.safetensors", base=model), tmp_path)
    assert (found.original, found.lora) == (full / "flux.safetensors", None)
    found = source_of(job_of(tmp_path, model=lora / "lora.safetensors", base=model), tmp_path)
    assert (found.original, found.lora) == (None, lora / "lora.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0hello")
    with pytest.raises(UserError, match="no safetensors file"):
        source_of(job_of(tmp_path, model=tmp_path / "x.safetensors", base=model), tmp_path)


def test_a_file_that_does_not_fit_its_base_is_refused(model: Path, full: Path, tmp_path: Path) -> None:
    from semiocity.evaluate.flux_painter import load_original

    other = save_flux(tmp_path / "other", blocks=(1, 1))
    with pytest.raises(UserError, match="does not fit base"):
        load_original(full / "flux.safetensors", other, torch.float32)
    state = load_file(full / "flux.safetensors")
    whole = load_file(full / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {n: t.tolist() for n, t in flux_layout.to_original(whole).items()} == {
        n: t.tolist() for n, t in state.items()
    }
    save_file({n: t for n, t in state.items() if "txt_in" not in n}, tmp_path / "less.safetensors")
    with pytest.raises(UserError, match=r"txt_in\.weight"):
        load_original(tmp_path / "less.safetensors", model, torch.float32)


def test_a_copied_export_can_be_sent_away(model: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(model, tmp_path / "base"))
    task = task_of(FluxFullTask, "flux-full", base, export_frozen="copy", export_original=False)
    folder = tmp_path / "export"
    folder.mkdir()
    task.export({"transformer": task.phases()[0].modules["transformer"].state_dict()}, folder, FACTS)
    shutil.rmtree(base)
    assert not (folder / "flux.safetensors").exists()
    assert FluxPipeline.from_pretrained(folder).vae is not None
