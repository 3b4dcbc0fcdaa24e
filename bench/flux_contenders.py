"""What bench/flux_step.py compares: our engine and task, and diffusers' training script, each on random weights.

`flux_contenders.py JSON` answers a list of questions, a line each. On a GPU flux_step.py starts one for every case, so
that nothing of the cases before is in its memory.
"""

from __future__ import annotations

import gc
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from flux_architecture import DEV, SCHEDULER, TINY, VAE
from torch import Tensor

LAYERS = ["attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0", "attn.add_k_proj", "attn.add_q_proj",
          "attn.add_v_proj", "attn.to_add_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj",
          "ff_context.net.2"]  # fmt: skip
"""Where the script puts adapters unless told otherwise."""
RANK = 16


class Case(NamedTuple):
    """One line of the table."""

    contender: str
    kind: str
    """`full` or `lora`."""
    size: int
    """Side of the pictures in pixels."""
    recompute: bool
    """Activation checkpointing of every block."""
    batch: int
    steps: int
    tiny: bool
    text_tokens: int

    @property
    def config(self) -> dict[str, Any]:
        return TINY if self.tiny else DEV

    @property
    def latent(self) -> tuple[int, int, int]:
        return (16, self.size // 8, self.size // 8)


def batch_of(case: Case, device: torch.device) -> dict[str, Tensor]:
    """Latents and embeddings that both contenders train on, in the GPU's memory."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(case.batch, *shape, generator=random).to(device)

    config = case.config
    return {
        "latent": normal(*case.latent),
        "noise": normal(*case.latent),
        "prompt": normal(case.text_tokens, config["joint_attention_dim"]).bfloat16(),
        "pooled": normal(config["pooled_projection_dim"]).bfloat16(),
        "share": torch.rand(case.batch, generator=random).to(device),
    }


def transformer(case: Case, device: torch.device, dtype: torch.dtype) -> Any:
    """The architecture with random weights, made where it is used: 11.9 B parameters pass through no host memory."""
    from diffusers import FluxTransformer2DModel

    loader: Any = FluxTransformer2DModel
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return loader.from_config(case.config).to(dtype)
    finally:
        torch.set_default_dtype(before)


# -- ours -------------------------------------------------------------------------------------------------------------


def ours(case: Case, device: torch.device, folder: Path) -> Callable[[], float]:
    """The tasks `flux-full` (bf16 with stochastic rounding: 6 bytes a parameter) and `flux-lora` in an engine, as the
    loop drives them."""
    from semiocity.config import check
    from semiocity.models import flux
    from semiocity.train import zero
    from semiocity.train.options import TrainJob
    from semiocity.train.tasks.base import DatasetFacts
    from semiocity.train.tasks.flux_full import FluxFullTask
    from semiocity.train.tasks.flux_lora import FluxLoraTask

    for part, config in (("transformer", case.config), ("vae", VAE), ("scheduler", SCHEDULER)):
        (folder / part).mkdir()
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / name).write_text(json.dumps(config))
    full, compiled = case.kind == "full", case.contender == "ours, compiled"
    job = check(
        {
            "task": f"flux-{case.kind}",
            "dataset": "none",
            "steps": 1000,
            "global_batch": case.batch,
            "data": {"size": case.size},
            "zero": {"stage": 2, "precision": "bf16"},
            "optimizer": {"lr": 1e-5, **({"kind": "adamw_bf16"} if full else {})},
            **({"compile": "blocks"} if compiled else {}),
            "model": {
                "pretrained": str(folder),
                "text_tokens": case.text_tokens,
                "average": False,
                "recompute": "all" if case.recompute else 0,
                **({} if full else {"rank": RANK}),
            },
        },
        TrainJob,
        "bench",
    )

    def drawn(task: Any) -> Any:
        model = transformer(case, device, torch.bfloat16)
        flux.recompute_blocks(model, None if case.recompute else 0)
        return model.requires_grad_(False)

    # Weights are drawn here instead of being read from 24 GB of files.
    base: Any = FluxFullTask if full else FluxLoraTask
    task = type("Drawn", (base,), {"_transformer": drawn})(job, DatasetFacts("none", "0", (), (), None))
    (phase,) = task.phases()
    modules = dict(phase.modules)
    if compiled:
        from semiocity.train import compiling

        compiling.compile_blocks(modules.values())
    data = batch_of(case, device)
    empty = torch.zeros_like(data["prompt"][:1]), torch.zeros_like(data["pooled"][:1])
    task.known[""] = empty
    batch = {
        "mean": data["latent"],
        "noise": data["noise"],
        "prompt": data["prompt"],
        "pooled": data["pooled"],
        "share": data["share"].double(),
        "drop": torch.zeros(case.batch, dtype=torch.bool, device=device),
        "weight": torch.ones(case.batch, device=device),
    }
    engine = zero.Engine(
        phase,
        zero.Bundle(phase, task, modules),
        micro_batch=case.batch,
        accumulation=1,
        device=device,
        alone=True,
    )
    numbers = itertools.count()

    def step() -> float:
        shown = engine.backward(batch, next(numbers), True)
        engine.step_with(1e-5)
        total, count = shown["loss"]
        return float(total) / float(count)

    return step


# -- diffusers' script ------------------------------------------------------------------------------------------------


def diffusers_script(case: Case, device: torch.device, folder: Path) -> Callable[[], float]:
    """What examples/dreambooth/train_dreambooth_flux.py and train_dreambooth_lora_flux.py do in a step, written anew,
    with --mixed_precision bf16, --weighting_scheme logit_normal, --gradient_checkpointing where asked, and for all
    weights --use_8bit_adam: without that nothing fits one GPU. Latents and embeddings are cached, as ours.

    All weights are kept in fp32 and cast by autocast; `diffusers, bf16 weights` keeps them in bf16, for which the
    script has no option. Adapters are fp32 beside a bf16 base.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    lora = case.kind == "lora"
    weights = torch.bfloat16 if lora or case.contender == "diffusers, bf16 weights" else torch.float32
    model = transformer(case, device, weights).train()
    if lora:
        from peft import LoraConfig

        model.requires_grad_(False)
        config = LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=LAYERS)
        model.add_adapter(config)
    if case.recompute:
        model.enable_gradient_checkpointing()
    trained = [p for p in model.parameters() if p.requires_grad]
    if lora:
        optimizer: Any = torch.optim.AdamW(trained, lr=1e-5, weight_decay=1e-4)
    else:
        from bitsandbytes.optim import AdamW8bit

        optimizer = AdamW8bit(trained, lr=1e-5, weight_decay=1e-4)
    maker: Any = FlowMatchEulerDiscreteScheduler
    scheduler = maker(**SCHEDULER)
    pipeline: Any = FluxPipeline
    data = batch_of(case, device)
    latent, b = data["latent"].bfloat16(), case.batch
    _, height, width = case.latent

    def step() -> float:
        image_ids = pipeline._prepare_latent_image_ids(b, height // 2, width // 2, device, torch.bfloat16)
        text_ids = torch.zeros(case.text_tokens, 3, device=device, dtype=torch.bfloat16)
        noise = torch.randn_like(latent)
        u = torch.sigmoid(torch.normal(0.0, 1.0, (b,)))
        times = scheduler.timesteps[(u * scheduler.config.num_train_timesteps).long()].to(device)
        # One by one, as there: each look-up waits for the GPU.
        known = scheduler.timesteps.to(device)
        places = [(known == time).nonzero().item() for time in times]
        sigma = scheduler.sigmas.to(device, latent.dtype)[places].view(-1, 1, 1, 1)
        mixed = (1.0 - sigma) * latent + sigma * noise
        guidance = torch.tensor([3.5], device=device).expand(b)
        with torch.autocast(device.type, torch.bfloat16):
            predicted = model(
                hidden_states=pipeline._pack_latents(mixed, b, 16, height, width),
                timestep=times / 1000,
                guidance=guidance,
                pooled_projections=data["pooled"],
                encoder_hidden_states=data["prompt"],
                txt_ids=text_ids,
                img_ids=image_ids,
                return_dict=False,
            )[0].float()
        predicted = pipeline._unpack_latents(predicted, height * 8, width * 8, 8)
        weighting = torch.ones_like(sigma).float()
        loss = (weighting * (predicted - (noise - latent).float()) ** 2).reshape(b, -1).mean(1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach().item()

    return step


CONTENDERS: dict[str, Callable[[Case, torch.device, Path], Callable[[], float]]] = {
    "ours": ours,
    "ours, compiled": ours,
    "diffusers": diffusers_script,
    "diffusers, bf16 weights": diffusers_script,
}


# -- measuring --------------------------------------------------------------------------------------------------------


def peak_tflops(device: torch.device) -> float:
    """What a large bf16 matrix product on random data reaches here."""
    side, repeats = (8192, 20) if device.type == "cuda" else (256, 3)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        a @ b
    wait(device)
    return 2 * side**3 * repeats / (time.perf_counter() - began) / 1e12


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(case: Case, device: torch.device) -> dict[str, Any]:
    """Median seconds of a step, losses, peak memory; or why there are none. Inside a session."""
    from semiocity.errors import UserError
    from semiocity.train import zero

    with tempfile.TemporaryDirectory() as folder:
        try:
            if case.contender.startswith("ours"):
                zero.start_deepspeed()
            step = CONTENDERS[case.contender](case, device, Path(folder))
            losses = [step() for _ in range(2)]
            wait(device)
            seconds = []
            for _ in range(case.steps):
                began = time.perf_counter()
                losses.append(step())
                wait(device)
                seconds.append(time.perf_counter() - began)
        except torch.OutOfMemoryError:
            return {"fault": "out of memory"}
        except ImportError as error:
            return {"fault": f"not installed: {error.name}"}
        except UserError as error:
            return {"fault": str(error)}
        finally:
            gc.collect()
        peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    return {"s_per_step": statistics.median(seconds), "losses": losses, "peak_gb": peak}


def main(words: list[str]) -> None:
    questions = json.loads(words[0])
    gpu = torch.cuda.is_available()
    about = {"device": torch.cuda.get_device_name() if gpu else "CPU", "gpu": gpu, "torch": torch.__version__}
    print(json.dumps(about), flush=True)
    if not questions:
        return
    from semiocity.launch.world import single
    from semiocity.train import zero

    with zero.session(single("flux-step"), 1) as device:
        for question in questions:
            answer = peak_tflops(device) if question == "peak" else measure(Case(**question), device)
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
