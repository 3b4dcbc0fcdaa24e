"""The process of its own that a stage gets where an attempt was killed: whose end is its own."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from semiocity.stages.hands import Apart, Failure


class Slow:
    """A stage that takes its time, or dies of a row."""

    name = "slow"
    args = SimpleNamespace(batch_timeout_s=0)

    def load(self, info: Any, device: str) -> None:
        return

    def process(self, rows: list[Any]) -> list[Any]:
        time.sleep(1.0)
        if "deadly" in rows:
            os.kill(os.getpid(), signal.SIGKILL)
        return rows


@pytest.fixture
def hands() -> Any:
    made = Apart(Slow())  # type: ignore[arg-type]
    made.load(None, "cpu")  # type: ignore[arg-type]
    yield made
    made.close()


def test_a_row_that_kills_its_process_is_a_failure_of_that_row(hands: Any) -> None:
    outcome = hands.call(["deadly"])
    assert isinstance(outcome, Failure) and outcome.memory
    assert hands.call(["harmless"]) == ["harmless"], "the dead child is replaced"


def test_what_a_signals_handler_raises_is_no_failure_of_the_rows(hands: Any) -> None:
    """Taken for the child's death it would halve the batches, and so change the receipts."""

    def raises(number: int, frame: FrameType | None) -> None:
        raise BrokenPipeError("nobody reads the log")

    before = signal.signal(signal.SIGALRM, raises)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(BrokenPipeError, match="nobody reads the log"):
            hands.call(["harmless"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
