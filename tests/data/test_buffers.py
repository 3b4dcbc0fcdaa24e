"""Memory that is used again: never while somebody still reads it."""

import numpy as np
import torch
from make_images import dice

from semiocity.data.buffers import Decoded, Packed, Pool, SharedPool, Unpacker, empty, stack


def rows_of(number: int, count: int = 3) -> list[dict[str, np.ndarray]]:
    return [{"image": np.full((4, 5), number * 10 + i, np.uint8), "t": np.array(number + i)} for i in range(count)]


def test_what_nobody_holds_is_used_again() -> None:
    pool, places = Pool(), []
    held: list[torch.Tensor] = []
    for number in range(12):
        piece = pool.piece()
        decoded = Decoded(piece, 3)
        for row in rows_of(number):
            decoded.append(row)
        tensor = stack(decoded, "image")
        pool.done(piece)
        places.append(tensor.data_ptr())
        held = [*held, tensor][-2:]  # as a loop that still holds the slice before
        for back, kept in enumerate(reversed(held)):
            assert kept[:, 0, 0].tolist() == [(number - back) * 10 + i for i in range(3)]
    assert len(set(places[3:])) <= 4
    del tensor, kept, decoded
    everything = [pool.piece() for _ in range(9)]
    assert len({piece.memory.ctypes.data for piece in everything}) == 9


def test_arrays_of_one_shape_lie_side_by_side() -> None:
    pool = Pool()
    pool.done(pool.piece())
    decoded = Decoded(pool.piece(), 3)
    for i, row in enumerate(rows_of(1)):
        decoded.append({**row, "ragged": np.arange(i), "some": np.zeros(2)} if i else {**row, "ragged": np.arange(0)})
    whole = decoded.whole("image")
    assert whole is not None
    assert np.shares_memory(whole, decoded[1]["image"])
    assert np.shares_memory(stack(decoded, "image").numpy(), whole)
    assert stack(decoded, "t").tolist() == [1, 2, 3]
    assert decoded.whole("ragged") is None
    assert [len(row["ragged"]) for row in decoded] == [0, 1, 2]
    assert stack(list(decoded), "image").equal(stack(decoded, "image"))
    assert empty(decoded, (2, 3), np.float32).shape == (2, 3)
    assert empty([], (2, 3), np.float32).dtype == np.float32


def test_shared_pieces_are_never_overwritten_while_they_are_read() -> None:
    """Slices of any sizes, kept for any time, stay as they were sent."""
    chance = dice()
    for keep in (0, 1, 5):
        pool, reader = SharedPool(0), Unpacker()
        waiting: list[tuple[list[torch.Tensor], Packed]] = []
        kept: list[tuple[list[torch.Tensor], dict[str, torch.Tensor]]] = []
        handles = 0
        for number in range(80):
            piece = pool.piece()
            count = chance.randrange(1, 6)
            decoded = Decoded(piece, count)
            for row in rows_of(number % 20, count):
                decoded.append(row)
            noise = empty(decoded, (count, chance.randrange(1, 9)), np.float32)
            noise[:] = number
            tensors = {
                "image": stack(decoded, "image"),
                "noise": torch.from_numpy(noise),
                "turned": stack(decoded, "image").flip(2),
                "across": stack(decoded, "image").transpose(1, 2),
                "none": torch.zeros(0, 3),
            }
            expected = [tensor.clone() for tensor in tensors.values()]
            waiting.append((expected, pool.pack(piece, tensors)))
            handles += waiting[-1][1].shared is not None
            if len(waiting) > 2:
                wanted, sent = waiting.pop(0)
                kept = [*kept, (wanted, reader.unpack(sent, pin=False))][-1 - keep :]
            for wanted, found in kept:
                assert all(a.equal(b) and a.dtype == b.dtype for a, b in zip(found.values(), wanted, strict=True))
        assert handles < 40, "pieces are sent once, and again when they grow"
        assert len(pool._memories) <= 5 + keep
