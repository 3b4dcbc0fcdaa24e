"""Pictures of prompts: from every kind of Flux file, in parts, and again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
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
        "lora file": {"model": lora / "lora.safetensors", "base": model},
        "comfyui": {"model": lora / "lora-comfyui.safetensors", "base": model},
        "weak": {"model": lora, "lora_scale": 0.0},
    }
    for name, places in kinds.items():
        job = job_of(tmp_path, "a street\n", **places)
        assert prompts.run(job, tmp_path / name, 0, 1, lambda: False)
        made[name] = files(tmp_path / name / "samples")
    assert made["full"] == made["original"]
    assert made["weak"] == made["pipeline"]
    assert made["lora file"] == made["comfyui"] == made["lora"]
    assert len({tuple(found.values()) for found in made.values()}) == 3


@torch.no_grad()
@pytest.mark.parametrize("file", ["lora.safetensors", "lora-comfyui.safetensors"])
def test_adapters_are_loaded_into_every_part(model: Path, lora: Path, file: str) -> None:
    """At alpha / rank = 3, T5's as well, though the file alone is given."""
    from semiocity.evaluate.flux_painter import load_pipeline

    pipeline = load_pipeline(Source(model, lora=lora / file), torch.float32)
    plain: Any = FluxPipeline.from_pretrained(model)
    state = load_file(lora / "lora.safetensors")
    stored = {name.partition(".lora")[0] for name in state}
    found = 0
    for part in ("text_encoder_2", "text_encoder", "transformer"):
        before, after = (dict(one.components[part].named_modules()) for one in (plain, pipeline))
        for name, layer in before.items():
            if not isinstance(layer, torch.nn.Linear):
                continue
            key = f"{part}.text_model.{name}" if part == "text_encoder" else f"{part}.{name}"
            x = torch.randn(2, layer.in_features)
            expected = layer(x)
            if key in stored:
                down, up = state[f"{key}.lora_A.weight"], state[f"{key}.lora_B.weight"]
                expected = expected + x @ down.T @ up.T * 3.0
                found += 1
            assert torch.allclose(after[name](x), expected, atol=1e-4), key
    assert found == len(stored)


def test_a_file_of_others_is_read_by_its_names(model: Path, tmp_path: Path) -> None:
    """A dense adapter of one matrix for query, key and value, as kohya's scripts train it, without alpha."""
    from semiocity.evaluate.flux_painter import load_pipeline

    torch.manual_seed(1)
    down, up = torch.randn(2, 32), torch.randn(96, 2)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, tmp_path / "x.safetensors")
    source = source_of(job_of(tmp_path, model=tmp_path / "x.safetensors", base=model), tmp_path)
    pipeline, plain = load_pipeline(source, torch.float32), FluxPipeline.from_pretrained(model)
    x = torch.randn(3, 32)
    for i, part in enumerate(("to_q", "to_k", "to_v")):
        before, after = (getattr(one.transformer.transformer_blocks[0].attn, part)(x) for one in (plain, pipeline))
        assert torch.allclose(after, before + x @ (up[32 * i : 32 * i + 32] @ down).T, atol=1e-4)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"lora_unet_double_blocks_7_img_attn_qkv": (32, 96)}, "double_blocks_7_img_attn_qkv is no layer of this Flux"),
        ({"lora_unet_double_blocks_0_img_attn_qkv": (32, 90)}, "fit no layer with 96 outputs"),
        ({"lora_te2_encoder_block_9_layer_0_SelfAttention_q": (32, 32)}, "no layer of text_encoder_2"),
        ({"lora_te2_encoder_block_0_layer_0_SelfAttention_q": (31, 32)}, "does not fit base"),
        ({"transformer.transformer_blocks.0.attn.to_q": (31, 32)}, "for a layer with 31, not 32 inputs"),
        ({"transformer.transformer_blocks.0.attn.to_q": (32, 33)}, "for a layer with 33, not 32 outputs"),
        ({"text_encoder.text_model.encoder.layers.9.self_attn.q_proj": (16, 16)}, "belongs to no layer of it"),
    ],
)
def test_a_lora_that_does_not_fit_is_refused(
    model: Path, tmp_path: Path, names: dict[str, tuple[int, int]], said: str
) -> None:
    from semiocity.evaluate.flux_painter import load_pipeline

    state: dict[str, torch.Tensor] = {}
    for name, (inputs, outputs) in names.items():
        ends = ("lora_A", "lora_B") if name[0] == "t" else ("lora_down", "lora_up")
        state |= {f"{name}.{ends[0]}.weight": torch.ones(2, inputs), f"{name}.{ends[1]}.weight": torch.ones(outputs, 2)}
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=said):
        load_pipeline(Source(model, lora=tmp_path / "x.safetensors"), torch.float32)


