"""The certified bound and the score: nothing beats the first, and the second reads it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mf_taxi_env import EntropyFloor, Scenario, SwarmMDP, TaxiMDP, certified_bound, score
from mf_taxi_env.bound import RETURN_TOLERANCE, BoundExceededError, _certificate
from mf_taxi_env.information import entropy_fraction
from mf_taxi_env.safety import (
    Constraint,
    DistanceCap,
    KeepAway,
    RegionCapacity,
    RegionCoverage,
    SmoothedEntropyFloor,
    WeightedEntropyFloor,
)
from mf_taxi_env.scoring import possible_return

cp = pytest.importorskip("cvxpy")

# The solver may stop early and say so; what it returns is certified without it.
pytestmark = pytest.mark.filterwarnings("ignore:Solution may be inaccurate")

Make = Callable[..., Scenario]


@dataclass(frozen=True)
class Cap:
    """Mass in some cells stays below a limit."""

    cells: tuple[int, ...]
    limit: float
    name: str = "cap"
    lipschitz: float = 1.0

    def margin(self, mu: Tensor) -> Tensor:
        return self.limit - mu[..., list(self.cells)].sum(-1)

    def convex_margin(self, mu: Any) -> Any:
        return self.limit - cp.sum(mu[list(self.cells)])


@dataclass(frozen=True)
class NotConvex:
    """A constraint whose safe set is not convex."""

    name: str = "keep-away"
    lipschitz: float = 1.0

    def margin(self, mu: Tensor) -> Tensor:
        return mu.square().sum(-1) - 0.1

    def convex_margin(self, mu: Any) -> Any:
        raise TypeError("keep-away has no convex safe set")


@dataclass(frozen=True)
class Spread(Cap):
    """Mass in some cells stays above a limit, said by a convex function where a concave one is wanted."""

    def margin(self, mu: Tensor) -> Tensor:
        return mu[..., list(self.cells)].sum(-1).square() - self.limit**2

    def convex_margin(self, mu: Any) -> Any:
        return cp.square(cp.sum(mu[list(self.cells)])) - self.limit**2


class Stay:
    """Zero actions."""

    def field(self, mu: Tensor, t: int) -> Tensor:
        return mu.new_zeros(mu.shape[-1], 2)


def world(make_scenario: Make, floor: float | None, **settings: Any) -> TaxiMDP:
    """A world of 5 x 5 cells."""
    constraints = () if floor is None else (EntropyFloor(floor),)
    return TaxiMDP(make_scenario(5), **{"constraints": constraints, "horizon": 4, **settings})


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p || q) by an explicit sum."""
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))


@pytest.mark.parametrize("floor", [None, 0.0])
def test_without_a_floor_the_demand_itself_is_best(make_scenario: Make, floor: float | None) -> None:
    """KL 0 at mu = rho."""
    mdp = world(make_scenario, floor)
    bound = certified_bound(mdp)
    assert bound.kl == pytest.approx(0.0, abs=1e-6)
    assert bound.reward == pytest.approx(0.0, abs=1e-5)
    np.testing.assert_allclose(bound.mu, np.tile(mdp.scenario.demand, (4, 1)), atol=1e-3)


def test_a_floor_of_one_leaves_the_uniform_distribution(make_scenario: Make) -> None:
    """KL(rho || uniform), although the safe set is a single point."""
    mdp = world(make_scenario, 1.0)
    bound = certified_bound(mdp)
    assert bound.kl == pytest.approx(kl(mdp.scenario.demand, np.full(25, 0.04)), abs=1e-3)
    np.testing.assert_allclose(bound.mu, 0.04, atol=1e-3)
    assert bound.per_step <= -kl(mdp.scenario.demand, np.full(25, 0.04)) + 1e-3


