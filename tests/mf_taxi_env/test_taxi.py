"""The lifted taxi MDP against an independent statement of its equations, its gradients, and its symmetries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from mf_taxi_env import CongestedMotion, EntropyFloor, FreeMotion, Grid, RegionCoverage, Scenario, TaxiMDP

Make = Callable[..., Scenario]
Array = NDArray[np.float64]

F64 = torch.float64


def reference_transition(mu: Array, actions: Array, demand: Array, trips: Array, std: float) -> Array:
    """One step by the book: a service probability per cell, a dense K x K kernel, SciPy's truncated normal."""
    size = mu.size
    k = round(size**0.5)
    served = np.zeros(size)
    for c in range(size):
        probability = min(1.0, demand[c] / mu[c]) if mu[c] > 0 else 0.0
        served += mu[c] * probability * trips[c]
        served[c] += mu[c] * (1 - probability)
    kernel = np.zeros((size, size))
    edges = np.arange(k + 1) / k
    for c in range(size):
        center = np.array([(c // k + 0.5) / k, (c % k + 0.5) / k])
        goal = np.clip(center + actions[c], 0, 1)
        law = scipy.stats.truncnorm(-goal / std, (1 - goal) / std, loc=goal, scale=std)
        axes = np.diff(law.cdf(edges[:, None]), axis=0)
        kernel[c] = np.outer(axes[:, 0], axes[:, 1]).ravel()
    return served @ kernel


def random_state(k: int, seed: int, batch: tuple[int, ...] = ()) -> tuple[Array, Array]:
    """Distributions with exact zeros, and actions over the whole range."""
    rng = np.random.default_rng(seed)
    mu = rng.gamma(0.6, size=(*batch, k * k)) * (rng.random((*batch, k * k)) > 0.3)
    mu[..., 0] += 0.01
    return mu / mu.sum(-1, keepdims=True), rng.uniform(-1, 1, size=(*batch, k * k, 2))


class Fixed:
    """The same field at every step."""

    def __init__(self, actions: Tensor) -> None:
        self.actions = actions

    def field(self, mu: Tensor, t: int) -> Tensor:
        return self.actions


@pytest.mark.parametrize(("dtype", "tolerance", "mass"), [(torch.float32, 1e-5, 1e-6), (F64, 1e-10, 1e-12)])
@pytest.mark.parametrize(("cells", "seeds"), [(5, 4), (10, 3), (25, 1)])
def test_transition_agrees_with_the_independent_statement(
    make_scenario: Make, cells: int, seeds: int, dtype: torch.dtype, tolerance: float, mass: float
) -> None:
    """Trips, move and truncated noise, with empty cells in fleet, demand and trips; the mass is kept."""
    for seed in range(seeds):
        city = make_scenario(cells, seed)
        assert (city.demand == 0).any()
        mu, actions = random_state(cells, seed + 100)
        actions *= 0.1 if seed % 2 else 1.0
        mdp = TaxiMDP(city, dtype=dtype)
        result = mdp.transition(torch.from_numpy(mu).to(dtype), torch.from_numpy(actions).to(dtype))
        assert result.dtype == dtype
        expected = reference_transition(mu, actions, city.demand, city.trips, 0.0175)
        np.testing.assert_allclose(result.double().numpy(), expected, rtol=0, atol=tolerance)
        assert float(result.double().sum()) == pytest.approx(1.0, abs=mass)


def test_another_noise_level_enters_the_transition(make_scenario: Make) -> None:
    """noise_std is the standard deviation per axis."""
    city = make_scenario(5)
    mu, actions = random_state(5, 3)
    result = TaxiMDP(city, noise_std=0.15, dtype=F64).transition(torch.from_numpy(mu), torch.from_numpy(actions))
    np.testing.assert_allclose(result.numpy(), reference_transition(mu, actions, city.demand, city.trips, 0.15), atol=1e-10)


@pytest.mark.parametrize("single", ["none", "demand", "trips"])
def test_demand_and_trips_may_change_with_the_step(make_scenario: Make, single: str) -> None:
    """[T, K] and [T, K, K] data: every step uses its own row, later steps the last, and either may stay constant."""
    full = make_scenario(4, steps=3)
    city = Scenario(
        "steps",
        full.demand[0] if single == "demand" else full.demand,
        full.trips[0] if single == "trips" else full.trips,
        full.box,
        0.5,
    )
    mdp = TaxiMDP(city, horizon=5, dtype=F64)
    mu, actions = random_state(4, 7)
    m, a = torch.from_numpy(mu), torch.from_numpy(actions)
    for t in range(5):
        row = min(t, 2)
        demand = city.demand if single == "demand" else city.demand[row]
        trips = city.trips if single == "trips" else city.trips[row]
        expected = reference_transition(mu, actions, demand, trips, 0.0175)
        np.testing.assert_allclose(mdp.transition(m, a, t).numpy(), expected, atol=1e-10)
        reward = mdp.reward(torch.full((16,), 1 / 16, dtype=F64), a, m, t)
        assert float(reward) == pytest.approx(-scipy.stats.entropy(demand, np.full(16, 1 / 16)), abs=1e-12)


def test_other_trips_one_by_one_or_side_by_side(make_scenario: Make) -> None:
    """A city with other trips is the city of that scenario; a batch of them is a loop; the first city stays what it was."""
    scenario, others = make_scenario(3), [make_scenario(3, seed) for seed in (1, 2)]
    city = TaxiMDP(scenario, dtype=F64)
    mu = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(9), 2))
    before = city.shift(mu)
    trips = torch.stack([torch.from_numpy(other.trips.copy()) for other in others])
    together = city.with_trips(trips)
    for i, other in enumerate(others):
        expected = TaxiMDP(replace(scenario, trips=other.trips), dtype=F64).shift(mu[i])
        torch.testing.assert_close(city.with_trips(trips[i]).shift(mu[i]), expected)
        torch.testing.assert_close(together.shift(mu)[i], expected)
        torch.testing.assert_close(together.shift(mu[0])[i], city.with_trips(trips[i]).shift(mu[0]))
    assert torch.equal(city.shift(mu), before) and city.scenario is scenario
    assert city.own_trips is None and together.own_trips is trips
    assert np.array_equal(together.scenario.demand, scenario.demand) and together.scenario.box == scenario.box
    with pytest.raises(ValueError, match=r"shape \[..., 9, 9\], got \(4, 4\)"):
        city.with_trips(torch.eye(4))


def test_shift_moves_only_served_taxis() -> None:
    """Two cells in use, by hand: of 0.75 taxis 0.25 find a passenger and leave, the others wait."""
    trips = np.eye(4)
    trips[0] = [0.0, 0.5, 0.5, 0.0]
    mdp = TaxiMDP(Scenario("toy", np.array([0.25, 0.75, 0, 0]), trips, (0, 1, 0, 1)), dtype=F64)
    shifted = mdp.shift(torch.tensor([0.75, 0.0, 0.0, 0.25], dtype=F64))
    torch.testing.assert_close(shifted, torch.tensor([0.5, 0.125, 0.125, 0.25], dtype=F64))


@pytest.mark.parametrize("timing", ["current", "next"])
def test_reward_is_minus_kl_from_demand(make_scenario: Make, timing: str) -> None:
    """KL(rho || mu), in this order, of the distribution that the timing names; SciPy gives the same number."""
    city = make_scenario(5)
    mdp = TaxiMDP(city, reward_timing=timing, dtype=F64)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    first, second = rng.dirichlet(np.ones(25), size=2)
    reward = mdp.reward(torch.from_numpy(first), torch.zeros(25, 2), torch.from_numpy(second))
    expected = -scipy.stats.entropy(city.demand, first if timing == "current" else second)
    assert float(reward) == pytest.approx(expected, abs=1e-12)


def test_rollout_chains_transitions_rewards_and_margins(make_scenario: Make) -> None:
    """A whole episode by the independent statement, time-varying data included."""
    city = make_scenario(5, steps=4)
    mdp = TaxiMDP(city, horizon=4, reward_timing="next", dtype=F64)
    actions = random_state(5, 5)[1]
    path = mdp.rollout(Fixed(torch.from_numpy(actions)))
    mu = np.full(25, 1 / 25)
    for t in range(4):
        mu = reference_transition(mu, actions, city.demand[t], city.trips[t], 0.0175)
        np.testing.assert_allclose(path.mu[t + 1].numpy(), mu, atol=1e-10)
        # Nearly empty cells: the floor inside the logarithm, as documented.
        floored = np.maximum(mu, 1e-30)
        positive = city.demand[t] > 0
        kl = (city.demand[t][positive] * np.log(city.demand[t][positive] / floored[positive])).sum()
        assert float(path.rewards[t]) == pytest.approx(-kl, rel=1e-6)
        assert float(path.margins[t, 0]) == pytest.approx(scipy.stats.entropy(mu) - 0.5 * np.log(25), abs=1e-9)


def test_congested_taxis_move_less(make_scenario: Make) -> None:
    """motion="congested" sees the distribution after trips: the same step by an explicit shortening of the actions."""
    city = make_scenario(5)
    mu, actions = random_state(5, 3)
    congested, free = TaxiMDP(city, motion="congested", dtype=F64), TaxiMDP(city, dtype=F64)
    m, a = torch.from_numpy(mu), torch.from_numpy(actions)
    assert isinstance(congested.motion, CongestedMotion)
    shortened = a / (1 + congested.motion.alpha * 25 * free.shift(m)).unsqueeze(-1)
    torch.testing.assert_close(congested.transition(m, a), free.transition(m, shortened))


def test_any_callable_is_a_motion(make_scenario: Make) -> None:
    """A motion given as a function is used as it is."""
    city = make_scenario(5)
    m, a = (torch.from_numpy(x) for x in random_state(5, 3))
    half = TaxiMDP(city, motion=lambda s, mu, u: (s + u / 2).clamp(0, 1), dtype=F64)
    torch.testing.assert_close(half.transition(m, a), TaxiMDP(city, dtype=F64).transition(m, a / 2))


properties = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)
sizes = st.integers(1, 8)


