"""The entropy floor: its margin, in torch and in CVXPY, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mf_taxi_env import Constraint, EntropyFloor


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


@pytest.mark.parametrize("fraction", [-0.01, 1.01, math.nan])
def test_bad_fraction_raises(fraction: float) -> None:
    """A floor outside [0, 1] of log K is refused by name and value."""
    with pytest.raises(ValueError, match=f"fraction .*got {fraction}"):
        EntropyFloor(fraction)


@pytest.mark.parametrize("lipschitz", [-1.0, math.nan, math.inf])
def test_bad_lipschitz_raises(lipschitz: float) -> None:
    """A tightening needs a finite non-negative constant."""
    with pytest.raises(ValueError, match=f"lipschitz .*got {lipschitz}"):
        EntropyFloor(0.9, lipschitz)


def test_entropy_floor_is_a_frozen_constraint() -> None:
    """It meets the protocol, has the name that info uses, compares by value, and cannot be loosened after the fact."""
    floor = EntropyFloor(0.9)
    assert isinstance(floor, Constraint)
    assert (floor.name, floor.lipschitz) == ("entropy", 0.1)
    assert floor == EntropyFloor(0.9)
    with pytest.raises(AttributeError):
        floor.fraction = 0.1  # type: ignore[misc]
