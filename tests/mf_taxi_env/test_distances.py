"""Distances between distributions, exact transport among them, and the constraints made of them."""

from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mf_taxi_env import TaxiMDP, load_scenario
from mf_taxi_env.constraint import Constraint
from mf_taxi_env.distances import DistanceCap, DistanceName, KeepAway, hellinger, total_variation
from mf_taxi_env.wasserstein import potential_near, transport_program, wasserstein

F64 = torch.float64
NAMES: tuple[DistanceName, ...] = ("w1", "kl", "hellinger", "tv")


def simplex(rng: np.random.Generator, size: int, empty: float = 0.0) -> torch.Tensor:
    """A random distribution in float64; a share ``empty`` of its cells hold nothing."""
    mu = rng.dirichlet(np.full(size, rng.uniform(0.2, 3.0))) + 1e-6
    mu[rng.random(size) < empty] = 0.0
    mu[int(rng.integers(size))] += 0.01
    return torch.from_numpy(mu / mu.sum())


def cost(k: int) -> np.ndarray:
    """Euclidean distances between cell centres, by the definition of a cell's index."""
    i, j = np.divmod(np.arange(k * k), k)
    return np.hypot(i[:, None] - i, j[:, None] - j) / k


def transport(mu: np.ndarray, nu: np.ndarray, k: int) -> float:
    """W1 by a general-purpose linear program over all flows."""
    n = k * k
    rows, columns = np.kron(np.eye(n), np.ones((1, n))), np.kron(np.ones((1, n)), np.eye(n))
    done = scipy.optimize.linprog(cost(k).ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([mu, nu]))
    assert done.success
    return float(done.fun)


@given(seed=st.integers(0, 2**31), empty=st.sampled_from([0.0, 0.5]))
@settings(max_examples=25, deadline=None)
def test_wasserstein_is_the_linear_program(seed: int, empty: float) -> None:
    """Against SciPy, with and without empty cells on either side."""
    pytest.importorskip("ot")
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 5))
    mu, nu = simplex(rng, k * k, empty), simplex(rng, k * k, empty)
    assert float(wasserstein(mu, nu)) == pytest.approx(transport(mu.numpy(), nu.numpy(), k), abs=1e-7)


@given(seed=st.integers(0, 2**31), empty=st.sampled_from([0.0, 0.5]))
@settings(max_examples=25, deadline=None)
def test_wasserstein_slope_agrees_with_finite_differences(seed: int, empty: float) -> None:
    """Along directions that keep the mass; into empty cells too, whose slope the solver's own potentials do not give."""
    pytest.importorskip("ot")
    rng = np.random.default_rng(seed)
    mu, nu = simplex(rng, 16, empty), simplex(rng, 16, empty)
    mu.requires_grad_()
    (slope,) = torch.autograd.grad(wasserstein(mu, nu), mu)
    mu = mu.detach()
    step = 1e-8
    for _ in range(5):
        direction = simplex(rng, 16) - mu  # gives mass to every cell: one-sided at empty ones
        ahead = wasserstein(mu + step * direction, nu)
        assert float((ahead - wasserstein(mu, nu)) / step) == pytest.approx(float(slope @ direction), abs=1e-5)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_the_potential_is_lipschitz_everywhere(seed: int) -> None:
    """No slope between two cells, empty or not, is steeper than one: the proof of the constant, in the gradient itself."""
    pytest.importorskip("ot")
    rng = np.random.default_rng(seed)
    mu, nu = simplex(rng, 16, 0.6).requires_grad_(), simplex(rng, 16, 0.6)
    (slope,) = torch.autograd.grad(wasserstein(mu, nu), mu)
    assert bool(((slope[:, None] - slope).abs().numpy() <= cost(4) + 1e-9).all())


def test_wasserstein_of_points_is_their_distance() -> None:
    """In sides of the unit square: neighbours are 1/k apart, and corners of 25 x 25 cells sqrt 2 less a cell."""
    pytest.importorskip("ot")
    points = torch.eye(625, dtype=F64)
    distances = wasserstein(points[[0, 1, 25, 624]], points[0])
    torch.testing.assert_close(distances, torch.tensor([0.0, 0.04, 0.04, 0.96 * math.sqrt(2)], dtype=F64))


