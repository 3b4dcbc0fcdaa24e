"""The contenders of bench/reading.py: `python readers.py NAME FOLDER` reads every sample whenever it is asked to.

`prepare NAME FOLDER` writes what a contender reads, from FOLDER/in. All read the jpg and the json of each sample, in
one process; those that decode make uint8 [H, W, 3] of the jpg. Runs in our environment and in the peers'.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import packers
from contest import serve


def blocks(folder: Path) -> Iterable[bytes]:
    """The machine's limit: the file's bytes, a MB at a time."""
    with (folder / "plain/all").open("rb", buffering=0) as file:
        while block := file.read(1 << 20):
            yield block


def files(folder: Path) -> Iterable[tuple[bytes, bytes]]:
    for _, image, meta in packers.samples(folder / "in"):
        yield image, meta


def ours(folder: Path, check: bool = False, shuffled: bool = False) -> Iterable[dict[str, Any]]:
    import random

    from semiocity.data.columns import Dataset

    view = Dataset.open(folder / "ours/data").view(["base.image", "base.meta"])
    order = list(range(len(view)))
    if shuffled:
        random.Random(0).shuffle(order)
    for i in order:
        yield view.read(i, check)


def ours_checked(folder: Path) -> Iterable[dict[str, Any]]:
    return ours(folder, check=True)


def ours_shuffled(folder: Path) -> Iterable[dict[str, Any]]:
    return ours(folder, shuffled=True)


def ours_decoded(folder: Path) -> Iterable[Any]:
    from semiocity.data.decode import decode_rgb

    for row in ours(folder, check=True):
        yield decode_rgb(row["base.image"])


def webdataset(folder: Path, *stages: Any) -> Iterable[Any]:
    import webdataset as wds

    return wds.WebDataset(str(folder / "webdataset/000000.tar"), shardshuffle=False, empty_check=False).compose(*stages)


def webdataset_shuffled(folder: Path) -> Iterable[Any]:
    import webdataset as wds

    return webdataset(folder, wds.shuffle(1000))


def webdataset_decoded(folder: Path) -> Iterable[Any]:
    import webdataset as wds

    return webdataset(folder, wds.decode("rgb8"))


def mosaicml(folder: Path, shuffle: bool = False) -> Iterable[Any]:
    from streaming import StreamingDataset

    return StreamingDataset(local=str(folder / "mosaicml/mds"), shuffle=shuffle, batch_size=1)


def mosaicml_shuffled(folder: Path) -> Iterable[Any]:
    return mosaicml(folder, shuffle=True)


def litdata(folder: Path) -> Iterable[Any]:
    from litdata import StreamingDataset

    return StreamingDataset(str(folder / "litdata/litdata"), shuffle=False)


def decode_loop(folder: Path) -> Iterable[Any]:
    """What any reader must pay: simplejpeg over bytes in memory."""
    import simplejpeg

    payloads = [image for _, image, _ in packers.samples(folder / "in")]
    began = time.perf_counter()
    for image in payloads:
        yield simplejpeg.decode_jpeg(image)
    decode_loop.seconds = time.perf_counter() - began  # type: ignore[attr-defined]


def pillow_loop(folder: Path) -> Iterable[Any]:
    import numpy as np
    from PIL import Image

    for _, image, _ in packers.samples(folder / "in"):
        yield np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


RAW: dict[str, Callable[[Path], Iterable[Any]]] = {
    "read() in blocks (limit)": blocks,
    "Semiocity": ours,
    "Semiocity, shuffled": ours_shuffled,
    "Semiocity, crc32 checked": ours_checked,
    "folder of files": files,
    "webdataset": webdataset,
    "webdataset, shuffle(1000)": webdataset_shuffled,
    "mosaicml-streaming": mosaicml,
    "mosaicml-streaming, shuffled": mosaicml_shuffled,
    "litdata": litdata,
}
DECODED: dict[str, Callable[[Path], Iterable[Any]]] = {
    "simplejpeg over bytes in memory (limit)": decode_loop,
    "Semiocity, decoded": ours_decoded,
    "webdataset, decode(rgb8) by Pillow": webdataset_decoded,
    "Pillow over a folder of files": pillow_loop,
}
FOREIGN = ("mosaicml-streaming", "mosaicml-streaming, shuffled", "litdata")


def pack_ours(source: Path, out: Path) -> None:
    from semiocity.data.lease import Owner
    from semiocity.data.manifest import merge
    from semiocity.data.pack import pack_shards
    from semiocity.data.plan import make_plan
    from semiocity.data.recipe import Recipe

    recipe = Recipe.model_validate({"name": "bench", "source": {"kind": "folder", "root": str(source)}})
    plan = make_plan(recipe, out / "data")
    pack_shards(plan, range(plan.shards), Owner.here())
    merge(out / "data", "base", plan.revision)


PREPARE: dict[str, Callable[[Path, Path], None]] = {
    "plain": packers.plain,
    "ours": pack_ours,
    "webdataset": packers.webdataset,
    "mosaicml": packers.mosaicml,
    "litdata": packers.litdata,
}


PASSES = 5
"""Of those that do not decode: one would be over too soon."""


def measure(name: str, folder: Path) -> float:
    """Seconds a pass."""
    reader, passes = (RAW | DECODED)[name], PASSES if name in RAW else 1
    began = time.perf_counter()
    for _ in range(passes):
        for _ in reader(folder):
            pass
    seconds = (time.perf_counter() - began) / passes
    return float(getattr(reader, "seconds", seconds))


def prepare(name: str, folder: Path) -> None:
    target = folder / name
    target.mkdir()
    PREPARE[name](folder / "in", target)


def warm_up(name: str, folder: Path) -> None:
    """Importing, and opening for the first time, do not count."""
    for _ in zip(range(50), (RAW | DECODED)[name](folder)):
        pass


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(sys.argv[2], Path(sys.argv[3]))
    else:
        name, folder = sys.argv[1], Path(sys.argv[2])
        serve(lambda: warm_up(name, folder), lambda: measure(name, folder))
