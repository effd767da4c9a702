"""Few seeds told honestly: interquartile means with bootstrap intervals, and performance profiles (arXiv 2108.13264)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from safe_m3_agent.figures.seeds import CONFIDENCE, RESAMPLES, Summary, interquartile_mean, summary

Values = NDArray[np.float64]


def resampled(strata: Sequence[Values], seed: int = 0) -> Values:
    """Bootstrap samples of scores in several tasks: seeds are drawn with replacement within each task (stratified).

    Args:
        strata: Values per task, one per seed each.
        seed: Seed of the drawing: the same numbers give the same interval.

    Returns:
        ``[resamples, values of all tasks]``.
    """
    rng = np.random.default_rng(seed)
    return np.concatenate([values[rng.integers(len(values), size=(RESAMPLES, len(values)))] for values in strata], axis=1)


def estimate(strata: Sequence[Sequence[float]], seed: int = 0) -> Summary:
    """Interquartile mean over all values of all tasks, with its percentile interval by a stratified bootstrap.

    With one task that is :func:`~safe_m3_agent.figures.seeds.summary`, but for a single value.

    Args:
        strata: Values per task, one per seed each.
        seed: Seed of the resampling.

    Returns:
        Numbers without dimensions; NaN where there are no values, and for the interval where a task has only one: what seeds
        differ by is not known there, and a bootstrap would say that they do not.

    Raises:
        ValueError: If a value is NaN. A policy that violates has no score; the leaderboard counts it as 0, see
            :func:`~baselines.collected.counted`.

    Example:
        >>> mean, low, high = estimate([[0.0, 1.0, 2.0, 9.0]])  # the outer quarters do not count
        >>> float(mean), bool(low < mean < high)
        (1.5, True)
    """
    given = _numbers(strata)
    if not given:
        nothing = np.array(math.nan)
        return Summary(nothing, nothing, nothing)
    low, high = _interval(interquartile_mean(resampled(given, seed), axis=1), given)
    return Summary(interquartile_mean(np.concatenate(given)), low, high)


def over_seeds(values: Values) -> Summary:
    """The :func:`~safe_m3_agent.figures.seeds.summary` of ``[seeds, ...]``; of one seed there is no interval: NaN."""
    found = summary(values)
    unknown = np.full_like(found.mean, math.nan)
    return found if len(values) > 1 else Summary(found.mean, unknown, unknown)


def performance_profile(strata: Sequence[Sequence[float]], levels: Values, seed: int = 0) -> Summary:
    """The share of runs with a score above each of some levels, with pointwise percentile intervals.

    Args:
        strata: Scores per task, one per seed each; at least one in all.
        levels: Levels ``tau``, ``[n]``.
        seed: Seed of the resampling.

    Returns:
        Shares ``[n]``; the interval is NaN where a task has only one run.

    Raises:
        ValueError: If a score is NaN, as in :func:`estimate`.
    """
    given = _numbers(strata)
    samples = resampled(given, seed)
    # Level by level: all at once would hold resamples x runs x levels numbers.
    shares = np.stack([(samples > level).mean(1) for level in levels], axis=1)
    every = np.concatenate(given)
    low, high = _interval(shares, given)
    return Summary((every[:, None] > levels).mean(0), low, high)


def _numbers(strata: Sequence[Sequence[float]]) -> list[Values]:
    """The tasks that have values; sorting would take a NaN for the largest of them."""
    given = [np.asarray(values, dtype=np.float64) for values in strata if len(values)]
    if any(np.isnan(values).any() for values in given):
        raise ValueError(f"values must be numbers, got {strata!r}: count what has no score first, as 0 for instance")
    return given


def _interval(samples: Values, strata: Sequence[Values]) -> tuple[Values, Values]:
    """Ends of the interval of each column of samples ``[resamples, ...]``; NaN where a stratum has a single value."""
    if min(map(len, strata)) < 2:
        return np.full(samples.shape[1:], math.nan), np.full(samples.shape[1:], math.nan)
    low, high = np.quantile(samples, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2), axis=0)
    return low, high
