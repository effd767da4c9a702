"""How a finite fleet tends to the mean field: the rate, and what entropy falls short by."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mf_taxi_env import EntropyFloor, FleetSimulator, TaxiMDP, load_scenario
from mf_taxi_env.finite_samples import corrected_margins, entropy_bias, fleet_size_for
from mf_taxi_env.information import entropy


class Gather:
    """A fixed policy: a third of the way to a point off the centre."""

    def __init__(self, mdp: TaxiMDP) -> None:
        self.actions = 0.3 * (torch.tensor([0.45, 0.6]) - mdp.centers)
        self.mdp = mdp

    def field(self, mu: Tensor, t: int) -> Tensor:
        return self.actions

    def __call__(self, positions: Tensor, mu: Tensor, t: int) -> Tensor:
        return self.actions[self.mdp.grid.index(positions)]


@pytest.fixture(scope="module")
def town() -> TaxiMDP:
    """The built-in city on 36 cells, where a few thousand taxis reach them all."""
    return TaxiMDP(load_scenario("shenzhen", cells=6), noise_std=0.1, horizon=4, constraints=[EntropyFloor(0.8)])


def test_the_fleet_tends_to_the_mean_field_with_the_root_of_its_size(town: TaxiMDP) -> None:
    """Total variation over four decades of fleet sizes falls with slope -0.5, at every step of the episode."""
    policy = Gather(town)
    limit = town.rollout(policy).mu
    sizes = [10**2, 10**3, 10**4, 10**5, 10**6]
    distances = []
    for m in sizes:
        fleet = FleetSimulator(town, m, seed=0)
        runs = [fleet.rollout(policy).distributions for _ in range(max(2, min(40, 200_000 // m)))]
        distances.append(0.5 * (torch.stack(runs) - limit).abs().sum(-1).mean(0))
    slopes = np.polyfit(np.log(sizes), np.log(torch.stack(distances).numpy()), 1)[0]
    print("slopes per step", slopes)
    assert slopes == pytest.approx(np.full(town.horizon + 1, -0.5), abs=0.1)


def test_entropy_falls_short_by_the_known_bias(town: TaxiMDP) -> None:
    """(K - 1) / (2 m) nats on average over runs, and the corrected margin is that of the mean field."""
    policy, m = Gather(town), 1_000
    limit = town.rollout(policy)
    fleet = FleetSimulator(town, m, seed=1)
    runs = torch.stack([fleet.rollout(policy).distributions for _ in range(150)])
    shortfall = float((entropy(limit.mu) - entropy(runs)).mean())
    print("shortfall / bias", shortfall / entropy_bias(36, m))
    assert shortfall == pytest.approx(entropy_bias(36, m), rel=0.2)
    margins = town.margins(runs[:, 1:])
    gap = float((limit.margins - margins).mean())
    corrected = float((limit.margins - corrected_margins(margins, town, m)).mean())
    assert gap > 0.8 * entropy_bias(36, m) and abs(corrected) < 0.2 * gap


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_the_smallest_fleet_that_a_margin_is_enough_for(spread: float) -> None:
    """There bias and scatter are within the margin, and with one taxi less they are not; never fewer taxis than cells."""

    def lacking(m: float) -> float:
        return entropy_bias(625, m) + spread / math.sqrt(m)

    for margin in (0.001, 0.0312, 0.2):
        m = fleet_size_for(margin, 625, spread)
        assert lacking(m) <= margin * (1 + 1e-9) and lacking(m - 1) > margin
    assert fleet_size_for(100.0, 625, spread) == 625
    assert fleet_size_for(0.0, 625, spread) == fleet_size_for(-0.1, 625, spread) == math.inf
    assert fleet_size_for(entropy_bias(625, 10_000), 625) == 10_000
