"""Landings near the city's edge as Gaussian sites: the right moments, and beliefs that the edge does not bend."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safe_m3_agent.model.edge_sites import clear_landings, propagate, tilted_moments
from safe_m3_agent.model.posterior import LEFT_OUT, LinearPlusRBF, Observations, Posterior
from safe_m3_agent.model.truncated_likelihood import negative_log_likelihood

STD = torch.tensor(0.05, dtype=torch.float64)


def by_summation(landing: float, mean: float, variance: float) -> tuple[float, float]:
    """Mean and variance of the destination after a landing, from a fine grid over where it can be at all."""
    reach = 10 * math.sqrt(variance)
    place = torch.linspace(min(mean - reach, -1.0), max(mean + reach, 2.0), 1_000_001, dtype=torch.float64)
    log_weight = -negative_log_likelihood(torch.tensor(landing), place.clamp(0, 1), STD) - (place - mean) ** 2 / (2 * variance)
    weight = log_weight.softmax(0)
    average = float((weight * place).sum())
    return average, float((weight * (place - average).square()).sum())


@given(st.floats(0, 1), st.floats(-0.5, 1.5), st.floats(-3, 0.3))
@settings(deadline=None, max_examples=60)
def test_moments(landing: float, mean: float, log_std: float) -> None:
    """Closed forms beyond the edge and quadrature inside agree with a sum over a million points."""
    variance = math.exp(2 * log_std)
    ours = tilted_moments(*(torch.tensor([x], dtype=torch.float64) for x in (landing, mean, variance)), STD)
    average, spread = by_summation(landing, mean, variance)
    assert float(ours[0]) == pytest.approx(average, abs=2e-5)
    assert float(ours[1]) == pytest.approx(spread, rel=1e-3, abs=1e-7)


def belief_after(landing: Tensor, sweeps: int = 10) -> tuple[float, float]:
    """Mean and standard deviation of one destination that all landings share, under a wide prior."""
    kernel = LinearPlusRBF(1.0, torch.full((1,), 1e-3, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    inputs = torch.zeros(len(landing), 1, dtype=torch.float64)
    start = torch.full((1, len(landing)), 0.5, dtype=torch.float64)
    values, variance = clear_landings(landing.unsqueeze(0), STD.view(1, 1))
    sites = Observations(inputs, values - start, variance)
    sites = propagate(kernel, sites, start, landing.unsqueeze(0), STD.view(1, 1), None, sweeps)
    mean, spread = Posterior(kernel, inputs, sites.variance, None).marginals(sites.values)
    return 0.5 + float(mean[0, 0]), float(spread[0, 0].sqrt())


def land(destination: float, n: int, seed: int) -> Tensor:
    """Landings of vehicles that head for ``destination``, clipped to the city, by rejection."""
    generator = torch.Generator().manual_seed(seed)
    drawn = min(max(destination, 0.0), 1.0) + STD * torch.randn(20 * n, generator=generator, dtype=torch.float64)
    return drawn[(drawn >= 0) & (drawn <= 1)][:n]


@pytest.mark.parametrize("destination", [0.5, 0.9, 0.95, 0.05])
def test_destinations_near_the_edge_are_found(destination: float) -> None:
    """Without bias, and with the right doubt: the mean landing would be off by up to 0.8 standard deviations of the noise."""
    errors, doubts = [], []
    for seed in range(40):
        mean, doubt = belief_after(land(destination, 60, seed))
        errors.append(mean - destination)
        doubts.append(doubt)
    bias, doubt = sum(errors) / 40, sum(doubts) / 40
    assert abs(bias) < 0.25 * doubt
    assert 0.6 < float(torch.tensor(errors).std()) / doubt < 1.4


def test_well_inside_a_site_is_the_landing() -> None:
    """Far from the edge nothing is approximated: value and variance are those of plain regression."""
    landing = torch.linspace(0.45, 0.55, 8, dtype=torch.float64).unsqueeze(0)
    kernel = LinearPlusRBF(1.0, torch.full((1,), 0.1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    values, variance = clear_landings(landing, STD.view(1, 1))
    sites = Observations(torch.linspace(-1, 1, 8, dtype=torch.float64).unsqueeze(1), values - 0.5, variance)
    after = propagate(kernel, sites, torch.full_like(landing, 0.5), landing, STD.view(1, 1), None, 5)
    torch.testing.assert_close(after.values, sites.values, atol=1e-6, rtol=0)
    torch.testing.assert_close(after.variance, sites.variance, atol=0, rtol=1e-4)


@pytest.mark.parametrize("destination", [-0.3, 0.0, 0.02, 0.98, 1.0])
def test_at_the_edge_what_is_clipped_is_found(destination: float) -> None:
    """Whether a destination so near the edge lies beyond it cannot be told; clipped, it is known all the same."""
    goal = min(max(destination, 0.0), 1.0)
    means = [min(max(belief_after(land(destination, 60, seed))[0], 0.0), 1.0) for seed in range(20)]
    assert abs(sum(means) / 20 - goal) < 0.3 * float(STD)


def test_landings_at_the_edge_do_not_say_how_far_beyond() -> None:
    """All that moves beyond the edge teach is that they led there: the belief widens there."""
    mean, doubt = belief_after(land(1.3, 50, 0), sweeps=20)
    assert mean > 1.0
    assert doubt > 4 * 0.05 / math.sqrt(50)  # plain regression would claim a quarter of this, about an edge missed inwards


def test_landings_at_the_edge_are_left_out_at_first() -> None:
    """As long as nothing is known, a landing near the edge could come from anywhere beyond it."""
    values, variance = clear_landings(torch.tensor([[0.01, 0.3, 0.99]]), torch.tensor([[0.05]]))
    assert torch.equal(values, torch.tensor([[0.01, 0.3, 0.99]]))
    assert variance.flatten().tolist() == pytest.approx([LEFT_OUT, 0.0025, LEFT_OUT])
