"""Folders of weights: where they are, whether they are complete, and what names their contents. Standard library and
pydantic only, so that a login node refuses what could not run.
"""

from __future__ import annotations

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import AfterValidator

from semiocity.errors import UserError
from semiocity.files import digest, read_json, write_json
from semiocity.stages import model_files

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
NAMES = (SINGLE, "diffusion_pytorch_model.safetensors")
"""Weights in one file, as transformers and diffusers name it; of several, `NAME.index.json` tells which."""
SMALL = (".json", ".txt", ".model")
"""Suffixes of what is read beside the weights: configuration and vocabularies."""
# Of each of these one name must be there; which one depends on the age of the folder.
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
TOKENIZERS = ("tokenizer.json", "vocab.json", "spiece.model")
CACHE = ".semiocity-sha256.json"
"""Hashes of large files, kept beside them where the folder can be written: name → [size, mtime in ns, sha256]."""
OURS = (CACHE, model_files.MARKER)

ModelFolder = AfterValidator(lambda path: path.expanduser().resolve())
"""Annotation for a model's folder in a stage's arguments: jobs run in another working folder than `submit`, and keep
the folder that a link like models/NAME means now."""


def resolve(folder: Path) -> Path:
    """The folder with the files: `folder`, or the snapshot of `refs/main` of a repository in the hub's cache."""
    reference = folder / "refs" / "main"
    if reference.is_file():
        return folder / "snapshots" / reference.read_text(encoding="ascii").strip()
    return folder


def check(folder: Path, where: str, model_type: str, tokenizer: bool = False) -> None:
    """Refuse a folder that `from_pretrained` could not load as `model_type`. Raises UserError beginning with `where`.

    Weights must be safetensors: the older pickles can run code when they are loaded.
    """
    model_files.require(folder, where)
    model_files.check_marked(folder, where, model_files.name_of(folder))
    folder = resolve(folder)
    found = read_config(folder, "config.json", where).get("model_type")
    if found != model_type:
        raise UserError(f"{where}: {folder}: holds a model of type {found!r}, not {model_type!r}")
    needed = [PROCESSORS, *([("tokenizer_config.json",), TOKENIZERS] if tokenizer else [])]
    for names in needed:
        if not any((folder / name).is_file() for name in names):
            raise UserError(f"{where}: {folder}: {' or '.join(names)} is missing; {model_files.remedy(folder)}")
    check_files(folder, where)


def check_files(folder: Path, where: str) -> None:
    """Refuse weights of which a file is missing or cut short. Reads headers alone."""
    for path in weight_files(folder, where):
        model_files.check_safetensors(path, where, model_files.remedy(folder))


def check_blip2(folder: Path, where: str) -> None:
    """Refuse BLIP-2 folders from before transformers 4.46, whose prompts have no places for the picture."""
    folder = resolve(folder)
    config = read_config(folder, "config.json", where)
    processor = read_config(folder, "processor_config.json", where)
    missing = [
        f"{key} in {name}"
        for key, name, found in (
            ("image_token_index", "config.json", config),
            ("num_query_tokens", "processor_config.json", processor),
        )
        if found.get(key) is None
    ]
    if missing:
        raise UserError(f"{where}: {folder}: no {' and no '.join(missing)}; fetch a newer revision of the model")


def revision(folder: Path, plain: bool = False) -> str:
    """Digest of the contents of everything that is loaded from a model's folder; where it lies does not matter.
    `plain`: there are no weights, as beside a tokenizer.

    In the hub's cache large files are named by their sha256, which is taken. Otherwise they are read once, and their
    hashes are kept beside them where that is possible.
    """
    folder = resolve(folder)
    names = sorted(path.name for path in folder.iterdir() if path.suffix in SMALL and path.name not in OURS)
    names += [] if plain else [path.name for path in weight_files(folder, str(folder))]
    known = _read_cache(folder)
    with ThreadPoolExecutor(4) as pool:
        sums = list(pool.map(lambda name: _sha256(folder / name, known.get(name)), names))
    large = {n: [*_stamp(folder / n), s] for n, s in zip(names, sums, strict=True) if n.endswith(".safetensors")}
    if large and large != known:
        with suppress(OSError):  # a folder that cannot be written is hashed anew each time
            write_json(folder / CACHE, large)
    return digest(dict(zip(names, sums, strict=True)))


def _sha256(path: Path, known: Any) -> str:
    target = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", target):
        return target
    if isinstance(known, list) and known[:2] == _stamp(path):
        return str(known[2])
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _read_cache(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads((folder / CACHE).read_text(encoding="ascii"))
        if isinstance(found, dict):
            return found
    return {}


def weight_files(folder: Path, where: str) -> list[Path]:
    """The safetensors files, sorted. Raises UserError when there are none or one that the index names is missing."""
    indices = [folder / f"{name}.index.json" for name in NAMES]
    if (index := next((path for path in indices if path.is_file()), None)) is not None:
        files = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    else:
        files = [next((folder / name for name in NAMES if (folder / name).is_file()), folder / NAMES[0])]
    for path in files:
        if not path.is_file():
            raise UserError(f"{where}: {folder}: {path.name} is missing; {model_files.remedy(folder)}")
    return files


def read_config(folder: Path, name: str, where: str) -> dict[str, Any]:
    """A JSON object beside the weights. Raises UserError beginning with `where`."""
    try:
        found = read_json(folder / name)
    except FileNotFoundError:
        raise UserError(f"{where}: {folder}: {name} is missing; {model_files.remedy(folder)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: {folder / name}: not a JSON object")
    return found
