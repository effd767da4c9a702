"""Policies that aim at the safe optimum: what they share, on fleets and in the mean field, and the bound that none exceeds."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from baselines import FluidLP, GreedyTransport, Proportional, RandomField, RollingLP, Stay
from baselines.aiming import REMEMBERED, AimedPolicy, SolvedPolicy, one_way
from mf_taxi_env import (
    CongestedMotion,
    DistanceCap,
    EntropyFloor,
    FleetSimulator,
    Grid,
    KeepAway,
    RegionCapacity,
    Scenario,
    SwarmMDP,
    TaxiMDP,
    certified_bound,
    load_scenario,
)
from mf_taxi_env.constraint import Constraint
from mf_taxi_env.information import kl_divergence
from safe_m3_agent.hallucination import UnknownMotion

AIMED: list[type[AimedPolicy]] = [Proportional, GreedyTransport, FluidLP, RollingLP]
ALL: list[Callable[[TaxiMDP], object]] = [Stay, RandomField, *AIMED]


def town(**options: object) -> TaxiMDP:
    """A small Shenzhen of four steps, with noise that is felt on its coarse grid."""
    given: dict[str, object] = {"constraints": [EntropyFloor(0.8)], "horizon": 4, "noise_std": 0.05}
    return TaxiMDP(load_scenario("shenzhen", cells=5), **{**given, **options})  # type: ignore[arg-type]


def off_target(policy: AimedPolicy, mdp: TaxiMDP) -> Tensor:
    """Total variation from the target after each step, [T]."""
    return 0.5 * (mdp.rollout(policy).mu[1:].double() - policy.target).abs().sum(-1)


@pytest.mark.parametrize("make", ALL)
def test_a_field_is_the_same_for_cells_and_taxis(make: Callable[[TaxiMDP], object]) -> None:
    """Batched fields are those of their rows; at cell centres a taxi gets its cell's action; all are allowed and finite."""
    mdp = town()
    policy = make(mdp)
    mu = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(25), (2, 3))).float()
    batch = policy.field(mu, 1)  # type: ignore[attr-defined]
    assert batch.shape == (2, 3, 25, 2) and batch.dtype == torch.float32
    assert bool((batch.abs() <= 1).all())
    for i, j in np.ndindex(2, 3):
        torch.testing.assert_close(policy.field(mu[i, j], 1), batch[i, j], rtol=0, atol=1e-5)  # type: ignore[attr-defined]
    at_centers = policy(mdp.centers, mu[0, 1], 1)  # type: ignore[operator]
    torch.testing.assert_close(at_centers, batch[0, 1], rtol=0, atol=1e-5)
    torch.testing.assert_close(policy.at(mu[0, 1], 1)(mdp.centers), at_centers)  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("resolution", ["cell", "continuous"])
def test_fleets_follow_it(make: Callable[[TaxiMDP], object], resolution: str) -> None:
    """A finite fleet goes through an episode, and at cell resolution a large one goes where the mean field does."""
    mdp = town()
    policy = make(mdp)
    rollout = FleetSimulator(mdp, 20_000, seed=1, resolution=resolution).rollout(policy)  # type: ignore[arg-type]
    assert rollout.distributions.shape == (5, 25)
    if resolution == "cell":
        mean_field = mdp.rollout(policy).mu  # type: ignore[arg-type]
        assert float(0.5 * (rollout.distributions[1] - mean_field[1]).abs().sum()) < 0.03


@pytest.mark.parametrize("make", AIMED)
@pytest.mark.parametrize("motion", ["free", "congested"])
def test_the_fleet_gets_nearer_to_the_target(make: type[AimedPolicy], motion: str) -> None:
    """Where the motion is known, each policy keeps the fleet nearer to the optimum than staying put, congested or not."""
    mdp = town(motion=CongestedMotion(Grid(5), 0.3) if motion == "congested" else motion)
    policy = make(mdp, mdp.motion)
    stayed = 0.5 * (mdp.rollout(Stay(mdp)).mu[1:].double() - policy.target).abs().sum(-1)
    share = 0.75 if make is FluidLP else 0.5  # blind to the fleet, which starts far away
    assert float(off_target(policy, mdp)[-1]) < share * float(stayed[-1])


@pytest.mark.parametrize("make", AIMED)
def test_knowing_the_congestion_helps(make: type[AimedPolicy]) -> None:
    """The motion that a policy is given matters: it inverts it."""
    mdp = town(motion=CongestedMotion(Grid(5), 0.6))
    oracle, guess = off_target(make(mdp, mdp.motion), mdp), off_target(make(mdp), mdp)
    assert float(oracle.mean()) < float(guess.mean())


@pytest.mark.parametrize("make", AIMED)
def test_no_policy_looks_at_the_motion_of_the_city(make: type[AimedPolicy]) -> None:
    """A city whose motion nobody may ask is enough: there is no way from a peer to the truth."""
    mdp = town()
    policy = make(mdp.with_motion(UnknownMotion()))
    torch.testing.assert_close(policy.field(mdp.initial(), 0), make(mdp).field(mdp.initial(), 0))


@pytest.mark.parametrize("make", AIMED)
def test_the_target_is_the_bounds_optimum(make: type[AimedPolicy]) -> None:
    """A row per step; with a barrier, inside the constraints."""
    mdp = town()
    np.testing.assert_array_equal(make(mdp).target.numpy(), certified_bound(mdp).mu)
    inside = make(mdp, barrier=0.1)
    np.testing.assert_array_equal(inside.target.numpy(), certified_bound(mdp, 0.1).mu)
    assert inside.barrier == 0.1
    assert float(mdp.margins(inside.target).min()) > float(mdp.margins(make(mdp).target).min()) + 1e-3


