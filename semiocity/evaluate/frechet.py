"""Distances between two sets of feature vectors: Fréchet and kernel (KID). Float64 throughout."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Features = NDArray[Any]
"""[N, D], any float type."""


class Gaussian(NamedTuple):
    """Moments of a feature set: `mean` [D], and `factor` [min(N, D), D] with factorᵀ·factor = covariance."""

    mean: NDArray[np.float64]
    factor: NDArray[np.float64]


def gaussian(features: Features) -> Gaussian:
    """Mean and (unbiased) covariance of features [N, D], the latter as a factor.

    With N > D the factor is R of a QR decomposition of the centred features, otherwise those themselves: the covariance
    is never formed, so its conditioning is never squared. ValueError with fewer than two vectors or one not finite.
    """
    vectors = np.asarray(features, dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) < 2:
        raise ValueError(f"a covariance needs features [N >= 2, D], these are {list(vectors.shape)}")
    if not np.isfinite(vectors).all():
        raise ValueError("features hold values that are not finite")
    mean = vectors.mean(axis=0)
    centred = (vectors - mean) / np.sqrt(len(vectors) - 1)
    if len(vectors) > vectors.shape[1]:
        centred = np.linalg.qr(centred).R
    return Gaussian(mean, centred)


def frechet(one: Gaussian, other: Gaussian) -> float:
    """Squared Fréchet distance |μ₁-μ₂|² + tr(Σ₁ + Σ₂ - 2·(Σ₁Σ₂)^½) (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    With Σ₁ = AᵀA and Σ₂ = BᵀB, the eigenvalues of Σ₁Σ₂ that are not zero are those of (ABᵀ)(ABᵀ)ᵀ, so the trace of the
    root is the sum of the singular values of ABᵀ. That holds for singular covariances too (fewer images than
    dimensions): no matrix root that may turn complex, and nothing is added to a diagonal. Small sets still
    overestimate the distance, so compare only distances of sets of equal size. Never below 0. ValueError when the
    dimensions differ.
    """
    if one.mean.shape != other.mean.shape:
        raise ValueError(f"features of {len(one.mean)} and {len(other.mean)} dimensions cannot be compared")
    shift = float(np.square(one.mean - other.mean).sum())
    traces = float(np.square(one.factor).sum() + np.square(other.factor).sum())
    overlap = float(np.linalg.svd(one.factor @ other.factor.T, compute_uv=False).sum())
    return max(shift + traces - 2 * overlap, 0.0)


class Kid(NamedTuple):
    """Kernel distance over random subsets: `mean` may be a little below 0, since the estimate is unbiased."""

    mean: float
    std: float
    subset_images: int


def kid(one: Features, other: Features, *, subsets: int, subset_images: int, seed: int) -> Kid:
    """Kernel Inception distance (Bińkowski et al. 2018, arXiv 1801.01401): MMD² with the kernel (x·y/D + 1)³.

    Mean and standard deviation over `subsets` pairs of random subsets without replacement, `subset_images` from each
    set or as many as the smaller set has. Unbiased, so it can be read with few images, where the Fréchet distance
    cannot. ValueError when a set has fewer than two.
    """
    x, y = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    size = min(subset_images, len(x), len(y))
    if size < 2:
        raise ValueError(f"KID needs at least two images in each set, there are {len(x)} and {len(y)}")
    random = np.random.Generator(np.random.Philox(seed))
    values = [
        mmd2(x[random.choice(len(x), size, replace=False)], y[random.choice(len(y), size, replace=False)])
        for _ in range(subsets)
    ]
    return Kid(float(np.mean(values)), float(np.std(values)), size)


def mmd2(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Unbiased squared maximum mean discrepancy of x [M, D] and y [N, D] (Gretton et al. 2012, eq. 3)."""
    m, n = len(x), len(y)
    within_x, within_y, between = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    # A vector is not compared with itself: that is what makes the estimate unbiased.
    of_x = (within_x.sum() - np.trace(within_x)) / (m * (m - 1))
    of_y = (within_y.sum() - np.trace(within_y)) / (n * (n - 1))
    return float(of_x + of_y - 2 * between.mean())


def _kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return (x @ y.T / x.shape[1] + 1) ** 3
