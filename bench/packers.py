"""The contenders of bench/packing.py: `python packers.py NAME FOLDER` packs FOLDER/in whenever it is asked to.

Every contender reads the same files, writes a jpg and a json a sample, and ends with fsync. Runs in our environment and
in that of the peers, so nothing of ours is imported but by our own contender.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from contest import serve


def names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:  # not Path.iterdir, which takes three times as long
        return sorted(entry.name.removesuffix(".jpg") for entry in entries if entry.name.endswith(".jpg"))


def content(path: str) -> bytes:
    """What Path.read_bytes does, in half the time: all contenders in Python read so."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def samples(folder: Path) -> Iterator[tuple[str, bytes, bytes]]:
    """(name, jpg, json)"""
    for name in names(folder):
        yield name, content(f"{folder}/{name}.jpg"), content(f"{folder}/{name}.json")


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def plain(source: Path, out: Path) -> None:
    """The machine's limit: the bytes one after the other in one file."""
    with (out / "all").open("wb", buffering=1 << 20) as file:
        for _, image, meta in samples(source):
            file.write(image)
            file.write(meta)
        file.flush()
        os.fsync(file.fileno())


def ours(source: Path, out: Path) -> None:
    from semiocity.data.keys import key_of
    from semiocity.data.shard import Head, ShardPath, ShardWriter

    head = Head(
        "base",
        "aaaaaaaaaa",
        0,
        {},
        {"name": "pack", "version": 1, "args": {}},
        None,
        {},
        {"image": "jpg", "meta": "json"},
    )
    with ShardWriter(ShardPath(out, 0), head) as writer:
        for key, name in sorted((key_of(name), name) for name in names(source)):
            image, meta = content(f"{source}/{name}.jpg"), content(f"{source}/{name}.json")
            writer.add(key, {"image": ("jpg", image), "meta": ("json", meta)})
        writer.publish()


def gnu_tar(source: Path, out: Path) -> None:
    subprocess.run(["tar", "--format=ustar", "--sort=name", "-C", source, "-cf", out / "all.tar", "."], check=True)
    fsync(out / "all.tar")


def gnu_tar_sha256(source: Path, out: Path) -> None:
    gnu_tar(source, out)
    subprocess.run(["sha256sum", out / "all.tar"], check=True, stdout=subprocess.DEVNULL)


def python_tarfile(source: Path, out: Path) -> None:
    import io
    import tarfile

    with tarfile.open(out / "all.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, image, meta in samples(source):
            for extension, data in (("jpg", image), ("json", meta)):
                info = tarfile.TarInfo(f"{name}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    fsync(out / "all.tar")


def webdataset(source: Path, out: Path) -> None:
    from webdataset import ShardWriter

    # encoder=False: what is bytes already need not be looked at; its fastest setting.
    with ShardWriter(f"{out}/%06d.tar", maxcount=10**9, maxsize=10**12, verbose=0, encoder=False) as writer:
        for name, image, meta in samples(source):
            writer.write({"__key__": name, "jpg": image, "json": meta})
    fsync(out / "000000.tar")


def mosaicml(source: Path, out: Path) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(out / "mds"), columns={"jpg": "bytes", "json": "bytes"}, hashes=["sha256"]) as writer:
        for _, image, meta in samples(source):
            writer.write({"jpg": image, "json": meta})
    for path in (out / "mds").iterdir():
        fsync(path)


def litdata(source: Path, out: Path) -> None:
    from litdata import optimize

    optimize(
        fn=_litdata_sample,
        inputs=[str(path) for path in sorted(source.glob("*.jpg"))],
        output_dir=str(out / "litdata"),
        chunk_bytes="64MB",
        num_workers=1,
    )
    for path in (out / "litdata").iterdir():
        fsync(path)


def _litdata_sample(name: str) -> dict[str, bytes]:
    path = Path(name)
    return {"jpg": path.read_bytes(), "json": path.with_suffix(".json").read_bytes()}


CONTENDERS: dict[str, Callable[[Path, Path], None]] = {
    "plain write (limit)": plain,
    "Semiocity, sha256 and crc32": ours,
    "GNU tar": gnu_tar,
    "GNU tar, then sha256sum": gnu_tar_sha256,
    "Python tarfile": python_tarfile,
    "webdataset ShardWriter": webdataset,
    "mosaicml-streaming, sha256": mosaicml,
    "litdata optimize, 1 worker": litdata,
}
FOREIGN = ("mosaicml-streaming, sha256", "litdata optimize, 1 worker")


def timed(name: str, source: Path, out: Path) -> float:
    """Seconds of one contender."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    began = time.perf_counter()
    CONTENDERS[name](source, out)
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    return seconds


def prepare(name: str, folder: Path) -> None:
    """Importing and reading the pictures from disk do not count."""
    few = folder / f"few-{name.replace(' ', '-')}"
    few.mkdir()
    for path in sorted((folder / "in").iterdir())[:8]:
        shutil.copy(path, few)
    timed(name, few, folder / name.replace(" ", "-"))
    for path in (folder / "in").iterdir():
        path.read_bytes()


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    serve(
        lambda: prepare(name, folder),
        lambda: timed(name, folder / "in", folder / name.replace(" ", "-")),
    )