@pytest.mark.parametrize("make", AIMED)
def test_what_has_no_safe_optimum_is_refused(make: type[AimedPolicy]) -> None:
    """A ring has no demand, and a set that is not convex no bound: told at once, not in the first step."""
    with pytest.raises(TypeError, match=r"mdp must be a TaxiMDP.*SwarmMDP"):
        make(SwarmMDP())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="KeepAway is not convex"):
        make(town(constraints=[KeepAway(np.full(25, 0.04), 0.01, "tv")]))


def test_the_surplus_is_what_staying_leaves() -> None:
    """Mass is neither made nor lost, and noise is counted."""
    mdp = town()
    policy = Proportional(mdp)
    mu = mdp.shift(mdp.initial()).double()
    surplus = policy.surplus(mu, 2)
    stayed = mdp.move(mu.float(), torch.zeros(25, 2)).mu.double()
    torch.testing.assert_close(surplus, stayed - policy.target[2], atol=1e-6, rtol=0)
    assert float(surplus.sum().abs()) < 1e-6


class Counted(SolvedPolicy):
    """Counts what it solves."""

    def __init__(self, mdp: TaxiMDP) -> None:
        super().__init__(mdp)
        self.asked: list[int] = []

    def solve(self, mu: NDArray[np.float64], t: int) -> NDArray[np.float64]:
        self.asked.append(t)
        return np.full((len(mu), 2), mu[0])


def test_solutions_are_remembered() -> None:
    """The same distribution at the same step is solved once, others are not confused with it, and memory is bounded."""
    mdp = town()
    policy = Counted(mdp)
    mu = mdp.initial()
    other = mu.clone()
    other[0], other[1] = 0.05, 0.03
    fields = policy.field(torch.stack([mu, other, mu]), 0)
    torch.testing.assert_close(fields[0], fields[2])
    assert not torch.allclose(fields[0], fields[1])
    policy.field(mu, 0)
    assert policy.asked == [0, 0]
    policy.field(mu, 1)
    assert policy.asked == [0, 0, 1]
    for t in range(2, 2 + REMEMBERED):
        policy.field(mu, t)
    policy.field(mu, 0)
    assert policy.asked[-1] == 0
    assert len(policy._solved) == REMEMBERED


def test_taxis_that_are_wanted_on_both_sides_leave_to_one() -> None:
    """As many as both sides want; nobody stays because two wishes cancel."""
    ahead, behind = torch.tensor([0.3, 0.1, 0.2, 0.0]), torch.tensor([0.1, 0.3, 0.2, 0.0])
    torch.testing.assert_close(one_way(ahead, behind), torch.tensor([0.4, -0.4, 0.4, 0.0]))


def constraints(cells: int, kind: int) -> list[Constraint]:
    """Constraints of every kind that has a bound, at least uniform fleets being safe."""
    uniform = np.full(cells**2, cells**-2.0)
    kinds: list[list[Constraint]] = [
        [EntropyFloor(0.9)],
        [RegionCapacity([0, 1], 3 / cells**2)],
        [DistanceCap(uniform, 0.2, "tv")],
        [],
    ]
    return kinds[kind]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), cells=st.integers(2, 5), kind=st.integers(0, 3), steps=st.sampled_from([None, 3]))
def test_no_policy_exceeds_the_bound(seed: int, cells: int, kind: int, steps: int | None) -> None:
    """In random cities, constant or changing: no step that keeps the constraints earns more than the bound's step, with and
    without a barrier."""
    rng = np.random.default_rng(seed)
    lead = () if steps is None else (steps,)
    size = cells**2
    city = Scenario(
        f"random {seed}",
        rng.dirichlet(np.full(size, 0.5), lead or None),
        rng.dirichlet(np.full(size, 0.5), (*lead, size)),
        (0.0, 0.1, 0.0, 0.1),
        0.5,
    )
    mdp = TaxiMDP(city, constraints=constraints(cells, kind), horizon=3, noise_std=0.05)
    bound, inside = certified_bound(mdp), certified_bound(mdp, 0.1)
    best, center = torch.from_numpy(bound.mu), torch.from_numpy(inside.mu)
    for make in ALL:
        for barrier in (0.0, 0.03) if make in AIMED else (None,):
            policy = make(mdp) if barrier is None else make(mdp, barrier=barrier)  # type: ignore[call-arg]
            for t, mu in enumerate(mdp.rollout(policy).mu[1:].double()):  # type: ignore[arg-type]
                demand, margins = mdp.demand(t).double(), mdp.margins(mu)
                if bool((margins >= 0).all()):
                    assert -kl_divergence(demand, mu) <= -kl_divergence(demand, best[t]) + bound.gap + 1e-6
                if bool((margins > 0).all()):
                    values = [-kl_divergence(demand, x) + 0.1 * mdp.margins(x).log().sum() for x in (mu, center[t])]
                    assert values[0] <= values[1] + inside.gap + 1e-6


def test_a_target_is_the_policys_own() -> None:
    """What is done to it changes neither the bound, which is kept, nor the next policy."""
    mdp = TaxiMDP(load_scenario("shenzhen", cells=5))
    first = Proportional(mdp)
    before = first.target.clone()
    first.target[0] = 0.0
    assert torch.equal(Proportional(mdp).target, before) and float(certified_bound(mdp).mu[0].sum()) > 0.99


def test_policies_can_be_copied_and_sent() -> None:
    """To other processes, for instance: all of them."""
    mdp = TaxiMDP(load_scenario("shenzhen", cells=5))
    for make in ALL:
        policy: Any = make(mdp)
        again = pickle.loads(pickle.dumps(copy.deepcopy(policy)))
        assert torch.equal(again.field(mdp.initial(), 0), policy.field(mdp.initial(), 0)), make
