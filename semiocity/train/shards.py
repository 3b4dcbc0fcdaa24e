"""What one rank keeps of a phase, on disk: master weights, optimizer states and their average, with names.

    PHASE-00003.safetensors        rank 3: tensors "2/master", "2/ema", "2/exp_avg", …, for its part number 2
    PHASE.buffers.safetensors      the modules' buffers, the same on every rank

Every file says which elements of which parameters it holds, so a run can go on with another number of ranks or another
ZeRO stage: each rank then picks its elements out of all files. DeepSpeed's own checkpoints cannot do that, keep the
bf16 weights a second time (they are the rounded master weights), and are pickles.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from semiocity.errors import UserError
from semiocity.train.ema import Ema
from semiocity.train.zero import Engine, Fragment


def file_of(folder: Path, phase: str, rank: int) -> Path:
    """The file of one rank's part of a phase."""
    return folder / f"{phase}-{rank:05d}.safetensors"


def buffers_of(folder: Path, phase: str) -> Path:
    """The file of a phase's buffers."""
    return folder / f"{phase}.buffers.safetensors"


class Part(NamedTuple):
    """A file to be written."""

    file: str
    tensors: dict[str, Tensor]
    """The very ones that are trained, not copies."""
    metadata: dict[str, str]
    volatile: bool = False
    """Whether a forward pass may change them. The others only change when the optimizer moves the weights."""


def parts(rank: int, engine: Engine, average: Ema | None) -> list[Part]:
    """What this rank keeps of a phase (rank 0: the buffers, too)."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for i, master in enumerate(engine.masters()):
        tensors[f"{i}/master"] = master.detach()
        if average is not None:
            tensors[f"{i}/ema"] = average.shards[i]
        for name, value in engine.optimizer.state.get(master, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{i}/{name}"] = value
            else:
                plain[f"{i}/{name}"] = value
    about = {
        "fragments": [list(fragment) for fragment in engine.fragments()],
        "plain": plain,
        "ema_updates": average.updates if average else None,
    }
    phase = engine.phase.name
    found = [Part(file_of(Path(), phase, rank).name, tensors, {"about": json.dumps(about)})]
    if rank == 0 and (buffers := engine.buffers()):
        found.append(Part(buffers_of(Path(), phase).name, buffers, {}, volatile=True))
    return found


def load(folder: Path, rank: int, ranks_then: int, engine: Engine, average: Ema | None) -> None:
    """Read this rank's part of what `ranks_then` ranks wrote. Bit by bit the same if the parts are cut as they were.

    Collective. Raises UserError when the parts are cut otherwise and the optimizer's states cannot be divided anew.
    """
    phase = engine.phase.name
    # At stage 0 every rank has the same, so that the first one's file does for ranks that were not there.
    mine = file_of(folder, phase, rank if rank < ranks_then else 0)
    if [Fragment(*f) for f in _about(mine)["fragments"]] == engine.fragments():
        _load_as_it_was(mine, engine, average)
    else:
        _load_divided_anew([file_of(folder, phase, i) for i in range(ranks_then)], engine, average)
    buffers = buffers_of(folder, phase)
    saved = load_file(buffers) if buffers.exists() else {}
    for name, buffer in engine.buffers().items():
        buffer.copy_(saved[name])
    engine.publish()


def _about(file: Path) -> dict[str, Any]:
    with safe_open(file, "pt") as opened:
        about: dict[str, Any] = json.loads(opened.metadata()["about"])
    return about


def _load_as_it_was(file: Path, engine: Engine, average: Ema | None) -> None:
    about, tensors = _about(file), load_file(file)
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    for name, value in (about["plain"] | tensors).items():
        i, _, key = name.partition("/")
        found[int(i)][key] = value
    for i, master in enumerate(engine.masters()):
        _put(i, found[i], master, engine, average)
    if average is not None:
        average.updates = about["ema_updates"]


@torch.no_grad()
def _put(i: int, state: dict[str, Any], master: Tensor, engine: Engine, average: Ema | None) -> None:
    """Set part number `i` of this rank to a saved state, which is used up."""
    master.copy_(state.pop("master"))
    ema = state.pop("ema", None)
    if average is not None:
        average.shards[i].copy_(ema)
    if state:
        engine.optimizer.state[master] = {name: engine.place(value, master) for name, value in state.items()}
    else:
        engine.optimizer.state.pop(master, None)


class _Piece(NamedTuple):
    """Where elements [start, start + length) of a parameter were kept."""

    start: int
    length: int
    file: Path
    part: int
    offset: int


def _load_divided_anew(files: list[Path], engine: Engine, average: Ema | None) -> None:
    kept: dict[str, list[_Piece]] = defaultdict(list)
    for file in files:
        for name, start, length, part, offset in _about(file)["fragments"]:
            kept[name].append(_Piece(start, length, file, part, offset))
    if any(_about(file)["plain"] for file in files):
        raise UserError(_cannot(files))
    parts: dict[int, dict[str, Tensor]] = defaultdict(dict)
    masters = engine.masters()
    for name, start, length, part, offset in engine.fragments():
        for key, values in _elements(kept[name], start, length).items():
            if values.ndim == 0:
                parts[part][key] = values
                continue
            if key not in parts[part]:
                # Beyond the fragments there is only padding.
                parts[part][key] = torch.zeros(masters[part].numel(), dtype=values.dtype)
            parts[part][key][offset : offset + length] = values
    for i, master in enumerate(masters):
        if i in parts:
            state = {key: v.view(master.shape) if v.ndim else v for key, v in parts[i].items()}
            _put(i, state, master, engine, average)
    if average is not None:
        average.updates = _about(files[0])["ema_updates"]


def _elements(pieces: Iterable[_Piece], start: int, length: int) -> dict[str, Tensor]:
    """Elements [start, start + length) of a parameter: for each kind of state a flat tensor, or a scalar."""
    found: dict[str, Tensor] = {}
    for piece in pieces:
        first, last = max(start, piece.start), min(start + length, piece.start + piece.length)
        if first >= last:
            continue
        with safe_open(piece.file, "pt") as opened:
            prefix = f"{piece.part}/"
            for key in [k.removeprefix(prefix) for k in opened.keys() if k.startswith(prefix)]:  # noqa: SIM118
                kept = opened.get_slice(prefix + key)
                if not kept.get_shape():
                    found[key] = opened.get_tensor(prefix + key)
                    continue
                values = _flat(opened, prefix, key, piece)[first - piece.start : last - piece.start]
                found.setdefault(key, torch.empty(length, dtype=values.dtype))[first - start : last - start] = values
    return found


def _flat(opened: Any, prefix: str, key: str, piece: _Piece) -> Tensor:
    """The elements of a piece, as a flat tensor."""
    kept, shape = opened.get_slice(prefix + key), opened.get_slice(prefix + "master").get_shape()
    if kept.get_shape() != shape:
        raise UserError(_cannot([piece.file]))
    if len(shape) == 1:
        return kept[piece.offset : piece.offset + piece.length]
    return opened.get_tensor(prefix + key).flatten()[piece.offset : piece.offset + piece.length]


def _cannot(files: list[Path]) -> str:
    return (
        f"{files[0].parent}: the optimizer's states cannot be divided among another number of ranks; "
        f"go on with as many ranks and the same zero.stage as before"
    )
