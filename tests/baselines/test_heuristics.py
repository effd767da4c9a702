"""Heuristic policies: the call of every policy, in the mean field and for a fleet."""

from __future__ import annotations

import math

import pytest
import torch

from baselines import Proportional, RandomField, Stay
from mf_taxi_env import EntropyFloor, FleetSimulator, TaxiMDP, load_scenario, score


@pytest.fixture
def world() -> TaxiMDP:
    """A small Shenzhen."""
    return TaxiMDP(load_scenario("shenzhen", cells=5), horizon=4, constraints=[EntropyFloor(0.8)])


def test_stay_moves_nobody(world: TaxiMDP) -> None:
    """Zero actions, of the right shape and type, for batches of distributions and for any number of taxis."""
    stay = Stay(world)
    field = stay.field(world.initial((2, 3)), 1)
    assert field.shape == (2, 3, 25, 2) and not field.any()
    assert stay.field(world.initial().double(), 0).dtype == torch.float64
    actions = stay(torch.rand(7, 2), world.initial(), 2)
    assert actions.shape == (7, 2) and not actions.any()


def test_stay_is_the_scores_zero(world: TaxiMDP) -> None:
    """The yardstick's zero is this policy, and only passengers and noise change the fleet."""
    mu = world.rollout(Stay(world)).mu
    assert score(mu[1:], world) == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(mu[1], world.transition(mu[0], torch.zeros(25, 2)))
    assert not torch.allclose(mu[1], mu[0], atol=1e-4)


@pytest.mark.parametrize("resolution", ["cell", "continuous"])
def test_a_fleet_that_stays_travels_nowhere(world: TaxiMDP, resolution: str) -> None:
    """The fleet calls it like any policy, and no taxi drives an empty kilometre."""
    rollout = FleetSimulator(world, 200, seed=1, resolution=resolution).rollout(Stay(world))  # type: ignore[arg-type]
    assert rollout.distributions.shape == (5, 25)
    assert not rollout.travelled_km.any()


def test_a_random_field_depends_on_seed_and_step_alone(world: TaxiMDP) -> None:
    """The same episode again for the same seed, in any order of questions; other seeds and steps are others."""
    mu = world.initial((2,))
    first, again, other = (RandomField(world, seed=seed) for seed in (3, 3, 4))
    late = first.field(mu, 2)
    early = first.field(mu, 0)
    torch.testing.assert_close(again.field(mu[0], 0), early[0], rtol=0, atol=0)
    torch.testing.assert_close(again.field(mu.flip(-1), 2), late, rtol=0, atol=0)
    assert not torch.allclose(early, late)
    assert not torch.allclose(early, other.field(mu, 0))
    assert early.shape == (2, 25, 2) and -1 <= float(early.min()) < -0.9 and 0.9 < float(early.max()) <= 1


def test_a_random_field_can_be_smooth(world: TaxiMDP) -> None:
    """What a random agent of the env does, in any of the env's parameterizations."""
    mu = world.initial()
    smooth, rough = (RandomField(world, parameterization=name).field(mu, 0) for name in ("bilinear:2", "cells"))
    steps = [float(field.view(5, 5, 2).diff(dim=0).abs().mean()) for field in (smooth, rough)]
    assert steps[0] < 0.5 * steps[1]


@pytest.mark.parametrize("seed", [-1, 0.5, True])
def test_bad_seeds_raise(world: TaxiMDP, seed: object) -> None:
    """The message names the argument and the value."""
    with pytest.raises(ValueError, match=f"seed .*got {seed}"):
        RandomField(world, seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("gain", [0.0, -1.0, math.inf, math.nan])
def test_bad_gains_raise(world: TaxiMDP, gain: float) -> None:
    """The message names the argument and the value."""
    with pytest.raises(ValueError, match=f"gain .*got {gain}"):
        Proportional(world, gain=gain)


def flow(shifts: torch.Tensor, mu: torch.Tensor, k: int) -> torch.Tensor:
    """Mass of each cell after the taxis of each cell go on to the next one along an axis, as many as their mean shift says."""
    moved = mu.view(k, k).clone()
    for axis in (0, 1):
        part = (shifts[:, axis] * k * mu).view(k, k).movedim(axis, 0)
        other = moved.movedim(axis, 0)  # a view: what it gets, the city gets
        other -= part.abs()
        other[1:] += part[:-1].clamp_min(0)
        other[:-1] += (-part[1:]).clamp_min(0)
    return moved.flatten()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("gain", [0.02, 0.1])
def test_the_surplus_diffuses(axis: int, gain: float) -> None:
    """A surplus the shape of the city's longest wave decays by the heat kernel's factor: proportional, no more and no less."""
    k = 8
    mdp = TaxiMDP(load_scenario("shenzhen", cells=k), constraints=[EntropyFloor(0.95)], noise_std=0.003)
    policy = Proportional(mdp, gain=gain)
    wave = torch.cos(math.pi / k * (torch.arange(k, dtype=torch.float64) + 0.5))
    wave = wave.unsqueeze(1 - axis).expand(k, k).flatten()
    mu = policy.target[0] + 1e-3 * policy.target[0].min() * wave
    after = flow(policy.shifts(mu, 0), mu, k)
    rate = 2 * k**2 * (1 - math.cos(math.pi / k))
    noise = policy.surplus(mu, 0) - (mu - policy.target[0])  # next to nothing of it crosses a side
    assert float(noise.abs().max()) < 1e-9
    torch.testing.assert_close(after - policy.target[0], math.exp(-gain * rate) * (mu - policy.target[0]), atol=1e-9, rtol=1e-4)
