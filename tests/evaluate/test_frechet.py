"""Fréchet distance and KID against closed forms and independent computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.kid import poly_mmd

from semiocity.evaluate.frechet import frechet, gaussian, kid, mmd2


def _random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _exactly(mean: np.ndarray, covariance: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Vectors whose sample mean and covariance are the given ones to rounding."""
    raw = _random(seed).normal(size=(count, len(mean)))
    raw -= raw.mean(axis=0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    return mean + white @ np.linalg.cholesky(covariance).T


def _covariance(size: int, seed: int) -> np.ndarray:
    root = _random(seed).normal(size=(size, size))
    return root @ root.T + 0.1 * np.eye(size)


@pytest.mark.parametrize("count", [500, 20], ids=["more images than dimensions", "fewer"])
def test_distance_of_a_set_to_itself_is_zero(count: int) -> None:
    moments = gaussian(_random().normal(size=(count, 64)))
    assert frechet(moments, moments) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("count", [500, 20], ids=["more images than dimensions", "fewer"])
def test_distance_of_shifted_sets_is_the_squared_shift(count: int) -> None:
    vectors = _random().normal(size=(count, 64))
    shift = _random(1).normal(size=64)
    assert frechet(gaussian(vectors), gaussian(vectors + shift)) == pytest.approx(np.square(shift).sum())


def test_closed_form_for_gaussians_of_one_shape() -> None:
    # Σ₂ = s²·Σ₁ gives tr(Σ₁)·(1 - s)².
    covariance = _covariance(8, 3)
    one = gaussian(_exactly(np.zeros(8), covariance, 50, 4))
    other = gaussian(_exactly(np.full(8, 2.0), 9 * covariance, 70, 5))
    assert frechet(one, other) == pytest.approx(8 * 4 + np.trace(covariance) * 4)


def test_matrix_root_of_other_covariances() -> None:
    first, second = _covariance(12, 6), _covariance(12, 7)
    ours = frechet(gaussian(_exactly(np.zeros(12), first, 60, 8)), gaussian(_exactly(np.ones(12), second, 60, 9)))
    root = sqrtm(first @ second).real
    assert ours == pytest.approx(12 + np.trace(first) + np.trace(second) - 2 * np.trace(root))


def test_singular_covariances_need_no_help() -> None:
    """10 vectors in 40 dimensions: the limit of the matrix root of covariances with a vanishing ε on the diagonal."""
    one, other = _random(10).normal(size=(10, 40)), _random(11).normal(size=(12, 40)) * 2
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    values, vectors = np.linalg.eigh(first)
    half = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
    root = np.sqrt(np.linalg.eigvalsh(half @ second @ half).clip(0)).sum()
    expected = np.square(one.mean(0) - other.mean(0)).sum() + np.trace(first) + np.trace(second) - 2 * root
    assert frechet(gaussian(one), gaussian(other)) == pytest.approx(expected, rel=1e-6)


def test_refuses_what_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="N >= 2"):
        gaussian(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="not finite"):
        gaussian(np.array([[0.0, np.nan], [1.0, 2.0]]))


def test_mmd_agrees_with_torchmetrics() -> None:
    x, y = _random(12).normal(size=(30, 16)), _random(13).normal(size=(30, 16)) + 0.3
    assert mmd2(x, y) == pytest.approx(float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y))))


def test_mmd_by_hand() -> None:
    # Kernel (x·y + 1)³ in one dimension. x = 0, 1: k = 1. y = 1, 2: k(1, 2) = 27. Between: 1, 1, 8, 27.
    x, y = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    assert mmd2(x, y) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)


def test_kid_is_unbiased_where_the_frechet_distance_is_not() -> None:
    """Two small sets of one distribution: KID is 0 within its own spread, the Fréchet distance is far from it."""
    one, other = _random(14).normal(size=(60, 32)), _random(15).normal(size=(400, 32))
    found = kid(one, other, subsets=100, subset_images=50, seed=0)
    assert abs(found.mean) < 3 * found.std
    assert frechet(gaussian(one), gaussian(other)) > 1


def test_kid_repeats_for_a_seed_and_shrinks_its_subsets() -> None:
    one, other = _random(16).normal(size=(7, 4)), _random(17).normal(size=(30, 4))
    first = kid(one, other, subsets=5, subset_images=50, seed=3)
    assert first == kid(one, other, subsets=5, subset_images=50, seed=3)
    assert first != kid(one, other, subsets=5, subset_images=50, seed=4)
    assert first.subset_images == 7