def test_the_bound_falls_with_the_floor_and_meets_it(make_scenario: Make) -> None:
    """A tighter floor never earns more; where the floor binds, the optimum lies on it."""
    share = world(make_scenario, None).scenario.demand_entropy
    floors = np.linspace(share - 0.1, 0.99, 6)
    bounds = [certified_bound(world(make_scenario, float(floor))) for floor in floors]
    values = [bound.per_step for bound in bounds]
    assert all(low <= high + 1e-6 for high, low in itertools.pairwise(values))
    assert values[-1] < values[0] - 0.1
    for floor, bound in zip(floors, bounds, strict=True):
        entropy = -sum(x * math.log(x) for x in bound.mu[0]) / math.log(25)
        if floor > share:
            assert entropy == pytest.approx(floor, abs=1e-4)
        np.testing.assert_allclose(bound.mu.sum(-1), 1.0, atol=1e-12)
        assert bound.reward == pytest.approx(4 * bound.per_step)
        assert bound.per_step == pytest.approx(-bound.kl)
        assert bound.kl == pytest.approx(kl(make_scenario(5).demand, bound.mu[0]), abs=1e-6)


@pytest.mark.parametrize("barrier", [0.0, 1.0])
def test_the_certificate_holds_against_feasible_distributions(make_scenario: Make, barrier: float) -> None:
    """No distribution that meets the floor earns more than per_step + gap; good ones come close, so the bound is tight."""
    mdp = world(make_scenario, 0.93)
    bound = certified_bound(mdp, barrier)
    assert 0 <= bound.gap < (1e-3 if barrier == 0 else 5e-3)
    rho, floor = mdp.scenario.demand, 0.93 * math.log(25)
    rng = np.random.default_rng(0)
    best = -math.inf
    for trial in range(400):
        mu = (rho + 1e-9) ** rng.uniform(0.05, 1.5) if trial % 2 else rng.dirichlet(np.full(25, 8.0))
        mu = mu / mu.sum()
        if trial % 4 == 1:
            mu = mu * rng.lognormal(0.0, 0.1, 25)
            mu = mu / mu.sum()
        share = 0.0  # of the uniform distribution mixed in, until the floor is met
        while -(mixed := (1 - share) * mu + share / 25) @ np.log(mixed) < floor + (1e-9 if barrier == 0 else 0.01):
            share += 0.01
        if barrier:
            share += rng.uniform(0, 1 - share)
            mixed = (1 - share) * mu + share / 25
        margin = -mixed @ np.log(mixed) - floor
        value = -kl(rho, mixed) + (barrier * math.log(margin) if barrier else 0.0)
        assert value <= bound.per_step + bound.gap + 1e-9
        best = max(best, value)
    assert best > bound.per_step - 0.15


@pytest.mark.parametrize("constraint", [EntropyFloor(0.9), DistanceCap(np.full(25, 0.04), 0.3, "tv")], ids=["floor", "kink"])
@pytest.mark.parametrize("barrier", [0.0, 0.1])
def test_a_solver_that_gets_stuck_tries_other_units(
    make_scenario: Make, monkeypatch: pytest.MonkeyPatch, constraint: Constraint, barrier: float
) -> None:
    """Its failure is not the caller's: in other units it finds the same optimum, with a certificate as good."""
    city = make_scenario(5)
    expected = certified_bound(TaxiMDP(city, constraints=[constraint], horizon=1), barrier)
    solve, failures = cp.Problem.solve, iter([True])

    def stuck_at_first(problem: Any, **options: Any) -> Any:
        if next(failures, False):
            raise cp.error.SolverError("numerical trouble")
        return solve(problem, **options)

    monkeypatch.setattr(cp.Problem, "solve", stuck_at_first)
    bound = certified_bound(TaxiMDP(city, constraints=[constraint], horizon=1), barrier)
    assert next(failures, None) is None
    assert bound.per_step == pytest.approx(expected.per_step, abs=1e-3) and bound.gap < 1e-3


