"""Generated images on disk. No torch here.

samples/
  plan.json              settings, their digest, and the keys of all layouts, in order
  KEY/00.png 01.png …    the images of one layout
  KEY/sample.json        their digests and seeds; the folder appears by one rename, complete
  manifest.json          everything above in one file, once all layouts are there
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semiocity.errors import UserError
from semiocity.evaluate.images import Pixels, Size, decode_image, encode_png, pixels_digest
from semiocity.files import digest, fsync_folder, read_json, write_json

FORMAT = 1
PARTIAL = ".partial"
"""Ending of folders that are being written."""


class Samples:
    """The images that a manifest lists."""

    def __init__(self, folder: Path) -> None:
        """`folder` holds manifest.json. UserError when it does not, or another format."""
        self.folder = folder
        self.manifest = read_manifest(folder / "manifest.json")
        self.layouts: dict[str, list[dict[str, Any]]] = {}
        """Key of a layout -> its images, by number."""
        for image in self.manifest["images"]:
            self.layouts.setdefault(image["key"], []).append(image)

    @property
    def size(self) -> Size:
        height, width = self.manifest["settings"]["size"]
        return height, width

    @property
    def images_per_layout(self) -> int:
        return int(self.manifest["settings"]["images_per_layout"])

    def read(self, image: Mapping[str, Any]) -> Pixels:
        """The pixels of one entry of the manifest: [H, W, 3]. UserError when the file is not what was generated."""
        path = self.folder / image["file"]
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"{path}: missing, though the manifest lists it; run `semiocity generate` again") from None
        if hashlib.sha256(data).hexdigest() != image["sha256"]:
            raise UserError(f"{path}: changed since it was generated; remove its folder and run `semiocity generate`")
        return decode_image(data)


def read_manifest(path: Path) -> dict[str, Any]:
    """A samples manifest; UserError when there is none, or one of another format."""
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `semiocity generate` writes it when all images are there") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise UserError(f"{path}: format {found!r}, this version reads {FORMAT}; run `semiocity generate` again")
    return manifest


def write_plan(
    folder: Path,
    settings: Mapping[str, Any],
    places: Mapping[str, str],
    keys: Sequence[str],
    about: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Say what is to be made; returns the digest of `settings`, which every sample.json repeats.

    `about`: what the manifest says of each key beside its images, such as the prompt.

    `places` are paths, relative to `folder`: they may change without the images changing. Every task writes the same.
    A manifest of other settings goes: it would name images that are about to be replaced.
    """
    name = digest(settings)
    manifest = folder / "manifest.json"
    with contextlib.suppress(FileNotFoundError, UserError):
        if read_json(manifest).get("settings_digest") != name:
            manifest.unlink()
    plan = {"format": FORMAT, "settings": settings, "settings_digest": name, "places": places, "keys": list(keys)}
    write_json(folder / "plan.json", {**plan, "about": about} if about else plan)
    return name


def is_done(folder: Path, key: str, settings_digest: str) -> bool:
    """Whether the images of a layout are there, made with these settings."""
    try:
        return read_json(folder / key / "sample.json").get("settings_digest") == settings_digest
    except (FileNotFoundError, UserError):
        return False


def publish(folder: Path, key: str, settings_digest: str, images: Sequence[Pixels], seeds: Sequence[str]) -> None:
    """Put the images of a layout into place by one rename; those of other settings are replaced."""
    partial = folder / f".{key}.{uuid.uuid4().hex[:8]}{PARTIAL}"
    partial.mkdir(parents=True)
    entries = []
    for number, (pixels, seed) in enumerate(zip(images, seeds, strict=True)):
        data, name = encode_png(pixels), f"{number:02d}.png"
        _write(partial / name, data)
        entries.append(
            {
                "file": name,
                "number": number,
                "seed": seed,
                "sha256": hashlib.sha256(data).hexdigest(),
                "pixels": pixels_digest(pixels),
            }
        )
    write_json(partial / "sample.json", {"format": FORMAT, "settings_digest": settings_digest, "images": entries})
    target = folder / key
    if target.exists():
        shutil.rmtree(target)
    try:
        partial.rename(target)
    except OSError:
        # Another task, started over this one's layouts, was quicker with the same images.
        if not is_done(folder, key, settings_digest):
            raise
        shutil.rmtree(partial)
    fsync_folder(folder)


def merge_samples(folder: Path) -> dict[str, Any]:
    """Write manifest.json from the plan and the layouts' own files. UserError when images are missing. Idempotent."""
    plan = read_manifest(folder / "plan.json")
    missing = [key for key in plan["keys"] if not is_done(folder, key, plan["settings_digest"])]
    if missing:
        raise UserError(
            f"{folder}: the images of {len(missing)} of {len(plan['keys'])} layouts are missing, such as {missing[0]}; "
            "run `semiocity generate` again, it makes only those"
        )
    images = [
        {**image, **plan.get("about", {}).get(key, {}), "key": key, "file": f"{key}/{image['file']}"}
        for key in plan["keys"]
        for image in read_json(folder / key / "sample.json")["images"]
    ]
    manifest = {name: plan[name] for name in ("format", "settings", "settings_digest", "places")}
    manifest["images"] = images
    write_json(folder / "manifest.json", manifest)
    for leftover in folder.glob(f".*{PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)
    return manifest


def complete(folder: Path, keys: Sequence[str], settings_digest: str) -> bool:
    """Whether all layouts are there. One listing decides in most cases."""
    names = {entry.name for entry in os.scandir(folder)}
    return names.issuperset(keys) and all(is_done(folder, key, settings_digest) for key in keys)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
