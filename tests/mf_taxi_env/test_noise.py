"""Gaussian noise, truncated or wrapped: its cell probabilities, its push-forward, and its samples say the same thing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mf_taxi_env import Grid
from mf_taxi_env.noise import BLOCK, Noise, TruncatedGaussian
from mf_taxi_env.wrapped_noise import WrappedGaussian


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("std", [0.0175, 0.3])
def test_cell_probabilities_are_those_of_a_truncated_normal(std: float, dtype: torch.dtype, tolerance: float) -> None:
    """SciPy's truncated normal gives the same mass to every cell, at the edges of the city too."""
    edges = np.linspace(0, 1, 26)
    destinations = torch.tensor([0.0, 1e-3, 0.02, 0.5, 0.512, 0.98, 1.0], dtype=dtype)
    probabilities = TruncatedGaussian(Grid(25, 1), std).cell_probabilities(destinations.unsqueeze(-1))
    assert probabilities.shape == (7, 1, 25)
    for destination, row in zip(destinations.tolist(), probabilities[:, 0].tolist(), strict=True):
        law = scipy.stats.truncnorm(-destination / std, (1 - destination) / std, loc=destination, scale=std)
        np.testing.assert_allclose(row, np.diff(law.cdf(edges)), rtol=0, atol=tolerance)


@given(
    x=st.floats(0, 1),
    y=st.floats(0, 1),
    std=st.floats(1e-4, 10.0),
    cells=st.integers(1, 30),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=100, deadline=None)
def test_probabilities_are_nonnegative_and_sum_to_one(x: float, y: float, std: float, cells: int, dtype: torch.dtype) -> None:
    """Whatever the destination and the noise level, an axis is a distribution."""
    rows = TruncatedGaussian(Grid(cells), std).cell_probabilities(torch.tensor([x, y], dtype=dtype))
    assert bool((rows >= 0).all())
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, dtype=dtype), rtol=0, atol=2e-6 if dtype == torch.float32 else 1e-13)


def test_push_forward_is_the_sum_of_outer_products() -> None:
    """Two matrix products equal the explicit sum over particle groups, x along the rows."""
    noise = TruncatedGaussian(Grid(4), 0.1)
    generator = torch.Generator().manual_seed(0)
    destinations = torch.rand(7, 2, generator=generator, dtype=torch.float64)
    mass = torch.rand(7, generator=generator, dtype=torch.float64)
    rows = noise.cell_probabilities(destinations)
    expected = sum(mass[n] * torch.outer(rows[n, 0], rows[n, 1]) for n in range(7))
    torch.testing.assert_close(noise.push_forward(mass, destinations), expected.flatten())


def test_push_forward_in_one_dimension() -> None:
    """The interval needs no outer product, but the same mass."""
    noise = TruncatedGaussian(Grid(6, 1), 0.1)
    destinations = torch.tensor([[0.1], [0.9]], dtype=torch.float64)
    mass = torch.tensor([0.25, 0.75], dtype=torch.float64)
    rows = noise.cell_probabilities(destinations)[:, 0]
    torch.testing.assert_close(noise.push_forward(mass, destinations), 0.25 * rows[0] + 0.75 * rows[1])


def test_push_forward_broadcasts_mass_and_destinations() -> None:
    """One distribution under a batch of moves, and a batch of distributions under one move."""
    noise = TruncatedGaussian(Grid(3), 0.1)
    generator = torch.Generator().manual_seed(0)
    mass = torch.rand(4, 9, generator=generator)
    destinations = torch.rand(4, 9, 2, generator=generator)
    for b in range(4):
        torch.testing.assert_close(noise.push_forward(mass[0], destinations)[b], noise.push_forward(mass[0], destinations[b]))
        torch.testing.assert_close(noise.push_forward(mass, destinations[0])[b], noise.push_forward(mass[b], destinations[0]))


