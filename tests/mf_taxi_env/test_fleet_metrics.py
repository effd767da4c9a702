"""Operators' metrics against sums by hand, and the mean field's against those of a large fleet."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mf_taxi_env import EntropyFloor, FleetRollout, FleetSimulator, Grid, RegionCapacity, Scenario, TaxiMDP, load_scenario
from mf_taxi_env.finite_samples import corrected_margins, entropy_bias
from mf_taxi_env.fleet_metrics import (
    METRICS,
    MetricSettings,
    episode_metrics,
    fleet_metrics,
    gini,
    mean_field_metrics,
    over_runs,
)
from mf_taxi_env.scenarios.city import box_km

Make = Callable[..., Scenario]


class Drift:
    """Every taxi moves a little to the east."""

    def __init__(self, mdp: TaxiMDP) -> None:
        self.mdp = mdp

    def field(self, mu: Tensor, t: int) -> Tensor:
        return torch.tensor([0.1, 0.0]).expand(self.mdp.grid.size, 2)

    def __call__(self, positions: Tensor, mu: Tensor, t: int) -> Tensor:
        return torch.tensor([0.1, 0.0]).expand(len(positions), 2)


def toy(constraints: Any = (), demand: list[float] | None = None) -> TaxiMDP:
    """Four cells, about 111 km wide and high, where nobody goes anywhere."""
    city = Scenario("toy", np.array(demand or [0.5, 0.5, 0.0, 0.0]), np.eye(4), (0.0, 1.0, -0.5, 0.5))
    return TaxiMDP(city, horizon=1, constraints=constraints)


def rollout(distributions: list[list[float]], taxis: int = 100) -> FleetRollout:
    """A given episode of one step."""
    number = torch.tensor([0.25])
    return FleetRollout(torch.tensor(distributions), number, 2 * number, torch.zeros(taxis, 2), 3 * number, 4 * number)


def test_numbers_by_hand() -> None:
    """Served demand and waiting of the distribution before the step, the rest of the one after."""
    mdp = toy([EntropyFloor(0.5), RegionCapacity([0], 0.6)])
    steps = fleet_metrics(rollout([[0.25, 0.5, 0.25, 0.0], [0.75, 0.25, 0.0, 0.0]]), mdp)
    expected = {
        "served_demand": 0.25 + 0.5,
        "waiting_minutes": 15 * 0.5 * (0.5 / 0.25 - 1),
        "occupancy": 0.25,
        "repositioning_km": 0.5,
        "empty_km": 0.75,
        "carried_km": 1.0,
        "coverage": 0.5,
        "entropy": (-0.75 * math.log(0.75) - 0.25 * math.log(0.25)) / math.log(4),
        "kl": 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25),
        "margin": -0.15,
        "violations": 1.0,
        "corrected_margin": -0.15,
        "corrected_violations": 1.0,
    }
    assert {name: float(values) for name, values in steps.items() if name != "gini"} == pytest.approx(expected, abs=1e-6)
    # Four districts of densities 3, 1, 0, 0: the mean of all 16 differences, halved.
    assert float(steps["gini"]) == pytest.approx(2 * (2 + 3 + 3 + 1 + 1 + 0) / 16 / 2)


def test_a_cell_without_taxis_waits_no_longer_than_an_episode() -> None:
    """The proxy is bounded by the horizon, also where nobody ever comes."""
    steps = fleet_metrics(rollout([[0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]), toy())
    assert float(steps["waiting_minutes"]) == pytest.approx(15 * 0.5)
    assert float(steps["margin"]) == math.inf and float(steps["violations"]) == 0


@pytest.mark.parametrize(
    ("provenance", "minutes"),
    [
        ({"window": ["19:00", "22:00"], "steps": 36}, 5),
        ({"window": ["00:00", "24:00"], "steps": 24}, 60),
        ({"window": ["19:00", "22:00"], "steps": 1}, 15),
        ({"window": None, "steps": 1}, 15),
        ({"window": "evening", "steps": 12}, 15),
        ({"window": ["19:00", "22:00"], "steps": "twelve"}, 15),
    ],
)
def test_a_step_lasts_as_long_as_a_slice_of_the_trips(provenance: dict[str, Any], minutes: float) -> None:
    """Waiting is in minutes of the steps that the city was cut into, the paper's quarter of an hour where it was not."""
    city = replace(toy().scenario, provenance=provenance)
    steps = fleet_metrics(rollout([[0.25, 0.5, 0.25, 0.0], [0.75, 0.25, 0.0, 0.0]]), TaxiMDP(city, horizon=1))
    assert float(steps["waiting_minutes"]) == pytest.approx(minutes * 0.5 * (0.5 / 0.25 - 1))