@given(cells=sizes, seed=seeds, dtype=st.sampled_from([torch.float32, F64]), std=st.floats(0.005, 1.0))
@properties
def test_mass_is_kept_and_stays_nonnegative(make_scenario: Make, cells: int, seed: int, dtype: torch.dtype, std: float) -> None:
    """Whatever the city, the fleet, the actions and the noise."""
    mdp = TaxiMDP(make_scenario(cells, seed), noise_std=std, dtype=dtype)
    mu, actions = (torch.from_numpy(x).to(dtype) for x in random_state(cells, seed + 1, (3,)))
    for part in (mdp.shift(mu), mdp.transition(mu, actions)):
        assert bool((part >= 0).all())
        off = (part.double().sum(-1) - 1).abs().max()
        assert float(off) < (2e-6 if dtype == torch.float32 else 1e-12)


@given(cells=sizes, seed=seeds)
@properties
def test_a_batch_is_a_loop_and_its_order_does_not_matter(make_scenario: Make, cells: int, seed: int) -> None:
    """Each row of a batch is its own transition, and permuting the batch permutes the result."""
    mdp = TaxiMDP(make_scenario(cells, seed), motion="congested", dtype=F64)
    mu, actions = (torch.from_numpy(x) for x in random_state(cells, seed + 1, (2, 3)))
    batch = mdp.transition(mu, actions)
    for b in range(2):
        for c in range(3):
            torch.testing.assert_close(batch[b, c], mdp.transition(mu[b, c], actions[b, c]), rtol=0, atol=1e-14)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(3))
    torch.testing.assert_close(mdp.transition(mu[:, order], actions[:, order]), batch[:, order], rtol=0, atol=1e-14)
    torch.testing.assert_close(mdp.margins(batch)[1, 2], mdp.margins(batch[1, 2]))
    torch.testing.assert_close(mdp.reward(mu, actions, batch)[1, 2], mdp.reward(mu[1, 2], actions[1, 2], batch[1, 2]))