def test_a_barrier_of_one_is_the_barrier_optimum(make_scenario: Make) -> None:
    """The value is -KL + log margin at the reported distribution, below what a general-purpose optimiser cannot improve."""
    mdp = world(make_scenario, 0.9)
    bound = certified_bound(mdp, 1.0)
    rho, mu = mdp.scenario.demand, bound.mu[0]
    margin = -(mu @ np.log(mu)) - 0.9 * math.log(25)
    assert bound.per_step == pytest.approx(-kl(rho, mu) + math.log(margin), abs=1e-6)
    assert bound.barrier == 1.0
    assert bound.kl > certified_bound(mdp).kl + 0.01
    logits = torch.zeros(25, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=300, tolerance_grad=1e-10, line_search_fn="strong_wolfe")
    demand = torch.from_numpy(rho.copy())

    def loss() -> Tensor:
        optimizer.zero_grad()
        log_mu = logits.log_softmax(0)
        entropy = -(log_mu.exp() * log_mu).sum()
        result = torch.special.xlogy(demand, demand).sum() - demand @ log_mu - (entropy - 0.9 * math.log(25)).log()
        result.backward()
        return result

    optimizer.step(loss)  # type: ignore[arg-type]
    assert bound.per_step == pytest.approx(-float(loss().detach()), abs=1e-3)


def test_each_step_has_its_own_optimum(make_scenario: Make) -> None:
    """Demand per step: one row of the bound per step of the episode, the last step's demand continued."""
    city = make_scenario(4, steps=2)
    bound = certified_bound(TaxiMDP(city, horizon=3, constraints=(EntropyFloor(0.9),)))
    singles = [
        certified_bound(
            TaxiMDP(Scenario("one", city.demand[t], city.trips[t], city.box), horizon=1, constraints=(EntropyFloor(0.9),))
        )
        for t in (0, 1, 1)
    ]
    assert bound.reward == pytest.approx(sum(single.reward for single in singles), abs=1e-6)
    np.testing.assert_allclose(bound.mu, np.concatenate([single.mu for single in singles]), atol=1e-4)


def test_several_constraints_hold_at_once(make_scenario: Make) -> None:
    """A cap besides the floor: both met, and the value no better than with one of them."""
    rho = make_scenario(5).demand
    busiest = tuple(int(c) for c in np.argsort(rho)[-5:])
    both = TaxiMDP(make_scenario(5), constraints=(EntropyFloor(0.8), Cap(busiest, 0.2)))
    bound = certified_bound(both)
    assert bound.mu[0, list(busiest)].sum() <= 0.2 + 1e-6
    assert bound.per_step < certified_bound(world(make_scenario, 0.8)).per_step - 1e-3
    assert bound.gap < 1e-3


REFERENCES = np.random.default_rng(1).dirichlet(np.ones(25), 2)
BUSY, CALM = [0, 6, 12, 18], [3, 9, 15, 21]


CONVEX: list[tuple[Constraint, ...]] = [
    (WeightedEntropyFloor(np.arange(25) % 3, 0.95),),
    (SmoothedEntropyFloor(0.95, 0.01),),
    (RegionCapacity(BUSY, 0.1),),
    (RegionCoverage(CALM, 0.4),),
    (DistanceCap(REFERENCES[0], 0.2, "tv"),),
    (DistanceCap(REFERENCES[0], 0.2, "hellinger"),),
    (DistanceCap(REFERENCES[0], 0.1, "kl"),),
    (DistanceCap(REFERENCES[0], 0.05, "w1"),),
    (EntropyFloor(0.9), DistanceCap(np.eye(25)[12], 0.35, "w1")),
    (EntropyFloor(0.9), RegionCoverage(CALM, 0.3)),
    (DistanceCap(REFERENCES[0], 0.35, "tv"), DistanceCap(REFERENCES[1], 0.35, "tv"), RegionCapacity(BUSY, 0.15)),
    (EntropyFloor(0.9), DistanceCap(REFERENCES[1], 0.35, "hellinger"), DistanceCap(np.full(25, 0.04), 0.3, "tv")),
]


def names(constraints: tuple[Constraint, ...]) -> str:
    """What tests of them are called."""
    return "+".join(constraint.name for constraint in constraints)


