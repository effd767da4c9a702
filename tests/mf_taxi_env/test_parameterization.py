"""Flat actions to fields of actions: two views of one policy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mf_taxi_env import Grid
from mf_taxi_env.parameterization import BilinearField, CellField, make_parameterization

F64 = torch.float64


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    """Uniform numbers in [-1, 1), repeatable."""
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=F64) - 1


@pytest.mark.parametrize(
    ("name", "dimension", "expected"),
    [
        ("cells", 2, 72),
        ("cells", 1, 12),
        ("bilinear:2", 2, 8),
        ("bilinear:8", 2, 128),
        ("bilinear:5", 1, 10),
        ("fourier:1", 2, 2),
        ("fourier:3", 2, 18),
        ("fourier:4", 1, 8),
        ("network:5", 2, 27),
        ("network:4,3", 2, 35),
        ("network:4,3", 1, 31),
    ],
)
def test_number_of_parameters(name: str, dimension: int, expected: int) -> None:
    """What the docs say of each kind, and field takes exactly so many."""
    parameterization = make_parameterization(name, Grid(6, dimension), 2)
    assert parameterization.n_parameters == expected
    assert parameterization.field(torch.zeros(expected)).shape == (6**dimension, 2)


@given(
    name=st.sampled_from(["cells", "bilinear:2", "bilinear:8", "fourier:1", "fourier:4", "network:3", "network:4,5"]),
    cells=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_field_equals_at_the_centers_and_stays_in_bounds(name: str, cells: int, seed: int) -> None:
    """The view of the lifted MDP and the view of a taxi agree, and neither leaves [-1, 1]."""
    grid = Grid(cells)
    parameterization = make_parameterization(name, grid, 2)
    parameters = rand(parameterization.n_parameters, seed=seed)
    field = parameterization.field(parameters)
    torch.testing.assert_close(field, parameterization.at(parameters, grid.centers(dtype=F64)), rtol=0, atol=1e-12)
    assert float(field.abs().max()) <= 1.0
    if name.startswith(("fourier", "network")):
        return
    assert float(field.abs().max()) <= float(parameters.abs().max()) + 1e-12
    constant = parameterization.field(torch.ones_like(parameters))
    torch.testing.assert_close(constant, torch.ones_like(constant))
    extremes = parameterization.field(parameters.sign().float())
    assert float(extremes.abs().max()) <= 1.0  # fleets refuse more


def test_cells_are_constant_and_in_the_order_of_the_observation() -> None:
    """Parameters 2c and 2c + 1 are the move of cell c, anywhere in it."""
    grid = Grid(3)
    parameters = torch.arange(18.0) / 18
    positions = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    actions = CellField(grid, 2).at(parameters, positions)
    for (x, y), action in zip(positions.tolist(), actions.tolist(), strict=True):
        cell = int(3 * x) * 3 + int(3 * y)
        assert action == parameters[2 * cell : 2 * cell + 2].tolist()


@pytest.mark.parametrize("nodes", [2, 3, 8])
def test_bilinear_equals_explicit_interpolation(nodes: int) -> None:
    """The four surrounding nodes, weighted by opposite areas, loop by loop; edges and corners included."""
    field = BilinearField(Grid(4), 2, nodes)
    parameters = rand(nodes * nodes * 2)
    table = parameters.reshape(nodes, nodes, 2)
    positions = torch.cat(
        [(rand(30, 2, seed=1) + 1) / 2, torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 1.0]], dtype=F64)]
    )
    actions = field.at(parameters, positions)
    for (x, y), action in zip((positions * (nodes - 1)).tolist(), actions, strict=True):
        i, j = min(math.floor(x), nodes - 2), min(math.floor(y), nodes - 2)
        u, v = x - i, y - j
        expected = (
            (1 - u) * (1 - v) * table[i, j]
            + u * (1 - v) * table[i + 1, j]
            + (1 - u) * v * table[i, j + 1]
            + u * v * table[i + 1, j + 1]
        )
        torch.testing.assert_close(action, expected, rtol=0, atol=1e-12)


def test_bilinear_on_the_interval_is_linear() -> None:
    """In one dimension a ramp of nodes is a ramp of actions."""
    field = BilinearField(Grid(10, 1), 1, 4)
    ramp = torch.linspace(-1, 1, 4, dtype=F64)
    torch.testing.assert_close(field.field(ramp)[:, 0], 2 * Grid(10, 1).centers(dtype=F64)[:, 0] - 1)


@pytest.mark.parametrize("name", ["cells", "bilinear:3"])
def test_batches_are_loops(name: str) -> None:
    """Leading dimensions of the parameters are kept in both views."""
    grid = Grid(4)
    parameterization = make_parameterization(name, grid, 2)
    parameters, positions = rand(2, 3, parameterization.n_parameters), (rand(7, 2, seed=1) + 1) / 2
    field, at = parameterization.field(parameters), parameterization.at(parameters, positions)
    assert field.shape == (2, 3, 16, 2)
    assert at.shape == (2, 3, 7, 2)
    for a in range(2):
        for b in range(3):
            torch.testing.assert_close(field[a, b], parameterization.field(parameters[a, b]))
            torch.testing.assert_close(at[a, b], parameterization.at(parameters[a, b], positions))


@pytest.mark.parametrize("name", ["cells", "bilinear:3"])
def test_both_views_are_differentiable(name: str) -> None:
    """gradcheck in the parameters, in float64."""
    parameterization = make_parameterization(name, Grid(3), 2)
    parameters = rand(parameterization.n_parameters).requires_grad_()
    positions = (rand(5, 2, seed=1) + 1) / 2
    assert torch.autograd.gradcheck(parameterization.field, (parameters,))
    assert torch.autograd.gradcheck(lambda p: parameterization.at(p, positions), (parameters,))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", ["cells", "bilinear:3"])
def test_the_field_has_the_type_of_its_parameters(name: str, dtype: torch.dtype) -> None:
    """Switching between precisions works in either order, without losing any."""
    parameterization = make_parameterization(name, Grid(5), 2)
    exact = rand(parameterization.n_parameters)
    for kind in (dtype, F64, dtype):
        field = parameterization.field(exact.to(kind))
        assert field.dtype == kind
    torch.testing.assert_close(
        parameterization.field(exact), parameterization.at(exact, Grid(5).centers(dtype=F64)), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize(
    "name", ["cell", "cells:3", "bilinear", "bilinear:", "bilinear:x", "bilinear:-2", "bilinear:2.5", "", None, 5]
)
def test_unknown_names_raise(name: object) -> None:
    """The message says what was given and what is allowed."""
    with pytest.raises(ValueError, match=r"parameterization must be .*'bilinear:M'"):
        make_parameterization(name, Grid(3), 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("nodes", [0, 1])
def test_too_few_nodes_raise(nodes: int) -> None:
    """An interpolation needs two nodes per axis."""
    with pytest.raises(ValueError, match=f"M >= 2 .*got {nodes}"):
        make_parameterization(f"bilinear:{nodes}", Grid(3), 2)


def test_a_ready_object_is_used_as_it_is() -> None:
    """Users may bring their own parameterization."""
    ready = CellField(Grid(3), 2)
    assert make_parameterization(ready, Grid(3), 2) is ready


EVERY = ["cells", "bilinear:3", "fourier:3", "network:4,3"]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dimension", [1, 2])
def test_zero_parameters_stay_put(name: str, dimension: int) -> None:
    """A client that knows nothing can start from an action of zeros: nobody moves."""
    parameterization = make_parameterization(name, Grid(4, dimension), dimension)
    assert not parameterization.field(torch.zeros(parameterization.n_parameters)).any()


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_is_a_loop(name: str) -> None:
    """Leading dimensions of the parameters are a batch, for the field and for positions."""
    parameterization = make_parameterization(name, Grid(4), 2)
    parameters, positions = rand(2, 3, parameterization.n_parameters), (rand(7, 2, seed=1) + 1) / 2
    fields, actions = parameterization.field(parameters), parameterization.at(parameters, positions)
    assert fields.shape == (2, 3, 16, 2)
    assert actions.shape == (2, 3, 7, 2)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(fields[i, j], parameterization.field(parameters[i, j]))
            torch.testing.assert_close(actions[i, j], parameterization.at(parameters[i, j], positions))


@pytest.mark.parametrize("name", EVERY)
def test_fields_are_differentiable_in_their_parameters(name: str) -> None:
    """Whoever has the model may optimise an action by its gradient."""
    parameterization = make_parameterization(name, Grid(3), 2)
    parameters = (0.5 * rand(parameterization.n_parameters)).requires_grad_()
    assert torch.autograd.gradcheck(parameterization.field, (parameters,))


@pytest.mark.parametrize("name", EVERY)
def test_single_precision_agrees_with_double(name: str) -> None:
    """The env works in float32; nothing is lost by it, and no tensor is of another type by accident."""
    parameterization = make_parameterization(name, Grid(5), 2)
    parameters = rand(parameterization.n_parameters)
    single = parameterization.field(parameters.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), parameterization.field(parameters), rtol=0, atol=1e-5)


def test_fourier_equals_its_sum_of_cosines() -> None:
    """Term by term, i slowest."""
    grid, parameters = Grid(3), rand(4 * 2)
    field = make_parameterization("fourier:2", grid, 2).field(parameters)
    for cell, (x, y) in enumerate(grid.centers(dtype=F64).tolist()):
        total = torch.zeros(2, dtype=F64)
        for i in range(2):
            for j in range(2):
                total += parameters.view(4, 2)[2 * i + j] * math.cos(math.pi * i * x) * math.cos(math.pi * j * y)
        torch.testing.assert_close(field[cell], total.tanh())


def test_network_equals_a_module_with_its_weights() -> None:
    """The flat action is, layer by layer, the weights and biases of an ordinary perceptron."""
    parameterization = make_parameterization("network:4,3", Grid(5), 2)
    parameters = rand(parameterization.n_parameters)
    values, at = 2.0 * Grid(5).centers(dtype=F64) - 1.0, 0
    for inputs, outputs in ((2, 4), (4, 3), (3, 2)):
        layer = torch.nn.Linear(inputs, outputs, dtype=F64)
        with torch.no_grad():
            layer.weight.copy_(parameters[at : at + inputs * outputs].view(outputs, inputs) * 4.0 / inputs**0.5)
            at += inputs * outputs
            layer.bias.copy_(parameters[at : at + outputs] * 4.0)
            at += outputs
            values = layer(values).tanh()
    torch.testing.assert_close(parameterization.field(parameters), values)
