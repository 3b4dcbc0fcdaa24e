"""A small random Flux learns eight captioned pictures by heart on two CPU ranks, all weights and by LoRA; the picture
that docs/flux.md shows: targets above, samples below.

    python bench/flux_overfit.py --out docs/flux-overfit.png    pictures of the source `city`
    python bench/flux_overfit.py --root CAMVID                   the same with photographs of CamVid

Everything is what a real training uses, at tiny size: the stages `caption`, `latent` and `text`, CLIP and T5 with
random weights, an AutoencoderKL that this script first teaches the eight pictures, the tasks `flux-full` and
`flux-lora`. Some ten minutes on two cores. Exit 1 unless every sample is nearest to its own target.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from semiocity.data.columns import Dataset
from semiocity.data.lease import Owner
from semiocity.data.loader import to_unit
from semiocity.data.manifest import merge
from semiocity.data.pack import pack_shards
from semiocity.data.plan import make_plan
from semiocity.data.recipe import Recipe
from semiocity.stages.text_encoders import Tokenizers
from semiocity.train.metrics import read_metrics

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "train")]
models: Any = importlib.import_module("tiny_flux")
data: Any = importlib.import_module("flux_data")
ranks: Any = importlib.import_module("train_ranks")

ROWS, SIDE = 8, 64
TASKS = ("flux-full", "flux-lora")
Pictures = NDArray[np.uint8]


def pack(folder: Path, source: dict[str, Any]) -> Path:
    """A dataset of eight pictures of 64² with captions from their label maps."""
    image = {"resize": "crop", "size": [SIDE, SIDE], "format": "png"}
    recipe = Recipe.model_validate({"name": folder.name, "source": source, "image": image, "shard_rows": ROWS})
    plan = make_plan(recipe, folder)
    assert pack_shards(plan, range(plan.shards), Owner.here(), stop=lambda: False, report=lambda facts: None)
    merge(folder, "base", plan.revision)
    data.add_column(folder, "caption", captioner="labels")
    return folder


def eight_of(root: Path, folder: Path) -> Path:
    """Eight photographs of CamVid, spread over its drives, and one for its split `val`."""
    for split, wanted in (("train", ROWS), ("val", 1)):
        images = sorted((root / split).iterdir())
        for image in images[:: len(images) // wanted][:wanted]:
            for part, found in ((split, image), (f"{split}annot", _label_of(root, split, image))):
                (folder / part).mkdir(parents=True, exist_ok=True)
                (folder / part / found.name).symlink_to(found.resolve())
    return folder


def _label_of(root: Path, split: str, image: Path) -> Path:
    return next((root / f"{split}annot").glob(f"{image.stem}.*"))


def pictures_of(dataset: Path) -> Pictures:
    """The pictures of the split `train`: [8, 64, 64, 3]."""
    view = Dataset.open(dataset).view(["base.image"], "train")
    rows = [view.read(i)["base.image"] or b"" for i in range(len(view))]
    return np.stack([np.asarray(Image.open(io.BytesIO(row)).convert("RGB")) for row in rows])


def tokens_apart(dataset: Path, model: Path) -> int:
    """Tokens of text after which T5 has told all captions from one another."""
    view = Dataset.open(dataset).view(["caption.text"], "train")
    texts = [(view.read(i)["caption.text"] or b"").decode() for i in range(len(view))]
    for tokens in (16, 32, 64, 128, 256, 512):
        _, ids = Tokenizers(model, tokens).ids(texts)
        if len(np.unique(ids, axis=0)) == len(texts):
            return tokens
    raise SystemExit("two of the captions are the same")


def teach_vae(pictures: Pictures, steps: int) -> Any:
    """An AutoencoderKL of Flux's form that reproduces these pictures, with the scale and shift of its latents."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    maker: Any = AutoencoderKL
    settings: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (16, 32, 64, 64),
        "layers_per_block": 1,
        "latent_channels": models.CHANNELS,
        "norm_num_groups": 8,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "sample_size": SIDE,
    }
    vae = maker(**settings)
    images = to_unit(torch.from_numpy(pictures.copy()))
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        found = vae.encode(images).latent_dist
        loss = (vae.decode(found.sample()).sample - images).abs().mean() + 1e-5 * found.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        if step % 50 == 49:
            print(f"VAE, step {step + 1}: mean error {float(loss.detach()):.4f}", flush=True)
    with torch.no_grad():
        means = vae.encode(images).latent_dist.mean
    vae.register_to_config(scaling_factor=float(1 / means.std()), shift_factor=float(means.mean()))
    return vae