@given(seed=st.integers(0, 2**31), size=st.integers(1, 30), empty=st.sampled_from([0.0, 0.5]))
@settings(max_examples=25, deadline=None)
def test_wasserstein_in_one_dimension_is_its_closed_form(seed: int, size: int, empty: float) -> None:
    """The integral of |F - G| on an interval; on a ring, of |F - G - c| for the best c, a median."""
    pytest.importorskip("ot")
    rng = np.random.default_rng(seed)
    mu, nu = simplex(rng, size, empty), simplex(rng, size, empty)
    gap = (mu - nu).cumsum(0)
    line, ring = float(gap.abs().sum()) / size, float((gap - gap.median()).abs().sum()) / size
    assert float(wasserstein(mu, nu, dimension=1)) == pytest.approx(line, abs=1e-9)
    assert float(wasserstein(mu, nu, dimension=1, periodic=True)) == pytest.approx(ring, abs=1e-9)


def test_neighbours_on_a_ring_are_one_cell_apart() -> None:
    """Across the seam too, and nothing is further than half way round; on an interval the ends are far apart."""
    pytest.importorskip("ot")
    points = torch.eye(100, dtype=F64)
    for kind in (DistanceCap, KeepAway):
        ring = kind(points[0], 0.0, dimension=1, periodic=True)
        distances = ring.margin(points[[0, 1, 99, 50, 60]]).abs()
        torch.testing.assert_close(distances, torch.tensor([0.0, 0.01, 0.01, 0.5, 0.4], dtype=F64))
        line = kind(points[0], 0.0, dimension=1).margin(points[[1, 99]]).abs()
        torch.testing.assert_close(line, torch.tensor([0.01, 0.99], dtype=F64))
        assert ring.lipschitz == 1.0


@pytest.mark.parametrize(("dimension", "periodic"), [(2, True), (1, "yes"), (1, 1)])
def test_only_an_interval_can_be_closed_to_a_ring(dimension: int, periodic: Any) -> None:
    """There is no torus among the grids."""
    with pytest.raises(ValueError, match=f"periodic must be .* got {periodic!r}"):
        DistanceCap([0.25] * 4, 0.1, dimension=dimension, periodic=periodic)
    with pytest.raises(ValueError, match=f"periodic must be .* got {periodic!r}"):
        wasserstein(torch.ones(4) / 4, torch.ones(4) / 4, dimension=dimension, periodic=periodic)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_wasserstein_bears_rounding(dtype: torch.dtype) -> None:
    """Batches, float32 sums that are off one, traces of mass and below zero: no warning, no refusal, the same number."""
    pytest.importorskip("ot")
    rng = np.random.default_rng(0)
    nu = simplex(rng, 100, 0.3)
    exact = torch.stack([simplex(rng, 100, 0.3) for _ in range(6)])
    rough = exact.to(dtype).reshape(2, 3, 100) * (1 + 3e-6)
    rough[0, 0, 5] += 1e-30
    rough[1, 0, 7] = -1e-9
    distances = wasserstein(rough, nu.to(dtype))
    assert distances.shape == (2, 3) and distances.dtype == dtype
    expected = wasserstein(exact, nu)
    torch.testing.assert_close(distances.double().flatten()[[0, 1, 2, 4, 5]], expected[[0, 1, 2, 4, 5]], atol=1e-5, rtol=0)
    assert wasserstein(rough[:0], nu.to(dtype)).shape == (0, 3)


def test_wasserstein_of_what_is_no_distribution_is_nan() -> None:
    """A NaN stays a NaN in its own row, and never reaches the solver."""
    pytest.importorskip("ot")
    mu = torch.full((3, 4), 0.25)
    mu[1, 2] = math.nan
    mu[2] = 0.0
    assert wasserstein(mu, torch.full((4,), 0.25)).isnan().tolist() == [False, True, True]


