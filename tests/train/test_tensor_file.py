"""Files that the safetensors library reads as if it had written them."""

import hashlib
import random
import stat
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from semiocity.train import tensor_file


def some_tensors(chance: random.Random) -> dict[str, torch.Tensor]:
    tensors = {}
    for i, dtype in enumerate(tensor_file.NAMES):
        for shape in ((), (0, 3), (chance.randrange(1, 40),), (3, chance.randrange(1, 9), 5)):
            tensors[f"{i}/{len(shape)}/{shape}"] = (torch.rand(shape) * 100).to(dtype)
    tensors["turned"] = torch.rand(7, 11).T
    return tensors


def test_the_library_reads_every_type_and_shape(
    tmp_path: Path, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_file, "PIECE_BYTES", chance.choice([8, 64, 2**24]))
    tensors = some_tensors(chance)
    seal = tensor_file.write(tmp_path / "a", tensors, {"about": 'ä "x"'})
    read = load_file(tmp_path / "a")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name].contiguous().view(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    with safe_open(tmp_path / "a", "pt") as opened:
        assert opened.metadata() == {"about": 'ä "x"'}
    content = (tmp_path / "a").read_bytes()
    assert seal == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) & 0o444 == 0o444


def test_without_tensors_or_metadata(tmp_path: Path) -> None:
    tensor_file.write(tmp_path / "a", {}, {})
    assert load_file(tmp_path / "a") == {}


def test_nothing_is_overwritten_and_a_cancelled_one_ends(tmp_path: Path) -> None:
    tensor_file.write(tmp_path / "a", {"x": torch.zeros(3)}, {})
    with pytest.raises(FileExistsError):
        tensor_file.write(tmp_path / "a", {"x": torch.ones(3)}, {})
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(tensor_file.Cancelled):
        tensor_file.write(tmp_path / "b", {"x": torch.zeros(3)}, {}, cancelled)
