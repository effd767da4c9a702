"""Rebalancing programs: flows that balance the fleet, at the least distance, no more than there are taxis."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from baselines import FluidLP, RollingLP
from baselines.linear_programs import Neighbourhood, _first_flows
from mf_taxi_env import EntropyFloor, Grid, Scenario, TaxiMDP, load_scenario
from mf_taxi_env.wasserstein import wasserstein

#: A way over the eight neighbours is at most so much longer than the straight one: at 22.5 degrees.
DETOUR = math.cos(math.pi / 8) + math.sin(math.pi / 8) * (math.sqrt(2) - 1)


@pytest.fixture(scope="module")
def mdp() -> TaxiMDP:
    """A small Shenzhen."""
    return TaxiMDP(load_scenario("shenzhen", cells=6), constraints=[EntropyFloor(0.8)], horizon=4, noise_std=0.03)


def test_neighbours_are_the_eight_around() -> None:
    """Corners have three, edges five, others eight; ways lead from start to end."""
    graph = Neighbourhood(Grid(4))
    degrees = (graph.leaving @ np.ones(len(graph.lengths))).reshape(4, 4)
    np.testing.assert_array_equal(degrees[0], [3, 5, 5, 3])
    np.testing.assert_array_equal(degrees[1], [5, 8, 8, 5])
    np.testing.assert_allclose(np.unique(graph.lengths.round(6)), [0.25, 0.353553])
    centers = Grid(4).centers(dtype=torch.float64).numpy()
    np.testing.assert_allclose(-(graph.net.T @ centers), graph.ways)


def test_shifts_carry_the_flows() -> None:
    """The mean displacement of a cell times its mass is the moment of what leaves it, to one side."""
    graph = Neighbourhood(Grid(3))
    flows = np.zeros(len(graph.lengths))
    east = np.flatnonzero((graph.leaving.toarray()[4] > 0) & (graph.ways[:, 0] > 0.1))  # straight east, and both diagonals
    flows[east] = 0.01
    shifts = graph.shifts(flows, np.full(9, 0.1))
    np.testing.assert_allclose(shifts[4], [0.03 / 0.1 / 3, 0.02 / 0.1 / 3])  # both diagonals go to one side
    assert not np.delete(shifts, 4, 0).any()


def test_static_flows_balance_the_fleet_at_least_distance(mdp: TaxiMDP) -> None:
    """One step of the fleet at its optimum ends there; the flows are as long as optimal transport, but for the eight ways."""
    policy = FluidLP(mdp)
    target = policy.target[0]
    after = mdp.shift(target.float(), 0)
    stayed = mdp.move(after, torch.zeros(36, 2)).mu.double()
    moved = mdp.move(after, policy.field(after, 0)).mu.double()
    assert float((moved - target).abs().sum()) < 0.75 * float((stayed - target).abs().sum())
    graph = Neighbourhood(mdp.grid)
    surplus = (stayed - target).numpy()
    mass, still = np.full((1, 36), 1.0), 1e-9  # taxis enough, and hardly a price
    flows = _first_flows(graph, mass, (surplus - surplus.mean())[None], still)
    np.testing.assert_allclose(graph.net @ flows, surplus, atol=1e-6)
    least = float(wasserstein(stayed / stayed.sum(), target / target.sum()))
    assert least - 1e-6 <= float(graph.lengths @ flows) <= DETOUR * least + 1e-6


def test_the_static_policy_is_blind(mdp: TaxiMDP) -> None:
    """The same shifts whatever the fleet and the step."""
    policy = FluidLP(mdp)
    mu = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(36), 2))
    shifts = policy.shifts(mu, 0)
    torch.testing.assert_close(shifts[0], shifts[1])
    torch.testing.assert_close(policy.shifts(mu[0], 3), shifts[0])
    assert float(shifts.abs().max()) > 0.01


def test_driving_has_its_price(mdp: TaxiMDP) -> None:
    """A taxi is worth one where it is too much and one where it is missing, for a step; nobody goes further than that pays."""
    mu = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(36)))
    worth = 2 * 6.0  # to the next cell, a sixth of a side
    assert bool(RollingLP(mdp, steps=1, price=worth - 0.1).shifts(mu, 0).any())
    assert not RollingLP(mdp, steps=1, price=worth + 0.1).shifts(mu, 0).any()
    assert bool(RollingLP(mdp, steps=2, price=worth + 0.1).shifts(mu, 0).any())  # for longer it is worth more


#: Demand in a city of four cells, more in the first or more in the second.
FIRST, SECOND = np.array([0.4, 0.2, 0.2, 0.2]), np.array([0.2, 0.4, 0.2, 0.2])


def changing(*demand: np.ndarray, trips: np.ndarray | None = None) -> TaxiMDP:
    """Four cells, no constraints, and a demand per step; nobody rides anywhere by default."""
    city = Scenario("town", np.stack(demand), np.eye(4) if trips is None else trips, box=(0.0, 1.0, 0.0, 1.0))
    return TaxiMDP(city, constraints=[], horizon=len(demand), noise_std=0.01, reward_timing="next")


def test_the_rolling_program_knows_that_demand_will_change() -> None:
    """A way that two steps pay for, and one does not, is taken where demand stays and not where it will go back."""
    seen, price = torch.from_numpy(FIRST), 6.0  # half a side costs 3; a taxi in its place is worth 2 per step
    stays, returns = changing(FIRST, SECOND, SECOND), changing(FIRST, SECOND, FIRST)
    shifts = RollingLP(stays, steps=2, price=price).shifts(seen, 1)
    np.testing.assert_allclose(shifts[0], [0.0, 0.25], atol=1e-4)  # half of the first cell's taxis, to the second
    assert not RollingLP(returns, steps=2, price=price).shifts(seen, 1).any()
    assert not RollingLP(stays, steps=1, price=price).shifts(seen, 1).any()


def test_the_static_program_averages_demand() -> None:
    """Whoever is picked up in the first cell is dropped in the second: flows back are those of the mean demand."""
    trips = np.eye(4)
    trips[0] = [0.0, 1.0, 0.0, 0.0]
    seen = torch.from_numpy(FIRST)
    first, second, both = (
        FluidLP(changing(*demand, trips=trips)).shifts(seen, 0)
        for demand in ((FIRST, FIRST), (SECOND, SECOND), (FIRST, SECOND))
    )
    np.testing.assert_allclose(first[1], [0.0, -1 / 3], atol=1e-4)
    np.testing.assert_allclose(second[1], [0.0, -1 / 6], atol=1e-4)
    np.testing.assert_allclose(both, (first + second) / 2, atol=1e-4)


def test_taxis_leave_once_per_step() -> None:
    """A crowd with the whole city to fill goes to its neighbours first; the next step is planned for them to go on."""
    graph = Neighbourhood(Grid(3))
    mass, surplus = np.zeros((2, 9)), np.zeros((2, 9))
    mass[0, 0], surplus[0, 0], surplus[0, 8] = 1.0, 0.5, -0.5
    flows = _first_flows(graph, mass, surplus, 0.1)
    leaving = graph.leaving @ flows
    np.testing.assert_allclose(leaving[0], 0.5, atol=1e-7)
    np.testing.assert_allclose(np.delete(leaving, 0), 0.0, atol=1e-7)
    np.testing.assert_allclose(flows.sum(), 0.5, atol=1e-7)
    np.testing.assert_allclose((flows[:, None] * graph.ways).sum(0), [1 / 6, 1 / 6], atol=1e-7)  # towards the far corner
    assert not _first_flows(graph, mass[:1], surplus[:1], 0.1).any()  # who looks one step ahead sees no way


def test_a_plan_exists_for_any_fleet(mdp: TaxiMDP) -> None:
    """All taxis in one cell, or none in most: nobody is asked to leave where there is nobody."""
    point = torch.zeros(36, dtype=torch.float64)
    point[3] = 1.0
    shifts = RollingLP(mdp, steps=4).shifts(point, 0)
    assert bool(shifts.isfinite().all())
    assert float(shifts[3].abs().max()) > 0
    mask = torch.ones(36, dtype=torch.bool)
    mask[3] = False
    assert not shifts[mask].any()


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 0), ("steps", 1.5), ("price", -0.1), ("price", math.nan), ("price", math.inf)]
)
def test_bad_settings_raise(mdp: TaxiMDP, name: str, value: float) -> None:
    """The message names the argument and the value."""
    with pytest.raises(ValueError, match=f"{name} .*got {value}"):
        RollingLP(mdp, **{name: value})  # type: ignore[arg-type]