def test_the_other_distances_are_their_definitions() -> None:
    """On two cells by hand; and zero slope, not NaN, where Hellinger is zero."""
    mu, nu = torch.tensor([0.64, 0.36], dtype=F64, requires_grad=True), torch.tensor([0.36, 0.64], dtype=F64)
    assert float(total_variation(mu.detach(), nu)) == pytest.approx(0.28)
    assert float(hellinger(mu.detach(), nu)) == pytest.approx(math.sqrt(1 - 2 * 0.48))
    (slope,) = torch.autograd.grad(hellinger(mu, mu.detach()), mu)
    assert slope.tolist() == [0.0, 0.0]
    expected = 0.28 * math.log(0.64 / 0.36)
    assert float(DistanceCap(nu, 1.0, "kl").margin(mu.detach())) == pytest.approx(1.0 - expected)


@pytest.mark.parametrize("distance", NAMES)
def test_cap_and_keep_away_are_opposite(distance: DistanceName) -> None:
    """cap - D and D - floor of the same D; at the reference itself the distance is zero."""
    pytest.importorskip("ot")
    rng = np.random.default_rng(1)
    mu, nu = simplex(rng, 9), simplex(rng, 9)
    cap, away = DistanceCap(nu, 0.3, distance), KeepAway(nu, 0.3, distance)
    assert isinstance(cap, Constraint) and isinstance(away, Constraint)
    torch.testing.assert_close(cap.margin(mu), -away.margin(mu))
    assert float(cap.margin(mu)) < 0.3
    assert float(cap.margin(nu)) == pytest.approx(0.3, abs=1e-12)
    assert cap.lipschitz == away.lipschitz == {"w1": 1.0, "tv": 3.0}.get(distance, 0.1)


def test_transport_in_a_world(make_scenario: Any) -> None:
    """Gradients of a W1 margin reach the actions through a step of the fleet."""
    pytest.importorskip("ot")
    city = make_scenario(4)
    mdp = TaxiMDP(city, constraints=(DistanceCap(city.demand, 0.2), KeepAway(np.full(16, 1 / 16), 0.01)))
    actions = torch.zeros(16, 2, requires_grad=True)
    margins = mdp.margins(mdp.transition(mdp.initial(), actions))
    assert margins.shape == (2,)
    (slope,) = torch.autograd.grad(margins.sum(), actions)
    assert bool(slope.isfinite().all()) and float(slope.abs().max()) > 0


def test_tangents_of_total_variation_lie_above_its_margin() -> None:
    """Whatever slope is asked for, which is all the certificate's proof needs; they touch it, and at kinks have that slope."""
    rng = np.random.default_rng(0)
    cap = DistanceCap(simplex(rng, 9), 0.3, "tv")
    for _ in range(50):
        at, mu, asked = simplex(rng, 9), simplex(rng, 9), torch.from_numpy(rng.normal(size=9))
        at[:4] = torch.tensor(cap.reference[:4])  # kinks
        tangent = cap.tangent(at, asked)
        assert tangent is not None
        offset, slope = tangent
        assert float(offset + slope @ mu) >= float(cap.margin(mu)) - 1e-12
        assert float(offset + slope @ at) == pytest.approx(float(cap.margin(at)), abs=9e-5)
        torch.testing.assert_close(slope[:4], asked[:4].clamp(-0.5, 0.5))


@pytest.mark.parametrize(
    "constraint", [KeepAway([0.5, 0.5, 0, 0], 0.1, "tv"), DistanceCap(np.full(289, 1 / 289), 0.1)], ids=["keep-away", "17 x 17"]
)
def test_no_convex_program(constraint: Any) -> None:
    """Named, so that the user knows which of several constraints it was."""
    cp = pytest.importorskip("cvxpy")
    with pytest.raises(TypeError, match=f"{type(constraint).__name__}.*no certified bound"):
        constraint.convex_margin(cp.Variable(len(constraint.reference)))


