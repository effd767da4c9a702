"""Heuristic policies: the call of every policy, in the mean field and for a fleet."""

from __future__ import annotations

import pytest
import torch

from baselines import Stay
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
