"""Destinations of trips: what the guide finds is what inverting each row's distribution function finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from mf_taxi_env.destinations import BUCKETS, Destinations
from mf_taxi_env.sparse import SparseMatrix


def skewed(size: int, seed: int = 0) -> torch.Tensor:
    """Trips of many orders of magnitude, some impossible: many destinations share a bucket."""
    rng = np.random.default_rng(seed)
    trips = rng.gamma(0.05, size=(size, size)) * (rng.random((size, size)) < 0.7) + np.eye(size) * 1e-6
    return torch.from_numpy(trips / trips.sum(-1, keepdims=True))


@pytest.mark.parametrize("size", [1, 3, 40, 300])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_draws_invert_the_distribution_function(size: int, kind: str) -> None:
    """The first destination whose cumulative probability exceeds the number; never one that has none."""
    trips = skewed(size)
    generator = torch.Generator().manual_seed(1)
    cells = torch.randint(size, (5_000,), generator=generator)
    uniform = torch.rand(5_000, generator=generator, dtype=torch.float64)
    uniform[:200] = torch.arange(200) / BUCKETS  # on the edges of buckets, zero among them
    given = trips if kind == "dense" else SparseMatrix(sparse.csr_array(trips.numpy()), torch.float64, torch.device("cpu"))
    drawn = Destinations(given).draw(cells, uniform)
    cumulative = trips.cumsum(-1)[cells]
    assert bool((trips[cells, drawn] > 0).all())
    at = cumulative.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
    before = at - trips[cells, drawn]
    assert bool((at > uniform - 1e-9).all()) and bool((before <= uniform + 1e-9).all())


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_the_largest_number_stays_in_its_row(kind: str) -> None:
    """Added to its row's index it is rounded up to the next row's first number; it leads to the last destination there is."""
    size = 300
    trips = skewed(size)
    trips[:, -20:] = 0.0
    trips /= trips.sum(-1, keepdim=True)
    given = trips if kind == "dense" else SparseMatrix(sparse.csr_array(trips.numpy()), torch.float64, torch.device("cpu"))
    cells, largest = torch.arange(size), torch.full((size,), 1.0 - 2.0**-53, dtype=torch.float64)
    assert bool((cells[1:] + largest[1:] == cells[1:] + 1).all())
    drawn = Destinations(given).draw(cells, largest)
    assert bool((trips[cells, drawn] > 0).all())
    assert bool((trips.cumsum(-1)[cells, drawn] > 1 - 1e-9).all())


def test_shares_are_the_probabilities() -> None:
    """A million draws from one cell, within four standard deviations everywhere."""
    trips = skewed(30, seed=3)
    uniform = torch.rand(10**6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = Destinations(trips).draw(torch.full((10**6,), 7), uniform)
    shares = torch.bincount(drawn, minlength=30) / 1e6
    assert bool(((shares - trips[7]).abs() <= 4 * (trips[7] * (1 - trips[7]) / 1e6).sqrt() + 1e-9).all())


def test_nobody_travels_where_nobody_rides() -> None:
    """An empty draw is empty."""
    none = torch.empty(0, dtype=torch.int64)
    assert Destinations(skewed(3)).draw(none, torch.empty(0, dtype=torch.float64)).shape == (0,)
