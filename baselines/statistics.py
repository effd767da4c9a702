"""Few seeds told honestly: interquartile means with bootstrap intervals, and performance profiles (arXiv 2108.13264)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_m3_agent.figures.seeds import CONFIDENCE, RESAMPLES, Summary

Values = NDArray[np.float64]
#: Runs that an interval takes, in every task: a bootstrap of two tells nothing beyond the two.
FEWEST = 3


def score_mean(scores: Values, axis: int = 0) -> Values:
    """Interquartile mean of scores, of which those that a run does not have count as 0 and are not cut off below.

    The highest quarter of the runs is cut off, and the lowest one as far as it is not made up of runs without a score: NaN. A
    run that loses its score therefore never raises the mean of scores that are not negative, and one failure in five, which
    an interquartile mean would forgive, costs a quarter of it. It is never worth more than a score of 0 that is earned, and
    without NaN this is :func:`~safe_m3_agent.figures.seeds.interquartile_mean`.

    Args:
        scores: One entry per run along ``axis``, at least one.
        axis: Axis of the runs.

    Example:
        >>> float(score_mean(np.array([math.nan, 1.0, 1.0, 1.0, 1.0]))), float(score_mean(np.array([0.0, 1.0, 1.0, 1.0, 1.0])))
        (0.75, 1.0)
    """
    ordered = np.moveaxis(np.sort(scores, axis), axis, 0)  # NaN goes to the end
    runs, cut = len(ordered), len(ordered) // 4
    missing = np.isnan(ordered).sum(0)
    lowest = np.maximum(cut - missing, 0)
    # Of the highest quarter, how many have a score: zeros that stand for none rank between those above 0 and those below.
    highest = np.maximum(np.minimum((ordered >= 0).sum(0), cut), cut - missing)
    rank = np.arange(runs).reshape(-1, *[1] * (ordered.ndim - 1))
    kept = (rank >= lowest) & (rank < runs - missing - highest)
    return np.asarray(np.where(kept, ordered, 0.0).sum(0) / (runs - cut - lowest), dtype=np.float64)


def estimate(strata: Sequence[ArrayLike], seed: int = 0, *, scores: bool = False) -> Summary:
    """Mean over tasks of the interquartile means of their runs, with its percentile interval by a stratified bootstrap.

    Every task has the same weight, however many runs it has; runs are drawn with replacement within each task.

    Args:
        strata: Per task the values of its runs, ``[runs, ...]``.
        seed: Seed of the resampling: the same numbers give the same interval.
        scores: Whether the values are scores, of which a run may have none: NaN, see :func:`score_mean`.

    Returns:
        Numbers of the shape of one run's; NaN where there are no values, and for the interval where a task has fewer than
        three runs: what seeds differ by is not known there.

    Raises:
        ValueError: If a value is NaN that is no score.

    Example:
        >>> mean, low, high = estimate([[0.0, 1.0, 2.0, 9.0]])  # the outer quarters do not count
        >>> float(mean), bool(low < mean < high)
        (1.5, True)
    """
    given = _given(strata)
    if not scores and any(np.isnan(values).any() for values in given):
        raise ValueError(f"values must be numbers, got {strata!r}: only of scores a run may have none")
    if not given:
        nothing = np.array(math.nan)
        return Summary(nothing, nothing, nothing)
    samples = [score_mean(values, axis=1) for values in _resampled(given, seed)]
    low, high = _interval(np.mean(samples, axis=0), given)
    return Summary(np.mean([score_mean(values) for values in given], axis=0), low, high)


def performance_profile(strata: Sequence[ArrayLike], levels: Values, seed: int = 0) -> Summary:
    """The share of runs with a score above each of some levels, mean over tasks, with pointwise percentile intervals.

    Args:
        strata: Scores per task, one per run each, at least one in all; NaN counts as 0.
        levels: Levels ``tau``, ``[n]``.
        seed: Seed of the resampling.

    Returns:
        Shares ``[n]``; the interval is NaN where a task has fewer than three runs.
    """
    given = [np.nan_to_num(values, nan=0.0) for values in _given(strata)]
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
