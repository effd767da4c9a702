"""Many seeds as one line with a band: interquartile mean and bootstrap interval (Agarwal et al. 2021, arXiv 2108.13264)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Share of the bootstrap distribution that an interval covers.
CONFIDENCE = 0.95
RESAMPLES = 2000


class Summary(NamedTuple):
    """A quantity over seeds, each of the shape of one seed's."""

    mean: NDArray[np.float64]  #: interquartile mean
    low: NDArray[np.float64]  #: lower end of the interval
    high: NDArray[np.float64]  #: upper end


def interquartile_mean(values: NDArray[np.float64], axis: int = 0) -> NDArray[np.float64]:
    """Mean of what is left when the lowest and the highest quarter of the seeds are cut off; of all for fewer than four.

    Args:
        values: One entry per seed along ``axis``, at least one.
        axis: Axis of the seeds.
    """
    cut = values.shape[axis] // 4
    ordered = np.sort(values, axis)
    kept = np.take(ordered, range(cut, values.shape[axis] - cut), axis)
    return np.asarray(kept.mean(axis), dtype=np.float64)


def summary(values: NDArray[np.float64], seed: int = 0) -> Summary:
    """Interquartile mean over seeds and its percentile bootstrap interval; a single seed's interval is a point.

    Args:
        values: ``[seeds, ...]``.
        seed: Seed of the resampling: the same numbers give the same band.
    """
    count = len(values)
    draws = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    means = interquartile_mean(values[draws], axis=1)
    low, high = np.quantile(means, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2), axis=0)
    return Summary(interquartile_mean(values), low, high)


def described(counts: list[int]) -> str:
    """What line and band are, for a caption.

    Args:
        counts: Seeds of each line.
    """
    fewest, most = min(counts), max(counts)
    seeds = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    if most == 1:
        return "One seed per line."
    if most < 4:  # nothing is cut off, and the interval ends at the extremes
        return f"Lines: mean over {seeds} seeds; bands: their range."
    return f"Lines: interquartile mean over {seeds} seeds; bands: its {100 * CONFIDENCE:g} % bootstrap interval."
