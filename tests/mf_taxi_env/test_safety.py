"""Entropy floors and regions: margins in torch and in CVXPY, Lipschitz constants, and what they refuse."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mf_taxi_env import Constraint, EntropyFloor, Scenario, TaxiMDP
from mf_taxi_env.constraint import tensor
from mf_taxi_env.safety import (
    DistanceCap,
    KeepAway,
    RegionCapacity,
    RegionCoverage,
    SmoothedEntropyFloor,
    WeightedEntropyFloor,
    in_nats,
    scatter,
)

F64 = torch.float64
#: On 3 x 3 cells; cell 8 of the weights and of the reference is empty.
NINE = (0.1, 0.2, 0.05, 0.05, 0.3, 0.1, 0.1, 0.1, 0.0)
CONVEX = [
    WeightedEntropyFloor([1, 2, 0, 0.5, 1, 1, 3, 1, 0], 0.6),
    SmoothedEntropyFloor(0.6, 0.01, size=9),
    RegionCapacity([0, 4], 0.4, size=9),
    RegionCoverage([True, False, True] * 3, 0.3),
    DistanceCap(NINE, 0.3, "tv"),
    DistanceCap(NINE, 0.3, "hellinger"),
    DistanceCap(NINE, 0.3, "kl"),
]
ALL = [*CONVEX, *(KeepAway(NINE, 0.1, distance) for distance in ("tv", "hellinger", "kl"))]
#: The same nine cells in a row.
LINE = [
    SmoothedEntropyFloor(0.6, 0.01, size=9, dimension=1),
    RegionCapacity([0, 4], 0.4, size=9, dimension=1),
    RegionCoverage([True, False, True] * 3, 0.3, dimension=1),
    DistanceCap(NINE, 0.3, "tv", dimension=1),
    KeepAway(NINE, 0.1, "tv", dimension=1, periodic=True),
]


@given(fraction=st.floats(0, 1), size=st.integers(1, 50), seed=st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_margin_is_entropy_above_the_share_of_its_maximum(fraction: float, size: int, seed: int) -> None:
    """margin = H(mu) - fraction * log K in nats, against SciPy."""
    mu = np.random.default_rng(seed).dirichlet(np.ones(size))
    expected = scipy.stats.entropy(mu) - fraction * math.log(size)
    assert float(EntropyFloor(fraction).margin(torch.from_numpy(mu))) == pytest.approx(expected, abs=1e-12)


def test_margin_changes_sign_at_the_floor() -> None:
    """Uniform over half of the cells: safe below log(K/2)/log K, unsafe above."""
    mu = torch.tensor([1 / 8] * 8 + [0.0] * 8, dtype=torch.float64)
    share = math.log(8) / math.log(16)
    assert float(EntropyFloor(share - 1e-9).margin(mu)) > 0
    assert float(EntropyFloor(share + 1e-9).margin(mu)) < 0


def test_margin_is_batched() -> None:
    """One margin per distribution of a batch."""
    mu = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(9), size=(2, 3)))
    margins = EntropyFloor(0.7).margin(mu)
    assert margins.shape == (2, 3)
    torch.testing.assert_close(margins[1, 2], EntropyFloor(0.7).margin(mu[1, 2]))


def test_margin_gradient() -> None:
    """gradcheck in float64, and a finite gradient at empty cells in float32."""
    mu = torch.from_numpy(np.random.default_rng(0).dirichlet(np.full(6, 3.0))).requires_grad_()
    assert torch.autograd.gradcheck(EntropyFloor(0.9).margin, (mu,))
    empty = torch.tensor([1.0, 0.0, 0.0], requires_grad=True)
    EntropyFloor(0.9).margin(empty).backward()
    assert empty.grad is not None
    assert bool(empty.grad.isfinite().all())


def test_convex_margin_is_the_same_number_and_concave() -> None:
    """The solver sees the margin that torch sees."""
    cp = pytest.importorskip("cvxpy")
    values = np.random.default_rng(0).dirichlet(np.ones(9))
    mu = cp.Variable(9, nonneg=True)
    expression = EntropyFloor(0.8).convex_margin(mu)
    assert expression.is_concave()
    mu.value = values
    assert float(expression.value) == pytest.approx(float(EntropyFloor(0.8).margin(torch.from_numpy(values))), abs=1e-9)


@pytest.mark.parametrize("fraction", [-0.01, 1.01, math.nan, True, "0.5", None])
def test_bad_fraction_raises(fraction: Any) -> None:
    """A floor outside [0, 1] of log K, or that is no number, is refused by name and value."""
    with pytest.raises(ValueError, match=f"fraction .*got {fraction!r}"):
        EntropyFloor(fraction)


@pytest.mark.parametrize("lipschitz", [-1.0, math.nan, math.inf, True, "1"])
def test_bad_lipschitz_raises(lipschitz: Any) -> None:
    """A tightening needs a finite non-negative constant."""
    with pytest.raises(ValueError, match=f"lipschitz .*got {lipschitz!r}"):
        EntropyFloor(0.9, lipschitz)


def test_entropy_floor_is_a_frozen_constraint() -> None:
    """It meets the protocol, has the name that info uses, compares by value, and cannot be loosened after the fact."""
    floor = EntropyFloor(0.9)
    assert isinstance(floor, Constraint)
    assert (floor.name, floor.lipschitz) == ("entropy", 0.1)
    assert floor == EntropyFloor(0.9)
    with pytest.raises(AttributeError):
        floor.fraction = 0.1  # type: ignore[misc]


def simplex(seed: int, size: int = 9, *, empty: bool = False) -> torch.Tensor:
    """A random distribution in float64, some of whose cells may be empty."""
    rng = np.random.default_rng(seed)
    mu = rng.dirichlet(np.full(size, rng.uniform(0.1, 3.0)))
    if empty:
        mu[rng.random(size) < 0.4] = 0.0
        mu[0] += 0.01
    return torch.from_numpy(mu / mu.sum())


@pytest.mark.parametrize("constraint", [*ALL, *LINE], ids=str)
def test_every_constraint_is_a_value(constraint: Any) -> None:
    """It meets the protocol, is frozen and hashable, and survives copies, pickles and a rebuild from its fields."""
    assert isinstance(constraint, Constraint)
    constraint.margin(simplex(0))
    for twin in (
        copy.deepcopy(constraint),
        pickle.loads(pickle.dumps(constraint)),
        type(constraint)(**dataclasses.asdict(constraint)),
        dataclasses.replace(constraint),
    ):
        assert twin == constraint and hash(twin) == hash(constraint)
        torch.testing.assert_close(twin.margin(simplex(0)), constraint.margin(simplex(0)))
    assert dataclasses.replace(constraint, lipschitz=7.0) != constraint
    assert dataclasses.replace(constraint, lipschitz=7.0).lipschitz == 7.0
    with pytest.raises(AttributeError):
        constraint.lipschitz = 0.0
    with pytest.raises(ValueError, match=r"lipschitz .*got -1"):
        dataclasses.replace(constraint, lipschitz=-1.0)


@pytest.mark.parametrize("constraint", ALL, ids=str)
def test_every_margin_is_batched_typed_and_differentiable(constraint: Any) -> None:
    """One margin per distribution in its own dtype; gradcheck in the interior; finite gradients at empty cells."""
    batch = torch.stack([simplex(seed) for seed in range(6)]).reshape(2, 3, 9)
    margins = constraint.margin(batch)
    assert margins.shape == (2, 3) and margins.dtype == F64
    torch.testing.assert_close(margins[1, 2], constraint.margin(batch[1, 2]))
    single = constraint.margin(batch.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), margins, atol=1e-5, rtol=0)
    interior = (0.5 * simplex(1) + 0.5 / 9).requires_grad_()
    assert torch.autograd.gradcheck(constraint.margin, (interior,))
    for corner in (torch.eye(9)[0], torch.eye(9)[8], torch.tensor(NINE)):
        corner = corner.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(constraint.margin(corner), corner)
        assert bool(gradient.isfinite().all())


def test_constants_first_made_in_inference_mode_serve_training() -> None:
    """The cache of tensors holds no inference tensors, which autograd would refuse."""
    tensor.cache_clear()
    constraint, mu = WeightedEntropyFloor([0.5, 0.25, 1, 1], 0.5), torch.full((4,), 0.25)
    with torch.inference_mode():
        constraint.margin(mu)
    constraint.margin(mu.clone().requires_grad_()).backward()


@pytest.mark.parametrize("constraint", CONVEX, ids=str)
def test_the_convex_form_is_concave_and_agrees(constraint: Any) -> None:
    """The solver sees what torch certifies: the same number, and where forms differ, the same sign as the margin."""
    cp = pytest.importorskip("cvxpy")
    variable = cp.Variable(9, nonneg=True)
    expression = constraint.convex_margin(variable)
    assert expression.is_concave()
    for seed in range(20):
        mu = simplex(seed)
        variable.value = mu.numpy()
        form = getattr(constraint, "concave_margin", constraint.margin)(mu)
        assert float(expression.value) == pytest.approx(float(form), abs=1e-9)
        assert (float(form) >= 0) == (float(constraint.margin(mu)) >= 0)


@pytest.mark.parametrize("constraint", ALL, ids=str)
def test_another_grid_is_refused(constraint: Any) -> None:
    """Cells are numbered by their grid: a distribution on another one is an error, not another number."""
    if isinstance(constraint, (RegionCapacity, RegionCoverage, SmoothedEntropyFloor)):
        assert constraint.size == 9
    with pytest.raises(ValueError, match=r"mu must have the 9 cells .* got 16"):
        constraint.margin(torch.full((16,), 1 / 16))


@given(seed=st.integers(0, 2**31), size=st.integers(2, 20), zeros=st.booleans())
@settings(max_examples=50, deadline=None)
def test_the_largest_weighted_entropy_is_the_largest(seed: int, size: int, zeros: bool) -> None:
    """No distribution exceeds it, and a general-purpose optimiser reaches it."""
    rng = np.random.default_rng(seed)
    weights = rng.gamma(1.0, size=size) + 1e-3
    if zeros:
        weights[rng.random(size) < 0.5] = 0.0
        weights[0] = 1.0
    largest = WeightedEntropyFloor(weights, 1.0).largest

    def negative(logits: np.ndarray) -> float:
        x = np.exp(logits - logits.max())
        x = np.append(x, 1e-9) / x.sum()  # a spare entry keeps the logarithm's argument positive
        return float((weights * x[:-1] * np.log(np.maximum(x[:-1], 1e-300))).sum())

    best = scipy.optimize.minimize(negative, np.zeros(size), method="BFGS")
    assert -best.fun <= largest + 1e-9
    assert -best.fun == pytest.approx(largest, rel=1e-3)


@pytest.mark.parametrize(
    ("ones", "zeros", "largest"), [(3, 6, math.log(3)), (9, 0, math.log(9)), (2, 0, math.log(2)), (1, 0, 0.0)]
)
def test_weights_of_zero_and_one_are_the_entropy_of_the_ones(ones: int, zeros: int, largest: float) -> None:
    """The largest value is log of the number of ones; uniform over them has margin zero at fraction 1."""
    floor = WeightedEntropyFloor([1.0] * ones + [0.0] * zeros, 1.0)
    assert floor.largest == pytest.approx(largest, abs=1e-12)
    mu = torch.tensor([1 / ones] * ones + [0.0] * zeros, dtype=F64)
    assert float(floor.margin(mu)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("ones", [1, 2])
def test_one_or_two_cells_do_better_by_leaving_mass_elsewhere(ones: int) -> None:
    """-x log x is largest at 1/e, which is feasible where a cell of weight zero takes the rest."""
    floor = WeightedEntropyFloor([1.0] * ones + [0.0], 1.0)
    assert floor.largest == pytest.approx(ones / math.e, abs=1e-12)


def test_weights_far_apart_do_not_overflow() -> None:
    """A cell of nearly no weight and no cell of none: nearly -w x log x of the heavy cell, largest at 1/e."""
    assert WeightedEntropyFloor([1e3, 1e-3], 1.0).largest == pytest.approx(1e3 / math.e, rel=1e-5)


def test_with_weights_of_one_it_is_the_entropy_floor() -> None:
    """The same margin, whatever the distribution."""
    for seed in range(5):
        mu = simplex(seed, empty=True)
        torch.testing.assert_close(WeightedEntropyFloor(torch.ones(9), 0.8).margin(mu), EntropyFloor(0.8).margin(mu))


@pytest.mark.parametrize("weights", [[], [[1.0]], [1.0, -1.0], [1.0, math.nan], [0.0, 0.0]])
def test_bad_weights_raise(weights: list[Any]) -> None:
    """Weights are finite, non-negative, one per cell, not all zero."""
    with pytest.raises(ValueError, match="weights"):
        WeightedEntropyFloor(weights, 0.5)


def test_smoothed_entropy_is_the_formula() -> None:
    """Margin zero at fraction 1 when uniform, and the formula elsewhere."""
    floor = SmoothedEntropyFloor(1.0, 0.01)
    assert float(floor.margin(torch.full((9,), 1 / 9, dtype=F64))) == pytest.approx(0.0, abs=1e-12)
    mu = simplex(0, empty=True)
    expected = -sum(x * math.log(x + 0.01) for x in mu.tolist()) + math.log(1 / 9 + 0.01)
    assert float(floor.margin(mu)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("epsilon", [0.0, -0.1, 0.5, math.nan, "0.1"])
def test_bad_epsilon_raises(epsilon: Any) -> None:
    """Without smoothing there is no constant; with too much the floor would change its sign."""
    with pytest.raises(ValueError, match="epsilon"):
        SmoothedEntropyFloor(0.5, epsilon)


def test_regions_by_mask_and_by_indices_are_the_same() -> None:
    """One region, three ways to say it; capacity and coverage are opposite margins."""
    mask = torch.tensor([True, False, False, True])
    mu = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)
    capacities = [RegionCapacity(mask, 0.4), RegionCapacity([3, 0], 0.4, size=4), RegionCapacity(np.array([0, 3]), 0.4, size=4)]
    assert capacities[0] == capacities[1] == capacities[2]
    assert float(capacities[0].margin(mu)) == pytest.approx(-0.1)
    assert float(RegionCoverage(mask, 0.4).margin(mu)) == pytest.approx(0.1)
    assert capacities[0].lipschitz == 2.0


def test_a_grid_that_is_not_told_is_at_most_the_largest() -> None:
    """Indices or an epsilon alone do not tell k: the constant is that of 25 x 25 cells, and larger grids are refused."""
    for constraint in (RegionCapacity([0, 1], 0.5), SmoothedEntropyFloor(0.5, 0.1)):
        assert constraint.lipschitz == pytest.approx(25 * dataclasses.replace(constraint, size=4, lipschitz=None).lipschitz / 2)
        assert constraint.margin(torch.full((625,), 1 / 625)).isfinite()
        with pytest.raises(ValueError, match="pass size=676"):
            constraint.margin(torch.full((676,), 1 / 676))
    with pytest.raises(ValueError, match=r"region must hold cell indices in \[0, 4\), got 9"):
        RegionCapacity([0, 9], 0.5).margin(torch.full((4,), 0.25))


@pytest.mark.parametrize(
    "region", [[], [0.5], [True, False, False], [False] * 4, [-1], [0, 0], [4], [[0, 1]], [[True, False], [False, True]]]
)
def test_bad_regions_raise(region: list[Any]) -> None:
    """Empty, fractional, repeated, outside, of the wrong length or shape: each refused by name."""
    with pytest.raises(ValueError, match="region"):
        RegionCoverage(region, 0.5, size=4)


@pytest.mark.parametrize(
    "make",
    [
        lambda share: RegionCapacity([0], share),
        lambda share: RegionCoverage([0], share),
        lambda share: WeightedEntropyFloor([1.0], share),
        lambda share: SmoothedEntropyFloor(share, 0.1),
    ],
)
@pytest.mark.parametrize("share", [-0.01, 1.01, math.nan, True, "0.5"])
def test_bad_shares_raise(make: Callable[[Any], Any], share: Any) -> None:
    """Caps, floors and fractions are numbers in [0, 1]."""
    with pytest.raises(ValueError, match=rf"must lie in \[0, 1\], got {share!r}"):
        make(share)


@given(seed=st.integers(0, 2**31), empty=st.booleans(), near=st.booleans())
@settings(max_examples=60, deadline=None)
def test_proven_constants_hold(seed: int, empty: bool, near: bool) -> None:
    """|h(mu) - h(nu)| <= L W1(mu, nu) for random pairs, far and one cell apart, with W1 from POT."""
    ot = pytest.importorskip("ot")
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 5))
    mu = simplex(seed, k * k, empty=empty)
    nu = simplex(seed + 1, k * k, empty=empty)
    if near:  # a little mass of one cell goes next door, where the constants are tight
        nu = mu.clone()
        nu[0], nu[1] = 0.9 * mu[0], mu[1] + 0.1 * mu[0]
    i, j = np.divmod(np.arange(k * k), k)
    cost = np.hypot(i[:, None] - i, j[:, None] - j) / k
    distance = float(ot.emd2(mu.numpy(), nu.numpy(), cost))
    mask = rng.random(k * k) < 0.5
    mask[0] = True
    for constraint in (
        SmoothedEntropyFloor(0.5, float(10.0 ** rng.uniform(-4, -0.5)), size=k * k),
        RegionCapacity(mask, 0.5),
        RegionCoverage(mask, 0.5),
        DistanceCap(simplex(seed + 2, k * k), 0.5, "tv"),
        KeepAway(simplex(seed + 2, k * k), 0.5, "tv"),
        DistanceCap(simplex(seed + 2, k * k), 0.5, "w1"),
    ):
        fall = abs(float(constraint.margin(mu) - constraint.margin(nu)))
        assert fall <= constraint.lipschitz * distance + 1e-9


@given(seed=st.integers(0, 2**31), size=st.integers(2, 40), ring=st.booleans(), near=st.booleans())
@settings(max_examples=60, deadline=None)
def test_proven_constants_hold_on_a_line_and_a_ring(seed: int, size: int, ring: bool, near: bool) -> None:
    """In one dimension W1 is an integral of cumulative sums: on a line of F - G, on a ring of F - G less its median."""
    rng = np.random.default_rng(seed)
    mu, nu = simplex(seed, size, empty=True), simplex(seed + 1, size)
    if near:  # mass of one cell goes next door, where the constants are tight
        nu = mu.roll(1) if ring else torch.cat([mu[:1] * 0.0, mu[:-2], mu[-2:].sum().view(1)])
    gap = (mu - nu).cumsum(0)
    distance = float((gap - gap.median() if ring else gap).abs().sum()) / size
    mask = rng.random(size) < 0.5
    mask[0] = True
    for constraint in (
        SmoothedEntropyFloor(0.5, float(10.0 ** rng.uniform(-4, -0.5)), size=size, dimension=1),
        RegionCapacity(mask, 0.5, dimension=1),
        RegionCoverage(mask, 0.5, dimension=1),
        DistanceCap(simplex(seed + 2, size), 0.5, "tv", dimension=1),
        KeepAway(simplex(seed + 2, size), 0.5, "tv", dimension=1),
    ):
        assert abs(float(constraint.margin(mu) - constraint.margin(nu))) <= constraint.lipschitz * distance + 1e-9


@pytest.mark.parametrize(("dimension", "k"), [({}, 10), ({"dimension": 2}, 10), ({"dimension": 1}, 100)])
def test_cells_are_those_of_a_square_unless_told(dimension: dict[str, Any], k: int) -> None:
    """100 cells are 10 x 10 by default, and a ring or an interval of 100 where the dimension says so."""
    even = np.full(100, 0.01)
    for constraint in (
        RegionCapacity([0], 0.5, size=100, **dimension),
        RegionCoverage(even > 0, 0.5, **dimension),
        DistanceCap(even, 0.5, "tv", **dimension),
        KeepAway(even, 0.5, "tv", **dimension),
    ):
        assert constraint.lipschitz == k
    smoothed = SmoothedEntropyFloor(0.5, 0.1, size=100, **dimension)
    assert smoothed.lipschitz == pytest.approx(k * (math.log(11) + 1 / 1.1))
    assert RegionCapacity([0], 0.5, **dimension).lipschitz == (625 if k == 100 else 25)


@pytest.mark.parametrize("dimension", [0, 3, 1.0, True, "1"])
@pytest.mark.parametrize(
    "make",
    [
        lambda dimension: RegionCapacity([0], 0.5, dimension=dimension),
        lambda dimension: RegionCoverage([0], 0.5, lipschitz=1.0, dimension=dimension),
        lambda dimension: SmoothedEntropyFloor(0.5, 0.1, dimension=dimension),
        lambda dimension: DistanceCap([1.0], 0.5, "kl", dimension=dimension),
        lambda dimension: KeepAway([1.0], 0.5, "tv", dimension=dimension),
    ],
)
def test_bad_dimensions_raise(make: Callable[[Any], Any], dimension: Any) -> None:
    """A line or a square, whether or not a constant hangs on it."""
    with pytest.raises(ValueError, match=rf"dimension must be .* from 1 to 2, got {dimension!r}"):
        make(dimension)


@pytest.mark.parametrize(
    "make",
    [lambda size: SmoothedEntropyFloor(0.5, 0.1, size=size), lambda size: RegionCapacity([0], 0.5, size=size, lipschitz=1.0)],
)
@pytest.mark.parametrize("size", [0, -4, 9.0, True, "9"])
def test_bad_sizes_raise(make: Callable[[Any], Any], size: Any) -> None:
    """A number of cells is a positive integer, NumPy's or Python's."""
    with pytest.raises(ValueError, match=rf"size must be an integer >= 1, got {size!r}"):
        make(size)
    assert make(np.int64(9)) == make(9) and type(make(np.int64(9)).size) is int


def test_the_constant_of_a_region_is_reached() -> None:
    """Mass that crosses the border of a region by one cell: no smaller constant would do."""
    capacity = RegionCapacity([0], 0.5, size=16)
    mu, nu = torch.eye(16)[0], torch.eye(16)[1]  # one cell apart: W1 = 1/4
    assert float(capacity.margin(nu) - capacity.margin(mu)) == capacity.lipschitz * 0.25


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_constraints_in_a_world_singly_and_together(make_scenario: Callable[..., Scenario], dtype: torch.dtype) -> None:
    """The margin of a world is a vector, in the order given; a step is safe where all are at least zero."""

    class Stay:
        def field(self, mu: torch.Tensor, t: int) -> torch.Tensor:
            return mu.new_zeros(*mu.shape, 2)

    city = make_scenario(3)
    together = TaxiMDP(city, constraints=ALL, horizon=3, dtype=dtype).rollout(Stay())
    assert together.margins.shape == (3, len(ALL))
    for index, constraint in enumerate(ALL):
        world = TaxiMDP(city, constraints=(constraint,), horizon=3, dtype=dtype)
        alone = world.rollout(Stay())
        assert world.margins(world.initial((2,))).shape == (2, 1)
        torch.testing.assert_close(alone.margins[:, 0], together.margins[:, index])
    assert int(together.violations) == int((together.margins < 0).any(-1).sum()) > 0
    assert len({constraint.name for constraint in ALL}) == len(ALL)


SCATTERING = [EntropyFloor(0.6), *[one for one in CONVEX if hasattr(one, "scatter")]]


@pytest.mark.parametrize("constraint", SCATTERING, ids=str)
def test_scatter_is_that_of_sampled_fleets(constraint: Any) -> None:
    """Margins of fleets drawn from a distribution differ by ``scatter / sqrt(m)``; batch = loop, finite slopes at corners."""
    taxis, mu = 20_000, simplex(3)
    drawn = np.random.default_rng(0).multinomial(taxis, mu.numpy(), size=4000) / taxis
    margins = constraint.margin(torch.from_numpy(drawn))
    assert float(margins.std()) == pytest.approx(float(constraint.scatter(mu)) / taxis**0.5, rel=0.05)
    batch = torch.stack([simplex(seed) for seed in range(3)])
    torch.testing.assert_close(scatter([constraint], batch)[2, 0], constraint.scatter(batch[2]))
    for corner in (torch.full((9,), 1 / 9), torch.eye(9)[0]):
        corner = corner.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(constraint.scatter(corner), corner)
        assert bool(gradient.isfinite().all())


def test_margins_in_nats_are_those_of_entropy_floors_alone() -> None:
    """What pictures and reports write behind a margin; without constraints there is none."""
    floors = [
        EntropyFloor(0.5),
        WeightedEntropyFloor([1, 2, 1, 1, 1, 1, 1, 1, 1], 0.6),
        SmoothedEntropyFloor(0.6, 0.01, size=9),
    ]
    assert in_nats(floors) and not in_nats([]) and not in_nats([*floors, RegionCapacity([0], 0.4, size=9)])


def test_a_constraint_without_scatter_is_named() -> None:
    """Not every distance can say how a fleet's margin scatters; no constraint scatters nothing."""
    with pytest.raises(ValueError, match=r"constraints .*DistanceCap.* no scatter"):
        scatter([EntropyFloor(0.5), DistanceCap(NINE, 0.3, "tv")], simplex(0))
    assert scatter([], simplex(0)).shape == (0,)
