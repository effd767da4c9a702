"""Widths of confidence sets: what the settings ask for, or what the level does once standard deviations are right."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from safe_m3_agent.confidence import LARGEST_RADIUS, Confidence, student_quantile


def test_the_set_is_wider_for_fewer_members() -> None:
    """A standard deviation estimated from few members is itself in doubt: Student's quantile in place of the Gaussian's."""
    assert student_quantile(3.0, 10) == pytest.approx(4.0942, abs=1e-3)
    radii = [student_quantile(2.0, members) for members in (2, 3, 10, 100, 100_000)]
    assert radii == sorted(radii, reverse=True)
    assert radii[0] > 4
    assert radii[-1] == pytest.approx(2.0, abs=1e-3)
    assert student_quantile(0.0, 10) == pytest.approx(0.0, abs=1e-12)
    assert student_quantile(3.0, 1) == 0.0


@pytest.mark.parametrize("factor", [1.0, 2.0, 8.0])
def test_twice_as_wide_is_twice_the_radius(factor: float) -> None:
    """Standard deviations that are too small are multiplied: Student's tails do not turn a factor of 2 into one of 10."""
    plain, wider = Confidence(3.5, 2.9), Confidence(3.5, 2.9, factor=factor)
    assert wider.width == factor * 3.5
    assert wider.radius(10) == pytest.approx(factor * plain.radius(10)) == pytest.approx(factor * 5.3, abs=0.1 * factor)


def test_the_radius_has_the_level_where_deviations_are_too_small() -> None:
    """Errors of three times Student's distribution leave the set of ``tau = 3`` as often as the level says."""
    delta, members = 0.1, 6
    errors = 3.0 * stats.t.rvs(members - 1, size=200_000, random_state=np.random.default_rng(0))
    radius = Confidence(0.0, float(stats.norm.isf(delta / 2)), tau=3.0).radius(members)
    assert np.mean(np.abs(errors) > radius) == pytest.approx(delta, abs=0.005)


@settings(max_examples=200, deadline=None)
@given(
    beta=st.floats(0.0, 1e6), quantile=st.floats(0.0, 10.0), tau=st.floats(1.0, 100.0), factor=st.floats(1.0, 1e9),
    members=st.integers(1, 50),
)  # fmt: skip
def test_no_reason_for_doubt_makes_a_set_smaller(beta: float, quantile: float, tau: float, factor: float, members: int) -> None:
    """Whatever the width is for, the set of the settings is part of it; a radius is a number and no larger than all motions."""
    confidence = Confidence(beta, quantile, tau, factor)
    assert confidence.width >= max(beta, quantile)
    assert max(student_quantile(beta, members), student_quantile(quantile, members)) <= confidence.radius(members)
    assert confidence.radius(members) <= LARGEST_RADIUS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -0.1}, "beta must be at least 0, got -0.1"),
        ({"beta": math.nan}, "beta must be at least 0, got nan"),
        ({"beta": 1.0, "quantile": -1.0}, "quantile must be at least 0"),
        ({"beta": 1.0, "tau": 0.5}, "tau must be at least 1"),
        ({"beta": 1.0, "factor": math.nan}, "factor must be at least 1"),
    ],
)
def test_widths_are_validated(options: dict[str, float], message: str) -> None:
    """What would make a set smaller than nothing, or no set, is refused by name."""
    with pytest.raises(ValueError, match=message):
        Confidence(**options)