def draw_transformer(folder: Path) -> None:
    """Weights as a training from scratch begins with, in place of the pipeline's, which are as large as tests want."""
    from diffusers import FluxTransformer2DModel

    loader: Any = FluxTransformer2DModel
    torch.manual_seed(0)
    model = loader.from_config(loader.load_config(folder / "transformer"))
    torch.nn.init.zeros_(model.proj_out.weight)
    model.save_pretrained(folder / "transformer")


def train(
    group: Any, task: str, model: Path, dataset: Path, run: Path, steps: int, tokens: int
) -> tuple[Pictures, float, float]:
    """Samples of the trained model [8, 64, 64, 3], and the mean loss of the first and of the last steps."""
    own: dict[str, Any] = {"text_tokens": tokens, "prompt_dropout": 0.0, "sample_steps": 28, "sample_guidance": 1.0}
    own |= {"rank": 32, "targets": ["*"], "average": True} if task == "flux-lora" else {"export_original": False}
    fp32 = {"stage": 2, "precision": "fp32"}
    settings = data.flux(task, model, fp32, own, steps=steps, sample_every=steps, sample_images=ROWS, log_every=200)
    settings |= {
        "optimizer": {"lr": 2e-3 if task == "flux-full" else 5e-3, "warmup_steps": 50, "schedule": "cosine"},
        "accumulation": 1,
    }
    settings |= {"data": {"size": SIDE, "cache_mb": 8}, "ema": {"decay": 0.99}, "checkpoint_every": steps}
    assert group.call(ranks.train, settings, run, dataset, 0, 0) == [True, True]
    losses = [line["loss"] for line in read_metrics(run / "metrics.jsonl")]
    grid = np.asarray(Image.open(run / "grids" / f"step-{steps:08d}.png")).reshape(ROWS, SIDE, 2 * SIDE, 3)
    return grid[:, :, SIDE:], float(np.mean(losses[:20])), float(np.mean(losses[-200:]))


def nearest(samples: Pictures, targets: Pictures) -> tuple[int, float]:
    """How many samples are nearest to their own target, and their mean distance from it in dB (PSNR)."""
    errors = ((samples[:, None].astype(float) - targets[None].astype(float)) ** 2).mean((2, 3, 4))
    right = int((errors.argmin(1) == np.arange(len(samples))).sum())
    return right, float(np.mean(10 * np.log10(255**2 / np.diag(errors))))


def show(rows: Sequence[Pictures], out: Path) -> None:
    """Rows of pictures below one another, twice as large."""
    gap = 4
    lines = []
    for row in rows:
        padded = np.pad(row, ((0, 0), (gap // 2, gap // 2), (gap // 2, gap // 2), (0, 0)), constant_values=255)
        lines.append(np.concatenate(list(padded), axis=1))
    sheet = Image.fromarray(np.concatenate(lines, axis=0))
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).quantize(256).save(out, optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of CamVid, in place of the source `city`")
    parser.add_argument("--out", type=Path, help="where to write the picture")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--vae-steps", type=int, default=400)
    a = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="overfit-") as name:
        folder = Path(name)
        if a.root:
            source: dict[str, Any] = {"kind": "camvid", "root": str(eight_of(a.root, folder / "source"))}
        else:
            source = {"kind": "city", "train": ROWS, "val": 1, "size": [SIDE, SIDE]}
        dataset = pack(folder / "data", source)
        targets = pictures_of(dataset)
        model = models.save_flux(folder / "model", blocks=(1, 2), heads=8)
        draw_transformer(model)
        teach_vae(targets, a.vae_steps).save_pretrained(model / "vae")
        tokens = tokens_apart(dataset, model)
        print(f"{tokens} tokens of text", flush=True)
        data.add_column(dataset, "latent", encoder="flux", model=str(model), size=SIDE)
        data.add_column(dataset, "text", encoder="flux", model=str(model), tokens=tokens)
        group = ranks.Ranks(2)
        found, rows = {}, [targets]
        try:
            for task in TASKS:
                samples, first, last = train(group, task, model, dataset, folder / task, a.steps, tokens)
                right, psnr = nearest(samples, targets)
                found[task] = {"right": right, "psnr_db": round(psnr, 1), "loss": [round(first, 3), round(last, 3)]}
                print(f"{task}: {found[task]}", flush=True)
                rows.append(samples)
        finally:
            group.close()
        if a.out:
            show(rows, a.out)
    print(json.dumps(found))
    return 0 if all(facts["right"] == ROWS for facts in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