def test_only_plain_adapters_are_taken(model: Path, lora: Path, tmp_path: Path) -> None:
    from semiocity.evaluate.flux_painter import load_pipeline

    state = load_file(lora / "lora-comfyui.safetensors")
    save_file({**state, "lora_unet_double_blocks_0_img_mlp_0.dora_scale": torch.ones(3)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"dora_scale is no part of a plain low-rank adapter; .*take lora.safetensors"):
        load_pipeline(Source(model, lora=tmp_path / "x.safetensors"), torch.float32)


def test_equal_adapters_are_equal_files(model: Path, tmp_path: Path) -> None:
    task = task_of(FluxLoraTask, "flux-lora", model, rank=2)
    (phase,) = task.phases()
    trained = {name: p.detach() for name, p in phase.modules["transformer"].named_parameters() if p.requires_grad}
    made = set()
    for i in range(8):
        (folder := tmp_path / str(i)).mkdir()
        task.export({"transformer": trained}, folder, FACTS)
        made.add(tuple((folder / name).read_bytes() for name in ("lora.safetensors", "lora-comfyui.safetensors")))
    assert len(made) == 1


def test_the_card_names_the_base_on_the_hub(model: Path, tmp_path: Path) -> None:
    """From what `semiocity fetch` leaves beside the weights, or from the folders of the hub's cache; else no name that
    the hub would take for another's repository."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    fetched, cached = tmp_path / "FLUX.1-dev@0123456789ab", tmp_path / "models--black-forest-labs--FLUX.1-dev"
    shutil.copytree(model, fetched)
    (fetched / ".semiocity-model.json").write_text(
        json.dumps({"repo": "black-forest-labs/FLUX.1-dev", "commit": commit, "files": {}})
    )
    (tmp_path / "FLUX.1-dev").symlink_to(fetched.name)
    shutil.copytree(model, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    cards: list[str] = []
    for base in (tmp_path / "FLUX.1-dev", cached, cached / "snapshots" / commit, model):
        folder = tmp_path / f"export-{len(cards)}"
        folder.mkdir()
        task = task_of(FluxLoraTask, "flux-lora", base, rank=2)
        (phase,) = task.phases()
        trained = {name: p.detach() for name, p in phase.modules["transformer"].named_parameters() if p.requires_grad}
        task.export({"transformer": trained}, folder, FACTS)
        cards.append((folder / "README.md").read_text())
    for card in cards[:3]:
        assert "\nbase_model: black-forest-labs/FLUX.1-dev\n" in card
        assert f'from_pretrained("black-forest-labs/FLUX.1-dev", revision="{commit}", torch_dtype' in card
        assert "# FLUX.1-dev, a LoRA on town" in card
        assert "@0123" not in card
    assert "base_model" not in cards[3]
    assert 'from_pretrained("flux", torch_dtype' in cards[3]


def test_comfyuis_file_is_the_same_update(model: Path, lora: Path) -> None:
    comfyui, diffusers = load_file(lora / "lora-comfyui.safetensors"), load_file(lora / "lora.safetensors")
    key, name = "lora_unet_single_blocks_0_linear1", "transformer.single_transformer_blocks.0.attn.to_v"
    whole = comfyui[f"{key}.lora_up.weight"] @ comfyui[f"{key}.lora_down.weight"]
    whole *= comfyui[f"{key}.alpha"] / len(comfyui[f"{key}.lora_down.weight"])
    value = diffusers[f"{name}.lora_B.weight"] @ diffusers[f"{name}.lora_A.weight"] * 3.0
    assert torch.allclose(whole[64:96], value, atol=1e-5)
    # ComfyUI's own names of the encoders' layers (comfy/lora.py: model_lora_keys_clip).
    assert "lora_te1_text_model_encoder_layers_1_self_attn_q_proj.lora_up.weight" in comfyui
    assert "lora_te2_encoder_block_1_layer_0_SelfAttention_q.lora_up.weight" in comfyui


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


def test_the_run_folder_paints_what_was_submitted_wherever_it_is(full: Path, tmp_path: Path) -> None:
    """The prompts are copied at submission: editing the file changes nothing, and the folder alone repeats the run."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (here / "p.txt").write_text("a street\nthe sky\n")
    (here / "job.toml").write_text(
        f'prompts = "p.txt"\nrun = "r"\nmodel = "{full}"\nsize = 32\nsteps = 1\ndtype = "float32"\n'
        f"text_tokens = {TOKENS}\n"
    )
    semiocity(here, "generate", "job.toml", "--wait")
    painted = files(here / "runs/r/samples")
    assert len(painted) == 2
    (here / "p.txt").unlink()
    shutil.rmtree(here / "runs/r/samples")
    semiocity(here, "retry", "r", "--wait")
    assert files(here / "runs/r/samples") == painted
    here = here.rename(tmp_path / "moved")
    shutil.rmtree(here / "runs/r/samples")
    semiocity(here, "retry", "r", "--wait")
    assert files(here / "runs/r/samples") == painted
    (here / "runs/r").rename(tmp_path / "r")
    semiocity(there, "repeat", str(tmp_path / "r"), "--wait")
    assert files(there / "runs/r/samples") == painted
    (there / "job.toml").write_text((here / "job.toml").read_text())
    (there / "p.txt").write_text("the sea\n")
    refused = semiocity(there, "generate", "job.toml", check=False)
    assert refused.returncode == 2 and "r is another job" in refused.stderr and "prompts_digest" in refused.stderr


def semiocity(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "semiocity", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def test_a_job_is_checked_before_it_is_queued(model: Path, lora: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a\nb\n")
    file = tmp_path / "job.toml"
    file.write_text(f'prompts = "p.txt"\nrun = "r"\nmodel = "{model}"\nsize = 32\ntasks = 5\n')
    assert prompt_jobs.prompts_of(file, []) == Path("p.txt")
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