@given(cells=sizes, seed=seeds)
@properties
def test_single_precision_agrees_with_double(make_scenario: Make, cells: int, seed: int) -> None:
    """float32 is float64 up to rounding, over several steps."""
    city = make_scenario(cells, seed)
    _, actions = random_state(cells, seed + 1)
    paths = [
        TaxiMDP(city, horizon=4, dtype=dtype).rollout(Fixed(torch.from_numpy(actions).to(dtype))).mu.double()
        for dtype in (torch.float32, F64)
    ]
    torch.testing.assert_close(paths[0], paths[1], rtol=0, atol=1e-5)


@given(cells=sizes, seed=seeds, axis=st.sampled_from([0, 1]))
@properties
def test_a_mirrored_city_has_mirrored_dynamics(make_scenario: Make, cells: int, seed: int, axis: int) -> None:
    """Mirroring demand, trips, fleet and actions in one axis mirrors the next distribution."""
    city = make_scenario(cells, seed)
    index = np.flip(np.arange(cells * cells).reshape(cells, cells), axis).ravel()
    mirror = torch.from_numpy(index.copy())
    mirrored = Scenario("mirror", city.demand[index], city.trips[np.ix_(index, index)], city.box)
    mu, actions = (torch.from_numpy(x) for x in random_state(cells, seed + 1))
    sign = torch.ones(2, dtype=F64)
    sign[axis] = -1.0
    expected = TaxiMDP(city, dtype=F64).transition(mu, actions)[mirror]
    result = TaxiMDP(mirrored, dtype=F64).transition(mu[mirror], actions[mirror] * sign)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_gradients_of_transition_reward_and_margins(make_scenario: Make) -> None:
    """gradcheck in float64 with respect to distribution and actions, destinations inside of the city."""
    city = make_scenario(3, empty=0.0)
    rng = np.random.default_rng(1)
    mu = torch.from_numpy(rng.dirichlet(np.full(9, 3.0))).requires_grad_()
    actions = torch.from_numpy(rng.uniform(-0.15, 0.15, size=(9, 2))).requires_grad_()
    for motion in ("free", "congested"):
        for timing in ("current", "next"):
            mdp = TaxiMDP(city, motion=motion, noise_std=0.1, reward_timing=timing, dtype=F64)  # type: ignore[arg-type]
            assert torch.autograd.gradcheck(mdp.transition, (mu, actions))
            assert torch.autograd.gradcheck(lambda m, a, w=mdp: w.reward(m, a, w.transition(m, a)), (mu, actions))
            assert torch.autograd.gradcheck(mdp.margins, (mu,))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_gradients_through_a_rollout_with_empty_cells_are_finite(make_scenario: Make, dtype: torch.dtype) -> None:
    """Exact zeros in fleet and demand: no NaN or infinity in any gradient through a whole episode."""
    city = make_scenario(10, empty=0.5)
    for timing in ("current", "next"):
        mdp = TaxiMDP(city, horizon=6, reward_timing=timing, dtype=dtype)  # type: ignore[arg-type]
        mu = torch.zeros(100, dtype=dtype)
        mu[37] = 1.0
        mu.requires_grad_()
        actions = torch.full((100, 2), 0.05, dtype=dtype, requires_grad=True)
        path = mdp.rollout(Fixed(actions), mu)
        assert bool((path.mu[1:] == 0).any())
        assert bool((mdp.demand(0) == 0).any())
        (path.returns + path.margins.sum()).backward()
        for gradient in (mu.grad, actions.grad):
            assert gradient is not None
            assert bool(gradient.isfinite().all())
        assert float(actions.grad.abs().sum()) > 0  # type: ignore[union-attr]


