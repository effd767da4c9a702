"""Greedy transport: the plan is the cheapest, and a cell's taxis head for its barycentre."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from baselines import GreedyTransport
from mf_taxi_env import EntropyFloor, FreeMotion, TaxiMDP, load_scenario


@pytest.fixture(scope="module")
def mdp() -> TaxiMDP:
    """A small Shenzhen."""
    return TaxiMDP(load_scenario("shenzhen", cells=5), constraints=[EntropyFloor(0.8)], horizon=3)


def test_equal_masses_are_matched_at_least_cost(mdp: TaxiMDP) -> None:
    """Between as many equal masses the plan is an assignment: that of a solver of another kind."""
    policy, rng = GreedyTransport(mdp), np.random.default_rng(0)
    starts, ends = (rng.choice(25, 6, replace=False) for _ in range(2))
    mu, goal = np.zeros(25), np.zeros(25)
    mu[starts] = goal[ends] = 1 / 6
    policy.target = torch.from_numpy(goal)[None]
    places = mdp.centers.double().numpy()
    cost = np.square(places[starts, None] - places[ends]).sum(-1)
    shifts = policy.solve(mu, 0)[starts]
    assert np.square(shifts).sum() == pytest.approx(cost[linear_sum_assignment(cost)].sum(), abs=1e-6)
    assert {tuple(place) for place in (places[starts] + shifts).round(4)} == {tuple(place) for place in places[ends].round(4)}


def test_a_split_cell_heads_for_the_barycentre(mdp: TaxiMDP) -> None:
    """Three quarters are wanted one cell east, a quarter one cell north; empty cells want nobody moved."""
    policy = GreedyTransport(mdp)
    mu, goal = np.zeros(25), np.zeros(25)
    mu[12], goal[17], goal[13] = 1.0, 0.75, 0.25
    policy.target = torch.from_numpy(goal)[None]
    shifts = policy.solve(mu, 0)
    np.testing.assert_allclose(shifts[12], [0.75 / 5, 0.25 / 5], atol=1e-7)
    assert not np.delete(shifts, 12, 0).any()


def test_squared_distances_keep_neighbours_together(mdp: TaxiMDP) -> None:
    """A fleet that is wanted one cell further moves by one cell as a whole; with plain distances its rear could go three."""
    policy = GreedyTransport(mdp)
    mu, goal = np.zeros(25), np.zeros(25)
    mu[[2, 7, 12]], goal[[7, 12, 17]] = 1 / 3, 1 / 3
    policy.target = torch.from_numpy(goal)[None]
    np.testing.assert_allclose(policy.solve(mu, 0)[[2, 7, 12]], [[0.2, 0.0]] * 3, atol=1e-7)


def test_each_step_has_its_own_target(mdp: TaxiMDP) -> None:
    """Demand changes from step to step, and steps beyond the last share its target."""
    policy = GreedyTransport(mdp, FreeMotion())
    target = torch.zeros(2, 25, dtype=torch.float64)
    target[0, 24] = target[1, 0] = 1.0
    policy.target = target
    mu = mdp.initial()
    east, west, later = (policy.shifts(mu.double(), t) for t in (0, 1, 5))
    assert bool((east[:24].sum(-1) > 0).all()) and bool((west[1:].sum(-1) < 0).all())
    torch.testing.assert_close(later, west)
