"""The loader: fetches what the order says, in this process or in workers, and names what is damaged."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semiocity.data.columns import Dataset
from semiocity.data.loader import Arrays, Room, Rows, Size, Slice, own_room, slices, stack, to_bytes, to_unit
from semiocity.data.order import Batch, Order
from semiocity.errors import UserError

SIZE = (32, 32)


def decode(row: Mapping[str, bytes | None], size: Size = SIZE, room: Room = own_room) -> Arrays:
    return {"image": np.asarray(Image.open(io.BytesIO(row["base.image"] or b"")).convert("RGB"))}


def collate(batch: Batch, decoded: Sequence[Arrays]) -> dict[str, torch.Tensor]:
    return {"image": stack(decoded, "image"), "row": torch.from_numpy(batch.rows)}


def read(
    dataset: Path, steps: range, rank: int = 0, world: int = 1, workers: int = 0, cache_mb: int = 0
) -> list[Slice]:
    view = Dataset.open(dataset).view(["base.image"], "train")
    order = Order(view.digest, tuple(view.shard_sizes), 5, 4)
    rows = Rows(view, decode, cache_mb)
    return list(
        slices(rows, order, rank=rank, world=world, steps=steps, collate=collate, sizes=[SIZE], workers=workers)
    )


def test_workers_cache_and_start_change_nothing(town: Path) -> None:
    plain = read(town, range(9))
    assert [part.step for part in plain] == list(range(9))
    for other in (read(town, range(9), workers=2), read(town, range(9), cache_mb=1)):
        for one, two in zip(plain, other, strict=True):
            assert one.keys == two.keys
            assert torch.equal(one.tensors["image"], two.tensors["image"])
    later = read(town, range(5, 9), workers=1)
    assert [part.keys for part in later] == [part.keys for part in plain[5:]]


def test_ranks_share_each_batch(town: Path) -> None:
    whole = read(town, range(3))
    halves = [read(town, range(3), rank, 2) for rank in range(2)]
    for step in range(3):
        assert whole[step].keys == halves[0][step].keys + halves[1][step].keys


def test_keys_belong_to_the_pictures(town: Path) -> None:
    view = Dataset.open(town).view(["base.image"], "train")
    (part,) = read(town, range(1))
    for key, row, image in zip(part.keys, part.tensors["row"], part.tensors["image"], strict=True):
        assert view.key(int(row)) == key
        assert np.array_equal(image.numpy(), decode(view.read(int(row)))["image"])


def test_cache_is_bounded_and_spares_decoding(town: Path) -> None:
    view = Dataset.open(town).view(["base.image"], "train")
    decoded = []

    def counting(row: Mapping[str, bytes | None], size: Size, room: Room) -> Arrays:
        decoded.append(1)
        return {"image": np.zeros(2**19, np.uint8)}

    rows = Rows(view, counting, cache_mb=1)  # room for two
    for _ in range(3):
        for row in range(4):
            assert rows.row(row, SIZE).key == view.key(row)
    assert len(decoded) == 4 + 2 + 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_member_is_named(own_town: Path, workers: int) -> None:
    dataset = Dataset.open(own_town)
    view = dataset.view(["base.image"], "train")
    shard, _ = view.locate(3)
    reader = dataset.reader("base", shard)
    content = bytearray(reader.path.tar.read_bytes())
    payload = view.read(3)["base.image"]
    content[content.index(payload) + 40] ^= 0xFF
    reader.path.tar.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(own_town, range(dataset.rows("train") // 4), workers=workers)
    assert view.key(3) in str(caught.value)
    assert str(reader.path.tar) in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_what_cannot_be_decoded_is_named(town: Path) -> None:
    view = Dataset.open(town).view(["base.image"], "train")

    def broken(row: Mapping[str, bytes | None], size: Size, room: Room) -> Arrays:
        raise ValueError("too short")

    with pytest.raises(UserError, match=f"row {view.key(2)} of base/.*/00000000 cannot be decoded: too short"):
        Rows(view, broken).row(2, SIZE)


def test_pictures_survive_the_way_to_the_model_and_back() -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    unit = to_unit(images)
    assert unit.shape == (1, 3, 16, 16)
    assert (unit.min(), unit.max()) == (-1, 1)
    assert torch.equal(to_bytes(unit), images)
    assert to_bytes(torch.full((1, 3, 1, 1), 9.0)).max() == 255
