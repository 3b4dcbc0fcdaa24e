"""What Flux trainings leave: folders and files that diffusers and ComfyUI load, with a model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import FluxTransformer2DModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from semiocity.files import write_atomic, write_json
from semiocity.models import flux_layout, flux_names
from semiocity.stages import model_files, weights
from semiocity.stages.text_encoders import CLIP, T5
from semiocity.train.tasks.base import Tensors

if TYPE_CHECKING:
    from semiocity.train.tasks.flux import FluxTask
    from semiocity.train.tasks.flux_full import FluxFullTask
    from semiocity.train.tasks.flux_lora import FluxLoraTask

FORMAT = 1
SHARD_GB = 10
ORIGINAL = "flux.safetensors"
LORA = "lora.safetensors"
LORA_COMFYUI = "lora-comfyui.safetensors"
TRANSFORMER = "transformer"
LICENCES = ("LICENSE", "LICENSE.md", "LICENSE.txt")
KOHYA = {CLIP: "lora_te1", T5: "lora_te2"}
OLD_CLIP = "text_model."
"""What the names of CLIP's layers began with before transformers 5."""


def full(task: FluxFullTask, trained: Tensors, folder: Path, facts: dict[str, Any]) -> None:
    """A pipeline folder, the transformer written, the rest linked or copied; and one file in the original layout."""
    state = _whole(task, trained)
    loader: Any = FluxTransformer2DModel
    with torch.device("meta"):
        model = loader.from_config(task.config)
    model.load_state_dict(state, assign=True)
    model.save_pretrained(folder / TRANSFORMER, max_shard_size=f"{SHARD_GB}GB", safe_serialization=True)
    for entry in sorted(task.folder.iterdir()):
        if entry.name == TRANSFORMER or not (entry.is_dir() or entry.name == "model_index.json"):
            continue
        if entry.name.startswith("."):
            continue
        _bring(entry, folder / entry.name, task.options.export_frozen == "copy")
    if task.options.export_original:
        original = {name: tensor.contiguous() for name, tensor in flux_layout.to_original(state).items()}
        save_file(original, folder / ORIGINAL, {"format": "pt"})
    _describe(task, folder, facts, "full")


def lora(task: FluxLoraTask, trained: Mapping[str, Tensors], folder: Path, facts: dict[str, Any]) -> None:
    """Adapters for `FluxPipeline.load_lora_weights`, and the same under ComfyUI's names."""
    dtype = _dtype(task)
    diffusers: dict[str, Tensor] = {}
    comfyui: dict[str, Tensor] = {}
    for part, state in trained.items():
        found = {name: flux_layout.Adapter(*(t.to(dtype) for t in pair)) for name, pair in adapters(state).items()}
        for name, pair in found.items():
            named = f"{part}.{_in_files(part, name)}"
            diffusers[f"{named}.lora_A.weight"] = pair.down.contiguous()
            diffusers[f"{named}.lora_B.weight"] = pair.up.contiguous()
        if part == TRANSFORMER:
            outputs = {name: shape[0] for name, shape in flux_names.linear_layers(task.config).items()}
            numbers = task.config["num_layers"], task.config["num_single_layers"]
            comfyui |= flux_layout.adapters_to_original(found, outputs, task.alpha, *numbers)
        else:
            for name, pair in found.items():
                key = f"{KOHYA[part]}_{_in_files(part, name).replace('.', '_')}"
                comfyui |= {
                    f"{key}.lora_down.weight": pair.down.contiguous(),
                    f"{key}.lora_up.weight": pair.up.contiguous(),
                    f"{key}.alpha": torch.tensor(task.alpha),
                }
    # What diffusers and `semiocity generate` read alpha from; without it, they take alpha = rank. Layers are named by
    # endings that fit CLIP's with and without OLD_CLIP.
    settings = {
        f"{part}.{key}": value
        for part, state in trained.items()
        for key, value in {
            "r": task.options.rank,
            "lora_alpha": task.alpha,
            "target_modules": sorted(name.removeprefix(OLD_CLIP) for name in adapters(state)),
        }.items()
    }
    # One entry of metadata a file: safetensors writes several in an order that changes from run to run, and equal
    # weights must be equal bytes.
    save_file(diffusers, folder / LORA, {"lora_adapter_metadata": json.dumps(settings, sort_keys=True)})
    save_file(comfyui, folder / LORA_COMFYUI, {"ss_network_alpha": str(task.alpha)})
    _describe(task, folder, facts, "lora")


def _in_files(part: str, layer: str) -> str:
    """The name that files have for a layer: CLIP's still begin with OLD_CLIP, which ComfyUI and transformers 4 want."""
    return OLD_CLIP + layer.removeprefix(OLD_CLIP) if part == CLIP else layer


