"""The grid: which cell is where, in the order that every other module relies on."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mf_taxi_env import Grid
from mf_taxi_env.checks import finite_number, whole_number


@pytest.mark.parametrize("cells", [1, 2, 5, 10, 25])
def test_center_of_cell_i_j_stands_at_index_i_k_plus_j(cells: int) -> None:
    """The first axis is longitude, the index is i * k + j."""
    centers = Grid(cells).centers(dtype=torch.float64)
    for i in range(cells):
        for j in range(cells):
            expected = torch.tensor([(i + 0.5) / cells, (j + 0.5) / cells], dtype=torch.float64)
            torch.testing.assert_close(centers[i * cells + j], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize("cells", [1, 4, 25, 100])
def test_every_center_lies_in_its_own_cell(cells: int, dimension: int, dtype: torch.dtype) -> None:
    """index undoes centers."""
    grid = Grid(cells, dimension)
    assert grid.index(grid.centers(dtype=dtype)).tolist() == list(range(cells**dimension))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cells", [1, 5, 10, 25])
def test_a_cell_includes_its_lower_edge_and_the_last_its_upper(cells: int, dtype: torch.dtype) -> None:
    """Cells are half open, but a position of exactly 1.0 is in the last cell."""
    grid = Grid(cells, 1)
    index = grid.index(grid.edges(dtype=dtype).unsqueeze(-1))
    assert index.tolist() == [*range(cells), cells - 1]


def test_edges_go_from_zero_to_one() -> None:
    """The first and last edges are exact: the noise is truncated there."""
    edges = Grid(7).edges()
    assert edges.shape == (8,)
    assert edges[0] == 0.0
    assert edges[-1] == 1.0


def test_positions_outside_count_to_the_nearest_cell() -> None:
    """A rounding error beyond the city never indexes out of range or wraps around."""
    positions = torch.tensor([[-0.01, 0.5], [1.01, 0.5], [0.5, -3.0], [0.5, 3.0]])
    assert Grid(3).index(positions).tolist() == [1, 7, 3, 5]


def test_index_keeps_batch_dimensions() -> None:
    """Batches of fleets are indexed at once."""
    grid = Grid(4)
    positions = torch.rand(2, 3, 5, 2, generator=torch.Generator().manual_seed(0))
    index = grid.index(positions)
    assert index.shape == (2, 3, 5)
    assert torch.equal(index[1, 2], grid.index(positions[1, 2]))


@given(cells=st.integers(1, 12), count=st.integers(1, 50), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_histogram_counts_every_particle_once(cells: int, count: int, seed: int) -> None:
    """The empirical distribution equals an explicit count."""
    grid = Grid(cells)
    positions = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = torch.zeros(cells * cells, dtype=torch.float64)
    for x, y in positions.tolist():
        expected[int(x * cells) * cells + int(y * cells)] += 1.0 / count
    torch.testing.assert_close(grid.histogram(positions), expected)


@pytest.mark.parametrize("cells", [0, -1, 2.0, "5", None, True])
def test_bad_cells_raise(cells: object) -> None:
    """A grid without cells, or with a fraction of one, is refused by name and value."""
    with pytest.raises(ValueError, match=r"cells .*got"):
        Grid(cells)  # type: ignore[arg-type]


@pytest.mark.parametrize("dimension", [0, 3, True, 2.0])
def test_bad_dimension_raises(dimension: int) -> None:
    """Only the interval and the square exist."""
    with pytest.raises(ValueError, match=f"dimension .*got {dimension}"):
        Grid(3, dimension)


def test_numpys_integers_are_integers() -> None:
    """What NumPy computed is taken, and kept as Python's own."""
    grid = Grid(np.int64(4), np.int32(1))  # type: ignore[arg-type]
    assert grid == Grid(4, 1)
    assert type(grid.cells) is type(grid.dimension) is int


@pytest.mark.parametrize("value", [True, np.True_, 3.0, np.float64(3.0), "3", None, 0, 6, np.int64(6)])
def test_what_is_no_whole_number_in_range_is_refused(value: object) -> None:
    """A bool counts as an integer in Python, not here; the message has name, value and range."""
    with pytest.raises(ValueError, match=rf"^cells must be an integer from 1 to 5, got {re.escape(repr(value))}$"):
        whole_number("cells", value, 1, 5)
    assert whole_number("cells", np.uint8(5), 1, 5) == 5


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, 10**400, True, "1", None, 1j])
def test_a_finite_number_is_asked_for(value: object) -> None:
    """Also an integer beyond all floats is refused by name; NumPy's numbers are as good as Python's."""
    with pytest.raises(ValueError, match=r"^beta must be a finite number >= 0, got"):
        finite_number("beta", value)
    with pytest.raises(ValueError, match=r"^beta must be a finite number > 0, got 0$"):
        finite_number("beta", 0, positive=True)
    assert type(finite_number("beta", np.float32(0.5))) is float and finite_number("beta", 2) == 2.0