def test_initial_is_uniform_and_safe(make_scenario: Make) -> None:
    """The start has the largest entropy, any batch shape, and the world's type."""
    mdp = TaxiMDP(make_scenario(5), constraints=(EntropyFloor(0.999),), dtype=F64)
    start = mdp.initial((2, 3))
    assert start.shape == (2, 3, 25)
    assert start.dtype == F64
    torch.testing.assert_close(start, torch.full((2, 3, 25), 0.04, dtype=F64))
    assert bool((mdp.margins(start) > 0).all())


def test_default_constraint_is_the_scenarios_floor(make_scenario: Make) -> None:
    """None means the scenario's floor, an empty tuple none at all."""
    city = make_scenario(5, entropy_floor=0.77)
    assert TaxiMDP(city).constraints == (EntropyFloor(0.77),)
    assert TaxiMDP(city, constraints=()).constraints == ()
    assert isinstance(TaxiMDP(city).motion, FreeMotion)
    assert TaxiMDP(city).grid == Grid(5)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("reward_timing", "later"),
        ("motion", "warp"),
        ("motion", 3),
        ("noise_std", 0.0),
        ("noise_std", float("nan")),
        ("noise_std", "0.1"),
        ("device", "abacus"),
        ("horizon", 0),
        ("dtype", torch.int32),
    ],
)
def test_bad_arguments_raise(make_scenario: Make, argument: str, value: object) -> None:
    """The message names the argument and the value."""
    with pytest.raises(ValueError, match=argument) as caught:
        TaxiMDP(make_scenario(3), **{argument: value})  # type: ignore[arg-type]
    assert str(value) in str(caught.value)


