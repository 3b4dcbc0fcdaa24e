"""One batch of rows: as a whole, fewer at a time when memory does not suffice, row by row when one of them fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from semiocity.data.journal import Journal, Result
from semiocity.stages.base import Row
from semiocity.stages.hands import Failure, Hands
from semiocity.stages.inputs import Batch


class Shrink(Exception):
    """The shard is to be made in smaller batches, from its beginning: that is another execution class."""

    def __init__(self, batch: int) -> None:
        super().__init__(f"batches of {batch}")
        self.batch = batch


class Piece(NamedTuple):
    """Rows of a batch that went through together."""

    results: list[Result]
    size: int
    """How many at a time; the batch's own number for a whole batch, whether or not all its rows could be used."""
    failure: Failure | None
    """Why the batch was taken apart."""


def make_batch(hands: Hands, journal: Journal, batch: Batch, start: int, alone: bool) -> Iterator[Piece]:
    """The results of a batch whose first row is row `start`; row by row at once when `alone`.

    Raises Shrink when half as many rows at a time, or fewer, all go through.
    """
    rows = [row for _, row in batch if isinstance(row, Row)]
    failure: Failure | None = None
    if not alone:
        journal.at(start, len(batch), hands.apart)
        outcome = hands.call(rows)
        if not isinstance(outcome, Failure):
            results = iter(outcome)
            placed: list[Result] = [(key, next(results) if isinstance(row, Row) else row) for key, row in batch]
            yield Piece(placed, journal.batch, None)
            return
        failure = outcome
        if failure.memory and (fits := _fitting(hands, rows, journal.batch)):
            raise Shrink(fits)
    for i, (key, row) in enumerate(batch):
        if not isinstance(row, Row):
            yield Piece([(key, row)], 1, failure)
            continue
        journal.at(start + i, 1, hands.apart)
        outcome = hands.call([row])
        if isinstance(outcome, Failure):
            failure = failure or outcome
            yield Piece([(key, outcome.tombstone)], 1, failure)
        else:
            yield Piece([(key, outcome[0])], 1, failure)


def _fitting(hands: Hands, rows: list[Row], batch: int) -> int:
    """The largest of batch / 2, batch / 4, … at which all of these rows go through; 0 when some do not even alone."""
    size = batch // 2
    while size >= 1:
        pieces = (rows[i : i + size] for i in range(0, len(rows), size))
        if size < len(rows) and not any(isinstance(hands.call(piece), Failure) for piece in pieces):
            return size
        size //= 2
    return 0
