"""Read a folder with another tool and print what it saw. Runs in the peers' environment, without Semiocity.

    python read_with_peers.py TOOL FOLDER SPLIT

Prints one JSON object: for tar readers key → extension → sha256; for the others what the tests compare.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tars(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.rglob("*.tar"))]


def webdataset(folder: Path, split: str) -> Any:
    """Each folder of `folder` that has tars in it, for itself: relative path → rows."""
    import webdataset as wds

    options = (
        {"shardshuffle": False} if wds.__version__.startswith("0.") else {"shardshuffle": False, "empty_check": False}
    )
    found = {}
    for place in sorted({Path(path).parents[1] for path in tars(folder)}):
        samples = list(wds.WebDataset(tars(place), **options))
        rows = {s["__key__"]: {k: sha(v) for k, v in s.items() if not k.startswith("__")} for s in samples}
        found[str(place.relative_to(folder))] = rows
    return {"version": wds.__version__, "rows": found}


def datasets_tars(folder: Path, split: str) -> Any:
    import datasets

    rows = datasets.load_dataset("webdataset", data_files={"train": tars(folder)}, split="train")
    found = {}
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    for row in rows:
        key = row.pop("__key__")
        row.pop("__url__")
        found[key] = {
            ext: sha(value["bytes"]) if isinstance(value, dict) and "bytes" in value else value
            for ext, value in row.items()
        }
    return {"version": datasets.__version__, "rows": found}


def _dataset(rows: Any) -> dict[str, Any]:
    """Rows of a `datasets` table: pixels decoded by its own Image feature."""
    import numpy as np

    return {
        row["key"]: {
            "image": sha(np.asarray(row["image"].convert("RGB")).tobytes()),
            "size": row["image"].size,
            **(
                {"conditioning": list(row["conditioning_image"].getpixel((0, 0)))}
                if "conditioning_image" in row
                else {}
            ),
            **{name: value for name, value in row.items() if isinstance(value, (str, int, float, list))},
        }
        for row in rows
    }


def datasets_disk(folder: Path, split: str) -> Any:
    import datasets

    loaded = datasets.load_from_disk(str(folder))
    rows = loaded[split]
    names = rows.features["classes"].feature.names if "classes" in rows.features else []
    return {"version": datasets.__version__, "splits": sorted(loaded), "classes": names, "rows": _dataset(rows)}


def datasets_folder(folder: Path, split: str) -> Any:
    """A folder by what lies in it: parquet files with a card, or pictures with metadata."""
    import datasets

    loaded = datasets.load_dataset(str(folder))
    names = {"val": "validation"}
    rows = loaded[split if split in loaded else names[split]]
    classes = rows.features["classes"].feature.names if "classes" in rows.features else []
    return {"version": datasets.__version__, "splits": sorted(loaded), "classes": classes, "rows": _dataset(rows)}


def energon(folder: Path, split: str) -> Any:
    from importlib.metadata import version

    from megatron.energon import Cooker, DefaultTaskEncoder, WorkerConfig, get_loader, get_val_dataset

    class Plain(DefaultTaskEncoder):
        cookers = (Cooker(lambda sample: sample),)

        def batch(self, samples: list[Any]) -> list[Any]:
            return samples

    worker = WorkerConfig(rank=0, world_size=1, num_workers=0)
    found: dict[str, Any] = {}
    dataset = get_val_dataset(str(folder), split_part=split, worker_config=worker, batch_size=1, task_encoder=Plain())
    for (sample,) in get_loader(dataset):
        if isinstance(sample, dict):
            key = sample["__key__"].rpartition("/")[2]
            found[key] = {k: sha(v) for k, v in sample.items() if isinstance(v, bytes)}
        else:
            key = sample.__key__.rpartition("/")[2]
            found[key] = {"kind": type(sample).__name__, "shape": list(sample.image.shape), "caption": sample.caption}
    return {"version": version("megatron-energon"), "rows": found}


def energon_index(folder: Path, split: str) -> Any:
    """What `energon prepare` itself would write for these tars."""
    import tempfile

    from megatron.energon.epathlib import EPath
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

    made = {}
    with tempfile.TemporaryDirectory() as scratch:
        for path in tars(folder):
            name = str(Path(path).relative_to(folder))
            copy = Path(scratch) / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(path)
            shard, _ = WebdatasetPreparator._preprocess_tar(name, EPath(scratch).url, 50)
            made[name] = {"rows": shard.count, "index": sha(Path(f"{copy}.idx").read_bytes())}
    return made


def webshart(folder: Path, split: str) -> Any:
    import webshart as tool

    dataset = tool.discover_dataset(str(folder / split))
    loader = tool.TarDataLoader(dataset)
    found: dict[str, Any] = {}
    for shard in range(dataset.num_shards):
        for number in range(dataset.get_shard_info(shard)["num_samples"]):
            entry = loader.load_sample(shard, number)
            found[entry.path] = {"image": sha(bytes(entry.data)), "captions": entry.captions}
    return {"version": tool.__version__, "rows": found}


def fiftyone(folder: Path, split: str) -> Any:
    """Through FiftyOne's importer, which needs no database. `label`, box in pixels and area of each detection."""
    import fiftyone as tool
    from fiftyone.utils.coco import COCODetectionDatasetImporter

    importer = COCODetectionDatasetImporter(str(folder / split), label_types=["segmentations"])
    importer.setup()
    found = {}
    for path, metadata, label in importer:
        detections = label["segmentations"].detections if isinstance(label, dict) else label.detections if label else []
        assert Path(path).is_file()
        found[Path(path).stem] = [
            [
                d.label,
                [round(v * s) for v, s in zip(d.bounding_box, [metadata.width, metadata.height] * 2)],
                int(d.mask.sum()),
            ]
            for d in detections
        ]
    return {"version": tool.__version__, "rows": found}


if __name__ == "__main__":
    TOOLS = (webdataset, datasets_tars, datasets_disk, datasets_folder, energon, energon_index, webshart, fiftyone)
    tool_, folder_, split_ = sys.argv[1:]
    with contextlib.redirect_stdout(io.StringIO()):
        result = {function.__name__: function for function in TOOLS}[tool_](Path(folder_), split_)
    print(json.dumps(result))