@pytest.mark.parametrize(("size", "dimension", "periodic"), [(25, 2, False), (12, 1, False), (12, 1, True)])
def test_the_program_is_the_distance(size: int, dimension: int, periodic: bool) -> None:
    """On squares, intervals and rings the cheapest plan costs what POT says, also to a reference with empty cells."""
    cp = pytest.importorskip("cvxpy")
    rng = np.random.default_rng(0)
    mu, nu = simplex(rng, size), simplex(rng, size)
    nu[::3] = 0.0
    nu /= nu.sum()
    variable = cp.Variable(size)
    expression = transport_program(variable, nu.numpy(), dimension=dimension, periodic=periodic)
    assert expression.is_convex()
    program = cp.Problem(cp.Minimize(expression), [variable == mu.numpy()])
    expected = float(wasserstein(mu, nu, dimension=dimension, periodic=periodic))
    assert program.solve(solver=cp.CLARABEL) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("size", "dimension", "periodic"), [(25, 2, False), (12, 1, True)])
def test_any_values_make_a_potential(size: int, dimension: int, periodic: bool) -> None:
    """A bound from below on the distance of anything; the distance itself if made of its slope, also where that is wrong
    at empty cells."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        mu, nu, other = simplex(rng, size), simplex(rng, size), simplex(rng, size)
        mu[2::3], nu[1::2] = 0.0, 0.0
        mu, nu = mu / mu.sum(), nu / nu.sum()
        asked = torch.from_numpy(rng.normal(size=size))
        potential = potential_near(asked, mu, nu, dimension=dimension, periodic=periodic)
        assert float(potential @ (other - nu)) <= float(wasserstein(other, nu, dimension=dimension, periodic=periodic)) + 1e-9
        distance = wasserstein(mu.requires_grad_(), nu, dimension=dimension, periodic=periodic)
        (slope,) = torch.autograd.grad(distance, mu)
        wrong = torch.where(mu.detach() > 0, slope, asked)
        tight = potential_near(wrong, mu.detach(), nu, dimension=dimension, periodic=periodic)
        assert float(tight @ (mu - nu).detach()) == pytest.approx(float(distance.detach()), abs=1e-9)


def test_without_pot_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constructing is free, and the margin says what to install."""
    cap = DistanceCap([0.5, 0.5, 0, 0], 0.1)
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "ot":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"safe-m3-taxi\[transport\]"):
        cap.margin(torch.full((4,), 0.25))


def test_a_distribution_of_an_episode_is_a_reference() -> None:
    """In float32 its masses are not quite one: they are brought there, once, and a constraint made from its own is the same."""
    drifted = np.full(25, 0.04) * (1 + 3e-5)
    cap = DistanceCap(drifted, 0.1, "tv")
    assert sum(cap.reference) == pytest.approx(1.0, abs=1e-12)
    assert DistanceCap(cap.reference, 0.1, "tv") == cap
    world = TaxiMDP(load_scenario("shenzhen", cells=5))
    last = world.rollout(Still()).mu[-1]
    assert float(DistanceCap(last, 0.1, "tv").margin(last)) == pytest.approx(0.1, abs=1e-6)


class Still:
    """Nobody moves."""

    def field(self, mu: torch.Tensor, t: int) -> torch.Tensor:
        return mu.new_zeros(mu.shape[-1], 2)


@pytest.mark.parametrize(
    ("reference", "cap", "distance", "message"),
    [
        ([0.5, 0.4], 0.1, "tv", "reference must sum to one"),
        ([1.5, -0.5], 0.1, "tv", "reference must be finite"),
        ([[1.0]], 0.1, "tv", "reference must be finite"),
        ([0.5, 0.5], -0.1, "kl", "must be a finite number >= 0, got -0.1"),
        ([0.5, 0.5], math.nan, "kl", "must be a finite number >= 0, got nan"),
        ([0.5, 0.5], "0.1", "kl", "must be a finite number >= 0, got '0.1'"),
        ([0.5, 0.5], True, "kl", "must be a finite number >= 0, got True"),
        ([0.5, 0.5], 0.1, "w2", "distance must be one of .* got 'w2'"),
        ([0.5, 0.5], 0.1, "tv", "square grid"),
        ([0.5, 0.5], 0.1, "w1", "square grid"),
    ],
)
@pytest.mark.parametrize("kind", [DistanceCap, KeepAway])
def test_bad_arguments_raise(kind: Any, reference: Any, cap: Any, distance: Any, message: str) -> None:
    """By name and value, where they enter."""
    with pytest.raises(ValueError, match=message):
        kind(reference, cap, distance)