@pytest.mark.parametrize("constraints", CONVEX, ids=names)
@pytest.mark.parametrize("barrier", [0.0, 0.1])
def test_every_convex_constraint_has_a_tight_bound(
    make_scenario: Make, constraints: tuple[Constraint, ...], barrier: float
) -> None:
    """It binds, its optimum keeps it, nothing safe nearby earns more, and the certificate is tight: at kinks too."""
    mdp = TaxiMDP(make_scenario(5), constraints=constraints, horizon=1)
    bound = certified_bound(mdp, barrier)
    rho, best = torch.from_numpy(mdp.scenario.demand.copy()), torch.from_numpy(bound.mu[0])
    assert float(mdp.margins(best).min()) >= -1e-6
    assert float(mdp.margins(rho).min()) < 0
    assert bound.gap < 5e-3
    if barrier:
        return
    inside = torch.from_numpy(certified_bound(mdp, 1.0).mu[0])
    assert bool((mdp.margins(inside) > 0).all())
    rng = np.random.default_rng(0)
    for _ in range(100):  # from well inside towards the demand, the optimum and elsewhere, as far as the constraints allow
        aim = torch.from_numpy(rng.dirichlet(np.ones(25)))
        aim = rng.uniform(0, 0.1) * aim + 0.9 * (rho if rng.random() < 0.5 else best)
        aim = aim / aim.sum()
        path = inside + torch.linspace(0, 1, 200, dtype=torch.float64).unsqueeze(1) * (aim - inside)
        for mu in path[(mdp.margins(path) >= 0).all(-1)]:
            assert -kl(rho.numpy(), mu.numpy()) <= bound.upper + 1e-9


def test_the_certificate_of_kinks_does_not_trust_the_solver(make_scenario: Make) -> None:
    """Whatever point, multipliers and level: above the true optimum."""
    mdp = TaxiMDP(make_scenario(5), constraints=(DistanceCap(REFERENCES[0], 0.2, "tv"), EntropyFloor(0.5)), horizon=1)
    best = certified_bound(mdp).per_step
    rho, rng = mdp.demand(0).double().numpy(), np.random.default_rng(0)
    for level in (-5.0, 0.0, 1.0, 7.0):
        lazy = rng.dirichlet(np.full(25, 50.0))
        _, upper = _certificate(mdp, rho / rho.sum(), lazy, [float(rng.uniform(0, 3)), 0.1], 0.0, level)
        assert upper >= best - 1e-9


@pytest.mark.parametrize("constraints", CONVEX, ids=names)
@pytest.mark.parametrize("barrier", [0.0, 0.1])
def test_every_convex_constraint_has_a_bound_of_changing_demand(
    make_scenario: Make, constraints: tuple[Constraint, ...], barrier: float
) -> None:
    """Step by step what a city of that step's demand alone has, and of the certificates the worst; the last step goes on."""
    city = make_scenario(5, 1, steps=2)
    bound = certified_bound(TaxiMDP(city, horizon=3, constraints=constraints), barrier)
    singles = [
        certified_bound(
            TaxiMDP(Scenario("one", city.demand[t], city.trips[t], city.box), horizon=1, constraints=constraints), barrier
        )
        for t in (0, 1, 1)
    ]
    assert singles[0].reward != pytest.approx(singles[1].reward, abs=1e-3)
    assert bound.reward == pytest.approx(sum(single.reward for single in singles), abs=1e-6)
    assert bound.gap == pytest.approx(max(single.gap for single in singles), abs=1e-6)
    assert bound.gap < 1e-2