def adapters(state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> (down, up) of what peft put into a model."""
    ends = (".lora_A.default.weight", ".lora_B.default.weight")
    layers = [name.removesuffix(ends[0]) for name in state if name.endswith(ends[0])]
    return {layer: (state[layer + ends[0]], state[layer + ends[1]]) for layer in layers}


def _whole(task: FluxTask, trained: Tensors) -> dict[str, Tensor]:
    """The transformer's weights: those that were trained, the others from the pipeline's own files."""
    dtype = _dtype(task)
    state = {name: tensor.to(dtype) for name, tensor in trained.items()}
    for file in weights.weight_files(task.folder / TRANSFORMER, "model.pretrained"):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                if name not in state:
                    state[name] = opened.get_tensor(name).to(dtype)
    return state


def _dtype(task: FluxTask) -> torch.dtype:
    return torch.bfloat16 if task.job.export_dtype == "bf16" else torch.float32


def _bring(source: Path, target: Path, copy: bool) -> None:
    if not copy:
        target.symlink_to(source.resolve())
    elif source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(weights.CACHE))
    else:
        shutil.copy(source, target)


def _describe(task: FluxTask, folder: Path, facts: dict[str, Any], kind: str) -> None:
    """config.json, which `semiocity generate` reads, and the model card."""
    job = task.job
    options = job.options.model_dump(mode="json")
    licence = None
    for name in LICENCES:
        if (task.folder / name).is_file():
            shutil.copy(task.folder / name, folder / name)
            licence = name
            break
    about = {
        "format": FORMAT,
        "family": "flux",
        "kind": kind,
        "pretrained": str(task.folder),
        "base": model_files.origin(task.options.pretrained)._asdict(),
        "pretrained_digests": dict(task.frozen_digests()),
        "size": list(job.data.height_width),
        "text_tokens": task.options.text_tokens,
        "guidance_embeds": bool(task.config["guidance_embeds"]),
        "model": options,
        "optimizer": job.optimizer.model_dump(mode="json"),
        "steps": job.steps,
        "global_batch": job.global_batch,
        **facts,
    }
    write_json(folder / "config.json", about)
    write_atomic(folder / "README.md", card(about, licence).encode())


def card(about: Mapping[str, Any], licence: str | None) -> str:
    """A model card in the hub's format."""
    is_lora = about["kind"] == "lora"
    base, repo, commit = (about["base"][key] for key in ("name", "repo", "commit"))
    place = f'"{repo}", revision="{commit}"' if repo and commit else f'"{repo or base}"'
    use = (
        f"pipe = FluxPipeline.from_pretrained({place}, torch_dtype=torch.bfloat16)\n"
        f'pipe.load_lora_weights(".", weight_name="{LORA}")'
        if is_lora
        else 'pipe = FluxPipeline.from_pretrained(".", torch_dtype=torch.bfloat16)'
    )
    notes = (
        f"The base model's licence is in `{licence}`; it binds whoever uses or passes on these weights."
        if licence
        else "The base model's folder held no licence file. Its licence binds whoever uses or passes on these weights: "
        "FLUX.1-dev may not be used commercially without an agreement, FLUX.1-schnell is under Apache 2.0."
    )
    tags = ["text-to-image", "flux", "diffusers", *(["lora"] if is_lora else [])]
    head = ["---", "library_name: diffusers", "pipeline_tag: text-to-image"]
    if repo:  # a folder's own name would be taken for a repository of that name
        head += [f"base_model: {repo}", f"base_model_relation: {'adapter' if is_lora else 'finetune'}"]
    head.append("tags:")
    head += [*(f"- {tag}" for tag in tags), "---"]
    config = {name: about[name] for name in ("model", "optimizer", "steps", "global_batch", "size", "seed")}
    config["model"] = {key: value for key, value in config["model"].items() if key != "pretrained"}
    return "\n".join(
        [
            *head,
            "",
            f"# {base}, {'a LoRA' if is_lora else 'fine-tuned'} on {about['dataset']}",
            "",
            f"Trained by Semiocity for {about['step']} steps of {about['global_batch']} images on the dataset "
            f"`{about['dataset']}`, digest `{about['dataset_digest']}`. It began from "
            + (f"`{repo}`" + (f" at commit `{commit}`" if commit else "") if repo else f"a folder `{base}`")
            + ".",
            "",
            "```python",
            "import torch",
            "from diffusers import FluxPipeline",
            "",
            use,
            'image = pipe("a street at dusk", guidance_scale=3.5).images[0]',
            "```",
            "",
            "## Licence",
            "",
            notes,
            "The licences of the training images are those of the dataset; ask whoever made it.",
            "",
            "## How it was trained",
            "",
            "```json",
            json.dumps(config, indent=1, sort_keys=True),
            "```",
            "",
            "Digests of the weights it began from: "
            + ", ".join(f"{part} `{found}`" for part, found in sorted(about["pretrained_digests"].items()))
            + ".",
            "",
        ]
    )
