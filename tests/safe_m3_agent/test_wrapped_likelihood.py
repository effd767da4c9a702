"""The likelihood of a landing on a ring: nothing happens at the seam."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from safe_m3_agent.model.wrapped_likelihood import irls_targets, negative_log_likelihood

unit = st.floats(0.0, 1.0)


def number(value: float) -> Tensor:
    """A tensor in double precision."""
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("std", [0.02, 0.1, 0.15])
def test_matches_the_wrapped_gaussian(std: float) -> None:
    """The density summed over all turns, but for places nearly half a turn away, which it holds half as likely."""
    landing, destination = torch.meshgrid(*[torch.linspace(0, 1, 41, dtype=torch.float64)] * 2, indexing="ij")
    turns = torch.arange(-5, 6, dtype=torch.float64)
    away = (landing - destination).unsqueeze(-1) + turns
    exact = -(torch.exp(-0.5 * (away / std) ** 2) / std).sum(-1).log()
    excess = negative_log_likelihood(landing, destination, number(std)) - exact
    assert float(excess.min()) > -1e-12 and float(excess.max()) < math.log(2) + 1e-9
    near = away.abs().amin(-1) < 0.25
    assert float(excess[near].abs().max()) < math.exp(-0.25 / (2 * std**2)) + 1e-12


@given(unit, unit, st.integers(-2, 2), st.floats(0.0, 1.0))
def test_turning_the_ring_changes_nothing(landing: float, destination: float, turns: int, turn: float) -> None:
    """The likelihood depends on the way between the two alone, and whole turns of a prediction do not matter."""
    value = negative_log_likelihood(number(landing), number(destination), number(0.1))
    turned = negative_log_likelihood(number((landing + turn) % 1), number(destination + turn + turns), number(0.1))
    torch.testing.assert_close(turned, value, atol=1e-9, rtol=0)


@given(unit, st.floats(-1.5, 1.5))
def test_working_response_is_the_nearest_image(landing: float, unclipped: float) -> None:
    """The response is the landing, some whole turns away, within half a turn of the prediction."""
    response, weight = irls_targets(number(landing), number(unclipped), number(0.1))
    assert abs(float(response) - landing - round(float(response) - landing)) < 1e-12
    assert abs(float(response) - unclipped) <= 0.5 + 1e-12
    assert float(weight) == pytest.approx(100.0)


def test_a_scoring_step_is_newtons() -> None:
    """Weight and response are the curvature of the negative log-likelihood and where its slope is zero, across the seam too."""
    landing, prediction = number(0.97), number(0.04).requires_grad_()
    (slope,) = torch.autograd.grad(negative_log_likelihood(landing, prediction, number(0.1)), prediction)
    response, weight = irls_targets(landing, prediction.detach(), number(0.1))
    torch.testing.assert_close(slope, weight * (prediction.detach() - response))
    assert float(response) == pytest.approx(-0.03)