@pytest.mark.parametrize(
    ("cells", "constraint"),
    [
        *((5, KeepAway(REFERENCES[0], 0.1, distance)) for distance in ("tv", "hellinger", "kl", "w1")),
        (17, DistanceCap(np.full(289, 1 / 289), 0.1, "w1")),  # convex, but of 83,521 flows
    ],
)
def test_constraints_without_a_convex_program_say_so(make_scenario: Make, cells: int, constraint: Constraint) -> None:
    """A TypeError that names the constraint, also beside a convex one."""
    with pytest.raises(TypeError, match=f"{type(constraint).__name__}.*no certified bound"):
        certified_bound(TaxiMDP(make_scenario(cells), constraints=(EntropyFloor(0.9), constraint)))


@pytest.mark.parametrize("barrier", [0.0, 0.1])
def test_without_constraints_a_barrier_changes_nothing(make_scenario: Make, barrier: float) -> None:
    """There is no margin whose logarithm could enter."""
    bound = certified_bound(world(make_scenario, None), barrier)
    assert bound.per_step == pytest.approx(0.0, abs=1e-5)
    assert bound.gap < 1e-3


def test_the_bound_can_be_asked_for_without_gradients(make_scenario: Make) -> None:
    """Inside torch.no_grad, where evaluations live, the same certificate."""
    with torch.no_grad():
        inside = certified_bound(world(make_scenario, 0.9))
    outside = certified_bound(world(make_scenario, 0.9))
    assert (inside.reward, inside.gap) == pytest.approx((outside.reward, outside.gap))


@pytest.mark.parametrize("barrier", [0.0, 1.0])
def test_the_certificate_does_not_trust_the_solver(make_scenario: Make, barrier: float) -> None:
    """From any distribution and any multiplier it bounds the optimum: a lazy solver costs tightness, not truth."""
    mdp = world(make_scenario, 0.9)
    best = certified_bound(mdp, barrier).per_step
    rho = mdp.demand(0).double().numpy()
    rng = np.random.default_rng(0)
    for multiplier in (0.0, 0.3, 3.0, -1.0):
        lazy = rng.dirichlet(np.full(25, 50.0))
        value, upper = _certificate(mdp, rho / rho.sum(), lazy, [multiplier] if barrier == 0 else [], barrier)
        assert value < best - 0.01
        assert upper >= best - 1e-9


@pytest.mark.parametrize("barrier", [0.0, 1.0])
def test_infeasible_constraints_raise(make_scenario: Make, barrier: float) -> None:
    """Two caps that leave no room for all taxis."""
    mdp = TaxiMDP(make_scenario(2), constraints=(Cap((0, 1), 0.3), Cap((2, 3), 0.3)))
    with pytest.raises(ValueError, match="no distribution meets the constraints"):
        certified_bound(mdp, barrier)


def test_a_solver_that_always_fails_raises(make_scenario: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ValueError that is promised, with the solver's own words, and no exception of CVXPY."""

    def stuck(problem: Any, **options: Any) -> Any:
        raise cp.error.SolverError("stuck")

    monkeypatch.setattr(cp.Problem, "solve", stuck)
    with pytest.raises(ValueError, match=r"the solver finds no bound under .*EntropyFloor.* with barrier=0\.1: stuck"):
        certified_bound(world(make_scenario, 0.9), 0.1)


def test_a_swarm_has_no_certified_bound() -> None:
    """Said at the door, with the name of what there is for other worlds."""
    swarm = SwarmMDP(cells=10)
    with pytest.raises(TypeError, match=r"of a TaxiMDP alone, got .*SwarmMDP.* mf_taxi_env\.scoring\.episode_score"):
        certified_bound(swarm)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"of a TaxiMDP alone, got .*SwarmMDP"):
        score(np.full((swarm.horizon, 10), 0.1), swarm)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 3])
def test_a_barrier_without_an_interior_raises(make_scenario: Make, seed: int) -> None:
    """A floor of one leaves no margin for a logarithm: a ValueError, never a solver's exception or a NaN with a gap of 0."""
    with pytest.raises(ValueError, match="no distribution meets the constraints"):
        certified_bound(TaxiMDP(make_scenario(5, seed), constraints=(EntropyFloor(1.0),)), 1.0)


