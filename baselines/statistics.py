"""Few seeds told honestly: interquartile means with bootstrap intervals, and performance profiles (arXiv 2108.13264)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_m3_agent.figures.seeds import CONFIDENCE, RESAMPLES, Summary

Values = NDArray[np.float64]
#: Runs that an interval takes, in every task: of two a bootstrap says no more than the two.
FEWEST = 3


def run_mean(values: Values, axis: int = 0) -> Values:
    """Interquartile mean of the runs that have a value, times their share of all runs.

    NaN is a run without a value, which counts as 0, and is not what is cut off: a seed of five that fails costs a fifth of the
    mean, as it would without trimming. Without NaN this is :func:`~safe_m3_agent.figures.seeds.interquartile_mean`.

    Args:
        values: One entry per run along ``axis``, at least one.
        axis: Axis of the runs.

    Example:
        >>> float(run_mean(np.array([math.nan, 0.5, 0.5, 0.5, 0.5])))
        0.4
    """
    ordered = np.moveaxis(np.sort(values, axis), axis, 0)  # NaN goes to the end
    known = (~np.isnan(ordered)).sum(0)
    cut = known // 4
    rank = np.arange(len(ordered)).reshape(-1, *[1] * (ordered.ndim - 1))
    kept = (rank >= cut) & (rank < known - cut)
    total = np.where(kept, ordered, 0.0).sum(0)
    return np.asarray(total / np.maximum(kept.sum(0), 1) * (known / len(ordered)), dtype=np.float64)


def estimate(strata: Sequence[ArrayLike], seed: int = 0) -> Summary:
    """Mean over tasks of their :func:`run_mean`, with its percentile interval by a stratified bootstrap.

    Every task has the same weight, however many runs it has; runs are drawn with replacement within each task.

    Args:
        strata: Per task the values of its runs, ``[runs, ...]``; NaN where a run has none, which counts as 0.
        seed: Seed of the resampling: the same numbers give the same interval.

    Returns:
        Numbers of the shape of one run's; NaN where there are no values, and for the interval where a task has fewer than
        three runs: what seeds differ by is not known there.

    Example:
        >>> mean, low, high = estimate([[0.0, 1.0, 2.0, 9.0]])  # the outer quarters do not count
        >>> float(mean), bool(low < mean < high)
        (1.5, True)
    """
    given = _given(strata)
    if not given:
        nothing = np.array(math.nan)
        return Summary(nothing, nothing, nothing)
    samples = [run_mean(values, axis=1) for values in _resampled(given, seed)]
    low, high = _interval(np.mean(samples, axis=0), given)
    return Summary(np.mean([run_mean(values) for values in given], axis=0), low, high)


def performance_profile(strata: Sequence[ArrayLike], levels: Values, seed: int = 0) -> Summary:
    """The share of runs with a score above each of some levels, mean over tasks, with pointwise percentile intervals.

    Args:
        strata: Scores per task, one per run each, at least one in all; NaN is above no level.
        levels: Levels ``tau``, ``[n]``.
        seed: Seed of the resampling.

    Returns:
        Shares ``[n]``; the interval is NaN where a task has fewer than three runs.
    """
    given = _given(strata)
    samples = _resampled(given, seed)
    # Level by level: all at once would hold resamples x runs x levels numbers.
    shares = np.stack([np.mean([(drawn > level).mean(1) for drawn in samples], axis=0) for level in levels], axis=1)
    low, high = _interval(shares, given)
    return Summary(np.mean([(values[:, None] > levels).mean(0) for values in given], axis=0), low, high)


def _given(strata: Sequence[ArrayLike]) -> list[Values]:
    """The tasks that have values."""
    tasks = [np.asarray(values, dtype=np.float64) for values in strata]
    return [values for values in tasks if len(values)]


def _resampled(strata: Sequence[Values], seed: int) -> list[Values]:
    """Bootstrap samples of each task, ``[resamples, runs, ...]``: runs are drawn with replacement within it."""
    rng = np.random.default_rng(seed)
    return [values[rng.integers(len(values), size=(RESAMPLES, len(values)))] for values in strata]


def _interval(samples: Values, strata: Sequence[Values]) -> tuple[Values, Values]:
    """Ends of the interval of each column of samples ``[resamples, ...]``; NaN where a task has too few runs."""
    if min(map(len, strata)) < FEWEST:
        return np.full(samples.shape[1:], math.nan), np.full(samples.shape[1:], math.nan)
    low, high = np.quantile(samples, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2), axis=0)
    return low, high
