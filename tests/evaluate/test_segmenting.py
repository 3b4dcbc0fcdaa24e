"""Intersection over union, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from semiocity.evaluate.segmenting import Confusion


def test_miou_by_hand_with_ignored_pixels() -> None:
    confusion = Confusion(4, ignore_id=255)
    truth = np.array([[0, 0, 1, 1], [0, 255, 1, 2]], dtype=np.uint8)
    predicted = np.array([[0, 1, 1, 1], [0, 3, 1, 1]])
    confusion.add(truth, predicted)
    # 0: hit 2 of 3, nothing else called 0. 1: hit 3, one 0 and the 2 called 1 as well. 2: missed. 3: nowhere.
    assert confusion.iou() == [pytest.approx(2 / 3), pytest.approx(3 / 5), 0.0, None]
    assert confusion.miou() == pytest.approx((2 / 3 + 3 / 5 + 0) / 3)
    assert confusion.accuracy() == pytest.approx(5 / 7)


def test_images_add_up() -> None:
    random = np.random.default_rng(0)
    truth, predicted = random.integers(0, 5, (6, 9, 9)), random.integers(0, 5, (6, 9, 9))
    whole, parts = Confusion(5, None), Confusion(5, None)
    whole.add(truth, predicted)
    for one, other in zip(truth, predicted):
        parts.add(one, other)
    assert np.array_equal(whole.counts, parts.counts)
    for c in range(5):
        both, either = ((truth == c) & (predicted == c)).sum(), ((truth == c) | (predicted == c)).sum()
        assert whole.iou()[c] == pytest.approx(both / either)


def test_a_class_that_is_only_predicted_does_not_enter_the_mean() -> None:
    confusion = Confusion(3, None)
    confusion.add(np.array([0, 0, 0, 1]), np.array([0, 0, 2, 1]))
    assert confusion.miou() == pytest.approx((2 / 3 + 1) / 2)


def test_scores_on_train_ids_leave_the_other_classes_out() -> None:
    confusion = Confusion(4, None)
    confusion.add(np.array([0, 0, 1, 1, 2, 3, 3, 3]), np.array([0, 2, 1, 0, 2, 3, 3, 0]))
    scored = confusion.merged([1, 0, None, 1])  # 0 and 3 are one class, 2 is not scored
    # Class 0: hit 1 of 2. Class 1: hit 4 of 5 (one was called the unscored class), and a pixel of class 0 called it.
    assert scored.iou() == [pytest.approx(1 / 2), pytest.approx(4 / 6), 0.0]
    assert scored.miou() == pytest.approx((1 / 2 + 4 / 6) / 2)
    assert scored.counts.sum() == 7, "the pixel whose truth is not scored does not count"


def test_refuses_ids_out_of_range_and_labels_without_classes() -> None:
    confusion = Confusion(2, ignore_id=255)
    with pytest.raises(ValueError, match="ids from 0 to 7"):
        confusion.add(np.array([0, 7]), np.array([0, 1]))
    confusion.add(np.full((2, 2), 255), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="no pixel"):
        confusion.miou()