@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize("std", [0.02, 0.3])
def test_gradients_of_the_push_forward(dimension: int, std: float) -> None:
    """The written-out backward pass agrees with finite differences, in mass and in destinations, at the city's edges too."""
    noise = TruncatedGaussian(Grid(7, dimension), std)
    generator = torch.Generator().manual_seed(0)
    mass = torch.rand(2, 6, generator=generator, dtype=torch.float64)
    destinations = torch.rand(2, 6, dimension, generator=generator, dtype=torch.float64)
    destinations[0, :2] = torch.tensor([1e-4, 1 - 1e-4], dtype=torch.float64).unsqueeze(-1)
    assert torch.autograd.gradcheck(noise.push_forward, (mass.requires_grad_(), destinations.requires_grad_()))


@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize("block", [1, 40, 150, 400])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, dimension: int, block: int) -> None:
    """However the batch and the particles are cut into blocks, mass and gradients are the same."""
    noise = TruncatedGaussian(Grid(5, dimension), 0.05)
    generator = torch.Generator().manual_seed(1)
    mass = torch.rand(3, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    destinations = torch.rand(3, 7, dimension, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(noise.grid.size, generator=generator, dtype=torch.float64)

    def outcome() -> tuple[torch.Tensor, ...]:
        pushed = noise.push_forward(mass, destinations)
        return pushed, *torch.autograd.grad((pushed @ weights).sin().sum(), (mass, destinations))

    whole = outcome()
    monkeypatch.setitem(BLOCK, "cpu", block)
    for part, expected in zip(outcome(), whole, strict=True):
        torch.testing.assert_close(part, expected)


def test_a_destination_that_is_no_number_gives_no_number() -> None:
    """A NaN spreads to mass, never to another batch element, and is no fault of an index."""
    destinations = torch.full((2, 3, 2), 0.5)
    destinations[0, 1, 0] = math.nan
    pushed = TruncatedGaussian(Grid(5), 0.05).push_forward(torch.ones(2, 3), destinations)
    assert pushed[0].isnan().any() and not pushed[1].isnan().any()


def test_cells_out_of_reach_have_no_mass() -> None:
    """The push-forward touches only the cells that the noise reaches: nothing beyond eight standard deviations."""
    grid = Grid(100, 1)
    pushed = TruncatedGaussian(grid, 0.0175).push_forward(torch.ones(1), torch.tensor([[0.5]]))
    distance = (grid.centers()[:, 0] - 0.5).abs()
    assert not pushed[distance > 8 * 0.0175].any()
    assert (pushed[distance < 4 * 0.0175] > 0).all()


def test_samples_follow_the_cell_probabilities() -> None:
    """A chi-square test at the edge, off the edge and in the middle of the city."""
    grid = Grid(10, 1)
    noise = TruncatedGaussian(grid, 0.08)
    generator = torch.Generator().manual_seed(3)
    for destination in (0.0, 0.03, 0.5, 1.0):
        points = torch.full((20_000, 1), destination, dtype=torch.float64)
        counts = grid.histogram(noise.sample(points, generator)).numpy() * 20_000
        expected = noise.cell_probabilities(points[:1])[0, 0].numpy() * 20_000
        seen = expected > 5
        assert counts[~seen].sum() <= 5 * expected[~seen].sum() + 5
        assert scipy.stats.chisquare(counts[seen], expected[seen] * counts[seen].sum() / expected[seen].sum()).pvalue > 1e-4


def test_samples_stay_in_the_city_and_repeat_with_the_generator() -> None:
    """Truncated, not clipped: positions lie in the unit square, the edges attract no point mass, and a seed repeats them."""
    noise = TruncatedGaussian(Grid(10), 0.0175)
    destinations = torch.tensor([[0.0, 1.0]]).expand(50_000, 2)
    first = noise.sample(destinations, torch.Generator().manual_seed(1))
    assert bool(((first >= 0) & (first <= 1)).all())
    assert float((first[:, 0] == 0).float().mean()) < 1e-3
    assert float((first[:, 1] == 1).float().mean()) < 1e-3
    assert torch.equal(first, noise.sample(destinations, torch.Generator().manual_seed(1)))


def test_an_extreme_draw_does_not_cross_the_city(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest and largest float32 draws move a taxi by a few standard deviations, not to the edge of the city."""
    noise = TruncatedGaussian(Grid(10), 0.0175)
    destinations = torch.full((2, 2), 0.5)
    extremes = torch.tensor([[0.0, 0.0], [1 - 2**-24, 1 - 2**-24]])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: extremes)
    assert float((noise.sample(destinations, torch.Generator()) - 0.5).abs().max()) < 10 * 0.0175


@pytest.mark.parametrize("std", [0.0, -0.1, math.nan, math.inf])
def test_bad_standard_deviation_raises(std: float) -> None:
    """The message names the public argument and the value."""
    with pytest.raises(ValueError, match=f"noise_std .*got {std}"):
        TruncatedGaussian(Grid(3), std)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("std", [0.004, 0.1, 0.7])
def test_wrapped_probabilities_are_sums_of_images(std: float, dtype: torch.dtype, tolerance: float) -> None:
    """SciPy's normal, image by image, gives the same mass to every cell, whether the noise reaches a cell or turns twice."""
    edges = np.linspace(0, 1, 101)
    destinations = torch.tensor([0.0, 1e-3, 0.3, 0.512, 0.99, 1.0], dtype=dtype)
    probabilities = WrappedGaussian(Grid(100, 1), std).cell_probabilities(destinations.unsqueeze(-1))
    assert probabilities.shape == (6, 1, 100)
    for destination, row in zip(destinations.tolist(), probabilities[:, 0].tolist(), strict=True):
        # Above the destination upper tails are subtracted: near one the distribution function has few digits left.
        images = edges + np.arange(-8, 9)[:, None] - destination
        lower, upper = np.diff(scipy.stats.norm.cdf(images / std)), -np.diff(scipy.stats.norm.sf(images / std))
        expected = np.where(images[:, :-1] < 0, lower, upper).sum(0)
        np.testing.assert_allclose(row, expected, rtol=0, atol=tolerance)


@given(
    x=st.floats(0, 1),
    y=st.floats(0, 1),
    std=st.floats(1e-4, 2.0),
    cells=st.integers(1, 30),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=100, deadline=None)
def test_wrapped_probabilities_are_nonnegative_and_sum_to_one(
    x: float, y: float, std: float, cells: int, dtype: torch.dtype
) -> None:
    """Whatever the destination and the noise level, an axis is a distribution."""
    rows = WrappedGaussian(Grid(cells), std).cell_probabilities(torch.tensor([x, y], dtype=dtype))
    assert bool((rows >= 0).all())
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, dtype=dtype), rtol=0, atol=2e-6 if dtype == torch.float32 else 1e-13)


def test_wrapped_noise_has_no_seam() -> None:
    """0 and 1 are one point, and a turn of the destination by some cells turns the outcome by as many."""
    noise = WrappedGaussian(Grid(8, 1), 0.1)
    ends = noise.cell_probabilities(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-15)
    torch.testing.assert_close(ends[0], ends[0].flip(-1), rtol=0, atol=1e-15)
    x = torch.tensor([[0.06], [0.3]], dtype=torch.float64)
    for turn in range(1, 8):
        turned = noise.cell_probabilities((x + turn / 8) % 1)
        torch.testing.assert_close(turned, noise.cell_probabilities(x).roll(turn, -1), rtol=0, atol=1e-14)


def test_wrapped_push_forward_is_the_explicit_sum() -> None:
    """Matrix products equal the sum over particle groups, on the ring and on the torus, x along the rows."""
    generator = torch.Generator().manual_seed(0)
    mass = torch.rand(3, 7, generator=generator, dtype=torch.float64)
    destinations = torch.rand(7, 2, generator=generator, dtype=torch.float64)
    ring, torus = WrappedGaussian(Grid(5, 1), 0.1), WrappedGaussian(Grid(5), 0.1)
    rows = torus.cell_probabilities(destinations)
    for b in range(3):
        line = sum(mass[b, n] * rows[n, 0] for n in range(7))
        torch.testing.assert_close(ring.push_forward(mass, destinations[:, :1])[b], line)
        square = sum(mass[b, n] * torch.outer(rows[n, 0], rows[n, 1]) for n in range(7))
        torch.testing.assert_close(torus.push_forward(mass, destinations)[b], square.flatten())


@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize("std", [0.02, 0.3])
def test_gradients_of_the_wrapped_push_forward(dimension: int, std: float) -> None:
    """Gradients agree with finite differences, in mass and in destinations, across the seam too."""
    noise = WrappedGaussian(Grid(7, dimension), std)
    generator = torch.Generator().manual_seed(0)
    mass = torch.rand(2, 6, generator=generator, dtype=torch.float64)
    destinations = torch.rand(2, 6, dimension, generator=generator, dtype=torch.float64)
    destinations[0, :2] = torch.tensor([1e-4, 1 - 1e-4], dtype=torch.float64).unsqueeze(-1)
    assert torch.autograd.gradcheck(noise.push_forward, (mass.requires_grad_(), destinations.requires_grad_()))


def test_wrapped_noise_of_a_destination_that_is_no_number_is_no_number() -> None:
    """A NaN spreads to mass, never to another batch element, and is no fault of an index."""
    destinations = torch.full((2, 3, 1), 0.5)
    destinations[0, 1, 0] = math.nan
    pushed = WrappedGaussian(Grid(5, 1), 0.05).push_forward(torch.ones(2, 3), destinations)
    assert pushed[0].isnan().any() and not pushed[1].isnan().any()


def test_wrapped_samples_follow_the_cell_probabilities() -> None:
    """A chi-square test at the seam and off it; samples lie on the ring, and a seed repeats them."""
    grid = Grid(10, 1)
    noise = WrappedGaussian(grid, 0.15)
    generator = torch.Generator().manual_seed(3)
    for destination in (0.0, 0.03, 0.5, 1.0):
        points = torch.full((20_000, 1), destination, dtype=torch.float64)
        landed = noise.sample(points, generator)
        assert bool(((landed >= 0) & (landed <= 1)).all())
        expected = noise.cell_probabilities(points[:1])[0, 0].numpy() * 20_000
        assert scipy.stats.chisquare(grid.histogram(landed).numpy() * 20_000, expected * 20_000 / expected.sum()).pvalue > 1e-4
    first = noise.sample(points, torch.Generator().manual_seed(1))
    assert torch.equal(first, noise.sample(points, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("std", [0.0, -0.1, math.nan, math.inf])
def test_bad_standard_deviation_of_wrapped_noise_raises(std: float) -> None:
    """The message names the public argument and the value."""
    with pytest.raises(ValueError, match=f"noise_std .*got {std}"):
        WrappedGaussian(Grid(3), std)


def test_noises_are_interchangeable() -> None:
    """Away from the edges, and with noise that does not reach them, truncated and wrapped are the same law."""
    noises: list[Noise] = [TruncatedGaussian(Grid(50, 1), 0.03), WrappedGaussian(Grid(50, 1), 0.03)]
    truncated, wrapped = (noise.cell_probabilities(torch.tensor([[0.43]], dtype=torch.float64)) for noise in noises)
    torch.testing.assert_close(truncated, wrapped, rtol=0, atol=1e-14)


def test_an_empty_batch_is_a_batch() -> None:
    """No episode at all: no distribution, no error."""
    pushed = TruncatedGaussian(Grid(5), 0.02).push_forward(torch.zeros(0, 7), torch.zeros(0, 7, 2))
    assert pushed.shape == (0, 25)
