"""Entropy and divergence: the reward and the safety margin are made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mf_taxi_env.information import entropy, kl_divergence


def distribution(size: int, seed: int, zeros: float = 0.3) -> Tensor:
    """A random distribution with some exact zeros."""
    rng = np.random.default_rng(seed)
    mass = rng.gamma(0.5, size=size) * (rng.random(size) >= zeros)
    mass[rng.integers(size)] += 0.1
    return torch.from_numpy(mass / mass.sum())


cases = given(size=st.integers(1, 60), seed=st.integers(0, 2**31))


@cases
@settings(max_examples=50, deadline=None)
def test_entropy_lies_between_zero_and_log_size(size: int, seed: int) -> None:
    """Entropy agrees with SciPy and keeps its bounds, empty cells included."""
    p = distribution(size, seed)
    value = float(entropy(p))
    assert value == pytest.approx(scipy.stats.entropy(p.numpy()), abs=1e-12)
    assert -1e-12 <= value <= math.log(size) + 1e-12


@cases
@settings(max_examples=50, deadline=None)
def test_kl_is_nonnegative_and_zero_only_for_equal_distributions(size: int, seed: int) -> None:
    """KL agrees with SciPy, is zero for equal arguments and obeys Pinsker's inequality, hence positive otherwise."""
    p, q = distribution(size, seed), distribution(size, seed + 1, zeros=0.0)
    value = float(kl_divergence(p, q))
    assert value == pytest.approx(scipy.stats.entropy(p.numpy(), q.numpy()), abs=1e-10)
    assert value >= 0.5 * float((p - q).abs().sum()) ** 2 - 1e-12
    assert float(kl_divergence(p, p)) == pytest.approx(0.0, abs=1e-12)


def test_extremes_are_exact() -> None:
    """A uniform distribution has entropy log K, a point mass has none."""
    assert float(entropy(torch.full((16,), 1 / 16))) == pytest.approx(math.log(16))
    assert float(entropy(torch.eye(16)[3])) == 0.0


def test_kl_to_an_empty_cell_is_finite_and_large() -> None:
    """Demand in a cell without taxis costs log(1e30) per unit of demand, not infinity, in float32 as well."""
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    assert float(kl_divergence(p, q)) == pytest.approx(math.log(0.5) - 0.5 * math.log(1e-30), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_at_empty_cells_are_finite(dtype: torch.dtype) -> None:
    """No NaN or infinity where a mass is exactly zero, in the fleet or in the demand."""
    p = torch.tensor([0.0, 0.4, 0.6, 0.0], dtype=dtype)
    mu = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=dtype, requires_grad=True)
    (entropy(mu) + kl_divergence(p, mu)).backward()
    assert mu.grad is not None
    assert bool(mu.grad.isfinite().all())


def test_kl_can_be_differentiated_in_its_first_argument_at_an_empty_cell() -> None:
    """A demand that is itself learned may have empty cells."""
    p = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(kl_divergence(p, torch.tensor([0.5, 0.5], dtype=torch.float64)), p)
    assert bool(gradient.isfinite().all())


def test_batches_are_rows() -> None:
    """Leading dimensions broadcast: a batch is the loop over its rows."""
    p = torch.stack([distribution(9, seed) for seed in range(6)]).reshape(2, 3, 9)
    q = distribution(9, 99, zeros=0.0)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(entropy(p)[i, j], entropy(p[i, j]))
            torch.testing.assert_close(kl_divergence(p, q)[i, j], kl_divergence(p[i, j], q))


def test_gradients_match_finite_differences() -> None:
    """gradcheck in float64 away from empty cells."""
    p, q = distribution(6, 1, zeros=0.0).requires_grad_(), distribution(6, 2, zeros=0.0).requires_grad_()
    assert torch.autograd.gradcheck(entropy, (p,))
    assert torch.autograd.gradcheck(kl_divergence, (p, q))
