"""The learning curves of several seeds as one, on common numbers of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from baselines.collected import has_failed
from baselines.curve import Row
from baselines.run_folder import RecordedRun
from baselines.statistics import Values, estimate
from safe_m3_agent.figures.seeds import Summary

#: Points of a curve at most.
POINTS = 200
#: Where a run is before its first record.
NOTHING = Row(0, 0.0, 0, 0, math.nan, math.nan, math.nan, math.nan, math.nan, 0)


class LearningCurve(NamedTuple):
    """What an algorithm's policies are worth after a number of steps of the true world, over seeds."""

    env_steps: Values  #: [n], ascending
    score: Summary  #: [n], mean and interval as those of final scores; a policy that violates counts as 0
    violated: Values  #: share of the episodes executed so far that violate [n]; NaN where none were


def learning_curve(runs: Sequence[RecordedRun]) -> LearningCurve:
    """Put runs together: each counts with its latest record, from where all have one on.

    A run that ended before others keeps its last record: its policy stays what it was. One that failed has none from there on,
    and counts as 0.

    Args:
        runs: At least one, each with at least one record or failed.
    """
    latest = [_rows(run) for run in runs]
    steps = [np.array([row.env_steps for row in rows], dtype=np.float64) for rows in latest]
    at = _points(steps)
    chosen = [[rows[index] for index in np.searchsorted(own, at, "right") - 1] for rows, own in zip(latest, steps, strict=True)]
    episodes = np.array([[row.episodes for row in rows] for rows in chosen]).sum(0)
    violated = np.array([[row.violated for row in rows] for rows in chosen]).sum(0)
    share = np.where(episodes > 0, violated / np.maximum(episodes, 1), np.nan)
    return LearningCurve(at, estimate([[[row.score for row in rows] for rows in chosen]], scores=True), share)


def _rows(run: RecordedRun) -> list[Row]:
    """The records of a run; where it failed, one more without a score, in the place of the last one."""
    if not has_failed(run):
        return run.rows
    last = run.rows[-1] if run.rows else NOTHING
    return [*run.rows, replace(last, score=math.nan)]


def _points(steps: Sequence[Values]) -> Values:
    """Where some run has a record and all have begun; thinned out evenly on a logarithmic axis where that is too many."""
    first = max(float(own[0]) for own in steps)
    every = np.unique(np.concatenate([*steps, [first]]))
    every = every[every >= first]
    if len(every) <= POINTS:
        return every
    wanted = np.geomspace(max(first, 1.0), every[-1], POINTS)
    return np.unique(np.concatenate([every[:1], every[np.searchsorted(every, wanted).clip(max=len(every) - 1)]]))