@pytest.mark.parametrize(("reach", "share"), [(0.0, 0.25), (60.0, 0.75), (80.0, 1.0)])
def test_residents_in_reach_of_a_covered_cell(reach: float, share: float) -> None:
    """Centres are 55.6 km apart along an axis, 78.6 km across."""
    settings = MetricSettings(residents=[1, 1, 1, 1], reach_km=reach)
    steps = fleet_metrics(rollout([[0.25] * 4, [1.0, 0.0, 0.0, 0.0]]), toy(), settings)
    assert float(steps["residents_in_reach"]) == pytest.approx(share)


def test_gini_counts_districts_by_area() -> None:
    """An even fleet has 0 whether or not districts divide the grid; all in one of n equal districts is 1 - 1/n."""
    even = torch.full((2, 25), 0.04)
    torch.testing.assert_close(gini(even, Grid(5), 2), torch.zeros(2), atol=1e-6, rtol=0)
    one = torch.zeros(36)
    one[0] = 1.0
    assert float(gini(one, Grid(6), 3)) == pytest.approx(1 - 1 / 9)


def test_only_entropy_floors_are_corrected_and_only_where_the_formula_holds() -> None:
    """The margin of another constraint stays; with fewer taxis than cells nothing is known, and no fleet is called safe."""
    mdp = toy([EntropyFloor(0.5), RegionCapacity([0], 0.6)])
    margins = torch.tensor([[0.1, -0.2]])
    torch.testing.assert_close(corrected_margins(margins, mdp, 100), torch.tensor([[0.1 + 3 / 200, -0.2]]))
    torch.testing.assert_close(corrected_margins(margins, mdp, 4), torch.tensor([[0.1 + 3 / 8, -0.2]]))
    torch.testing.assert_close(corrected_margins(margins, mdp, 3), torch.tensor([[math.nan, -0.2]]), equal_nan=True)
    torch.testing.assert_close(corrected_margins(margins, mdp, math.inf), margins)
    assert entropy_bias(4, 100) == 3 / 200 and math.isnan(entropy_bias(4, 3))
    few = fleet_metrics(rollout([[0.25] * 4, [0.5, 0.5, 0.0, 0.0]], taxis=3), toy([EntropyFloor(0.9)]))
    assert float(few["violations"]) == 1 and few["corrected_margin"].isnan() and few["corrected_violations"].isnan()
    elsewhere = fleet_metrics(rollout([[0.25] * 4, [0.5, 0.5, 0.0, 0.0]], taxis=3), toy([RegionCapacity([0], 0.6)]))
    assert float(elsewhere["corrected_violations"]) == 0 and float(elsewhere["corrected_margin"]) == pytest.approx(0.1)


def test_a_large_fleet_measures_what_the_mean_field_does() -> None:
    """All metrics that both have, at every step."""
    mdp = TaxiMDP(load_scenario("shenzhen", cells=6), horizon=3)
    policy = Drift(mdp)
    fleet = fleet_metrics(FleetSimulator(mdp, 400_000, seed=0).rollout(policy), mdp, MetricSettings(residents=mdp.demand(0)))
    field = mean_field_metrics(mdp.rollout(policy), mdp, MetricSettings(residents=mdp.demand(0)), policy=policy)
    assert set(fleet) == set(METRICS) and set(METRICS) - set(field) == {"empty_km", "carried_km"}
    for name, values in field.items():
        assert values.shape == (3,)
        torch.testing.assert_close(fleet[name], values, rtol=0.02, atol=0.005, msg=lambda text, name=name: f"{name}: {text}")
    assert "repositioning_km" not in mean_field_metrics(mdp.rollout(policy), mdp)


def test_kilometres_of_a_fleet() -> None:
    """Passengers ride from cell 0 to cell 3; the noise upon a fleet that stays put is driven empty."""
    trips = np.eye(4)
    trips[0] = np.eye(4)[3]
    city = Scenario("toy", np.array([1.0, 0.0, 0.0, 0.0]), trips, (0.0, 1.0, -0.5, 0.5))
    mdp = TaxiMDP(city, horizon=1, noise_std=0.01)
    fleet = FleetSimulator(mdp, 50_000, seed=0, resolution="continuous")
    path = fleet.rollout(lambda positions, mu, t: torch.zeros_like(positions))
    # Mean distance of uniform points of cells that meet at a corner, by simulation with NumPy.
    rng = np.random.default_rng(0)
    ride = np.linalg.norm(0.5 + 0.5 * rng.random((10**6, 2)) - 0.5 * rng.random((10**6, 2)), axis=1).mean() * 111.19
    share = float(path.occupied)
    assert share == pytest.approx(0.25, abs=0.01)
    assert float(path.carried_km) == pytest.approx(share * ride, rel=0.01)
    assert float(path.travelled_km) == 0.0
    # Mean length of a two-dimensional Gaussian; truncation at the edges takes a little.
    assert float(path.empty_km) == pytest.approx(0.01 * math.sqrt(math.pi / 2) * 111.19, rel=0.03)
    assert float(fleet.kilometres.carried) == float(path.carried_km)