def test_a_constraint_that_is_not_convex_propagates(make_scenario: Make) -> None:
    """Its own TypeError reaches the user, and is not remembered as a result."""
    mdp = TaxiMDP(make_scenario(2), constraints=(NotConvex(),))
    for _ in range(2):
        with pytest.raises(TypeError, match="keep-away has no convex safe set"):
            certified_bound(mdp)


@pytest.mark.parametrize("barrier", [-1.0, math.nan, math.inf])
def test_bad_barriers_raise(make_scenario: Make, barrier: float) -> None:
    """The message names the argument and the value."""
    with pytest.raises(ValueError, match=f"barrier .*got {barrier}"):
        certified_bound(world(make_scenario, 0.9), barrier)


def test_bounds_are_kept_per_world_and_barrier(make_scenario: Make) -> None:
    """Solved once; another world or another barrier is another bound."""
    mdp = world(make_scenario, 0.9)
    assert certified_bound(mdp) is certified_bound(mdp)
    assert certified_bound(mdp, 1.0) is not certified_bound(mdp)
    assert certified_bound(mdp, 1.0) is certified_bound(mdp, 1.0)
    assert certified_bound(world(make_scenario, 0.9)) is not certified_bound(mdp)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_staying_scores_zero_and_the_bound_one(make_scenario: Make, dtype: torch.dtype, kind: str) -> None:
    """The two ends of the scale, and the definition in between, for tensors and arrays."""
    mdp = world(make_scenario, 0.7, dtype=dtype)
    stay = mdp.rollout(Stay()).mu[1:]
    best = torch.from_numpy(certified_bound(mdp).mu)
    assert bool((mdp.margins(stay) >= 0).all())

    def scored(mu: Tensor) -> float:
        return score(mu if kind == "tensor" else mu.numpy(), mdp)

    assert scored(stay) == pytest.approx(0.0, abs=1e-6)
    assert scored(best) == pytest.approx(1.0, abs=1e-3)
    rho = mdp.scenario.demand
    returns = [-sum(kl(rho, row) for row in mu.double().numpy()) for mu in (0.5 * stay + 0.5 * best, stay)]
    expected = (returns[0] - returns[1]) / (certified_bound(mdp).reward - returns[1])
    assert scored(0.5 * stay + 0.5 * best) == pytest.approx(expected, abs=1e-5)


def test_a_score_goes_by_the_demand_of_each_step(make_scenario: Make) -> None:
    """Where demand changes by step, each distribution is compared with that of the step which caused it."""
    mdp = TaxiMDP(make_scenario(5, steps=2), constraints=(EntropyFloor(0.5),), horizon=4)
    stay = mdp.rollout(Stay()).mu[1:].double()
    best = torch.from_numpy(certified_bound(mdp).mu)
    half = 0.5 * stay + 0.5 * best
    rho = mdp.scenario.demand  # [2, K]: the last part repeats
    returns = [-sum(kl(rho[min(t, 1)], row) for t, row in enumerate(mu.numpy())) for mu in (half, stay)]
    expected = (returns[0] - returns[1]) / (certified_bound(mdp).reward - returns[1])
    assert score(half, mdp) == pytest.approx(expected, abs=1e-5)
    assert score(best, mdp) == pytest.approx(1.0, abs=1e-3)


def test_masses_that_float32_has_rounded_earn_nothing_by_it(make_scenario: Make) -> None:
    """Rows may be off one by a thousandth; they are judged as the distributions that they stand for."""
    mdp = world(make_scenario, 0.5)
    stay = mdp.rollout(Stay()).mu[1:].double()
    assert score(1.0009 * stay, mdp) == pytest.approx(score(stay, mdp), abs=1e-9)
    shares = entropy_fraction(stay)
    tight = world(make_scenario, float(shares.min()) + 1e-5)  # more mass has more entropy, by 6e-3 nats for a thousandth
    assert math.isnan(score(stay, tight)) and math.isnan(score(1.0009 * stay, tight))