def test_a_name_is_no_city() -> None:
    """Envs take names; the world behind them takes what a name stands for."""
    with pytest.raises(TypeError, match=r"scenario must be a Scenario, got 'shenzhen': load_scenario\(name\) gives one"):
        TaxiMDP("shenzhen")  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (F64, 1e-14)])
def test_sparse_trips_are_the_same_world(make_scenario: Make, dtype: torch.dtype, tolerance: float, steps: int | None) -> None:
    """Steps and gradients, in batches, agree with the dense city's at every step of the day and past its end."""
    dense = make_scenario(5, steps=steps)
    trips = tuple(sparse.csr_array(step) for step in dense.trip_steps)
    thin = Scenario("thin", dense.demand, trips if steps else trips[0], dense.box)
    mu, actions = (torch.tensor(array, dtype=dtype) for array in random_state(5, 3, (2, 4)))
    for t in (0, 1, 4):
        results, gradients = [], []
        for city in (dense, thin):
            start = mu.clone().requires_grad_()
            result = TaxiMDP(city, dtype=dtype).transition(start, actions, t)
            result.square().sum().backward()
            results.append(result)
            gradients.append(start.grad)
        torch.testing.assert_close(results[0], results[1], rtol=0, atol=tolerance)
        torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=10 * tolerance)


def test_a_constraint_of_another_geometry_raises(make_scenario: Callable[..., Scenario]) -> None:
    """Transport and Lipschitz constants of a line mean nothing on a square."""
    with pytest.raises(ValueError, match="construct them with dimension=2, got RegionCoverage"):
        TaxiMDP(make_scenario(3), constraints=(RegionCoverage([0], 0.1, size=9, dimension=1),))


def test_a_subclass_may_want_something_else(make_scenario: Callable[..., Scenario]) -> None:
    """Reward and report follow the target that the world names, not the demand that it was made from."""

    class Elsewhere(TaxiMDP):
        def target(self, t: int = 0) -> torch.Tensor:
            return self.demand(t).flip(0)

    world = Elsewhere(make_scenario(4, empty=0.0), dtype=torch.float64)
    mu = world.target()
    assert abs(float(world.reward(mu, torch.zeros(world.grid.size, 2), mu))) < 1e-12
    assert float(world.target_kl(world.demand(0))) > 0.01