def test_an_episode_sums_kilometres_and_keeps_the_worst_margin() -> None:
    """Each metric by its own rule."""
    values = torch.tensor([1.0, 4.0])
    assert episode_metrics(dict.fromkeys(METRICS, values)) == {
        name: {"mean": 2.5, "sum": 5.0, "min": 1.0}[metric.episode] for name, metric in METRICS.items()
    }
    assert METRICS["margin"].episode == "min" and METRICS["empty_km"].episode == "sum"


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    """Of intervals at 90 % from 6 normal runs, nine in ten cover."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2_000):
        estimate = over_runs([{"kl": float(value)} for value in rng.normal(3.0, 2.0, 6)], confidence=0.9)["kl"]
        covered += estimate.low <= 3.0 <= estimate.high
    assert covered / 2_000 == pytest.approx(0.9, abs=0.025)
    alone = over_runs([{"kl": 1.0}])["kl"]
    assert alone.mean == 1.0 and math.isnan(alone.low) and math.isnan(alone.high) and alone.runs == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: over_runs([]), "episodes .* got none"),
        (lambda: over_runs([{}], confidence=1.0), "confidence .* got 1.0"),
        (lambda: MetricSettings(districts=0), "districts .* got 0"),
        (lambda: MetricSettings(coverage_floor=0.0), "coverage_floor .* got 0.0"),
        (lambda: MetricSettings(reach_km=-1.0), "reach_km .* got -1.0"),
        (lambda: gini(torch.full((4,), 0.25), Grid(2), 3), "districts .* 1 to 2, got 3"),
        (lambda: fleet_metrics(rollout([[0.25] * 4] * 2), toy(), MetricSettings(residents=[1])), "residents .* 4"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], object], message: str) -> None:
    """The message names the argument, the value and what is allowed."""
    with pytest.raises(ValueError, match=message):
        call()


def test_every_metric_is_on_its_page() -> None:
    """The table of the page on the fleet has all metrics, each with its unit and what an episode makes of it."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "fleet.md").read_text()
    rows = {name: (unit, episode) for name, unit, episode in re.findall(r"^\| `(\w+)` \| .* \| (.*) \| (\w+) \|$", page, re.M)}
    assert rows == {name: (metric.unit, metric.episode) for name, metric in METRICS.items()}


def test_every_step_is_measured_against_its_own_demand(make_scenario: Make) -> None:
    """In a city that changes by step: demand served and KL by hand."""
    city = TaxiMDP(make_scenario(5, steps=3), horizon=3)
    path = city.rollout(Drift(city))
    measured = mean_field_metrics(path, city)
    for t in range(3):
        rho = city.demand(t)
        assert float(measured["served_demand"][t]) == pytest.approx(float(torch.minimum(path.mu[t], rho).sum()), rel=1e-5)
        expected = float((rho * (rho / path.mu[t + 1]).log()).nan_to_num(0.0).sum())
        assert float(measured["kl"][t]) == pytest.approx(expected, rel=1e-4)
    assert not torch.allclose(city.demand(0), city.demand(1))


@pytest.mark.parametrize("reach", [0.0, 0.7, 1.5, 1000.0])
def test_reach_is_that_of_all_pairs_of_cells(make_scenario: Make, reach: float) -> None:
    """In a city that is wider than high: whoever has a covered centre within reach, by a loop over all pairs."""
    city = TaxiMDP(replace(make_scenario(4), box=(0.0, 0.04, 0.0, 0.02)), horizon=2)
    residents = torch.linspace(1.0, 2.0, 16)
    path = city.rollout(Drift(city))
    floor = float(16 * path.mu[1:].median())
    settings = MetricSettings(residents=residents, reach_km=reach, coverage_floor=floor)
    found = mean_field_metrics(path, city, settings)["residents_in_reach"]
    places = city.centers.double() * torch.tensor(box_km(city.scenario.box))
    for t in range(2):
        covered = path.mu[t + 1] >= floor / 16
        near = [any(float((places[c] - places[d]).norm()) <= reach + 1e-6 for d in covered.nonzero()[:, 0]) for c in range(16)]
        assert float(found[t]) == pytest.approx(float(residents[torch.tensor(near)].sum() / residents.sum()), rel=1e-5)