def test_worse_than_staying_scores_below_zero(make_scenario: Make) -> None:
    """A safe fleet that runs away from the demand."""
    mdp = world(make_scenario, 0.5)
    away = 1.0 / (mdp.scenario.demand + 1e-3)
    assert score(np.tile(away / away.sum(), (4, 1)), mdp) < 0


def test_a_violation_voids_the_score(make_scenario: Make) -> None:
    """NaN when a single step breaks the floor, and when a distribution is not a number."""
    mdp = world(make_scenario, 0.9)
    good = certified_bound(mdp).mu
    point = good.copy()
    point[2] = np.eye(25)[0]
    assert math.isnan(score(point, mdp))
    missing = good.copy()
    missing[3, 7] = math.nan
    assert math.isnan(score(missing, mdp))
    assert math.isnan(score(np.full((4, 25), math.nan), mdp))


def test_a_score_beyond_the_bound_raises(make_scenario: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told a score that no policy can have: world, constraint or bound is wrong. Rounding is let pass."""
    mdp = world(make_scenario, 0.9)
    bound = certified_bound(mdp)
    for share, fails in ((0.9, False), (1.1, True)):
        wrong = dataclasses.replace(bound, reward=bound.reward - share * RETURN_TOLERANCE * mdp.horizon, gap=0.0)
        monkeypatch.setattr("mf_taxi_env.scoring.certified_bound", lambda mdp, wrong=wrong: wrong)
        if fails:
            with pytest.raises(BoundExceededError, match=r"earned -?[0-9.]+ nats, and none can earn more than"):
                score(bound.mu, mdp)
        else:
            assert score(bound.mu, mdp) > 1.0


def test_a_bound_with_a_barrier_checks_no_return(make_scenario: Make) -> None:
    """The program's value is no return there: its own optimum would seem to exceed it."""
    mdp = world(make_scenario, 0.9)
    bound = certified_bound(mdp, 0.1)
    assert bound.upper < -mdp.horizon * bound.kl, "or there is nothing to protect from"
    with pytest.raises(ValueError, match=r"barrier=0, this one has barrier=0\.1"):
        bound.check(-mdp.horizon * bound.kl)
    certified_bound(mdp).check(-mdp.horizon * bound.kl)


@pytest.mark.parametrize("barrier", [0.0, 0.1])
def test_a_margin_that_is_not_concave_has_no_bound(make_scenario: Make, barrier: float) -> None:
    """What a user's own constraint says of itself is checked by CVXPY's rules, and refused in this library's words."""
    mdp = TaxiMDP(make_scenario(5), horizon=4, constraints=[Spread((0, 1), 0.1)])
    with pytest.raises(TypeError, match=r"no certified bound under .*Spread.* not concave"):
        certified_bound(mdp, barrier)
    assert math.isnan(possible_return(mdp)), "the agent learns there nevertheless"


@pytest.mark.parametrize("shape", [(25,), (5, 25), (4, 24), (1, 4, 25)])
def test_the_initial_distribution_is_not_scored(make_scenario: Make, shape: tuple[int, ...]) -> None:
    """T rows of K cells, nothing else: T + 1 rows are refused rather than shifted."""
    with pytest.raises(ValueError, match=r"distributions must have shape \(4, 25\)"):
        score(np.full(shape, 0.04), world(make_scenario, 0.9))


def test_score_refuses_what_is_no_distribution(make_scenario: Make) -> None:
    """Rows that do not sum to one would score beyond the bound."""
    mdp = TaxiMDP(make_scenario(5, 0), constraints=())
    with pytest.raises(ValueError, match="sum to one"):
        score(np.full((12, 25), 0.1), mdp)


def test_score_is_undefined_where_staying_put_is_best() -> None:
    """With nothing to gain over staying put, a share of the gain is rounding divided by rounding."""
    mdp = TaxiMDP(Scenario("flat", np.full(25, 0.04), np.eye(25), box=(0, 1, 0, 1)), constraints=())
    assert math.isnan(score(np.full((12, 25), 0.04), mdp))
