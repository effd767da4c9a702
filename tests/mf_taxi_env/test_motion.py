"""The motions: what the agent must learn, stated by explicit loops."""

from __future__ import annotations

import math

import pytest
import torch

from mf_taxi_env import CongestedMotion, FreeMotion, Grid, Motion
from mf_taxi_env.motion import TorusMotion, local_mass


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    """Uniform numbers in [0, 1), repeatable."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_free_motion_reaches_its_goal_and_stops_at_the_city_limits() -> None:
    """clip(s + a, 0, 1), axis by axis."""
    positions = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.2, 0.3]])
    actions = torch.tensor([[0.25, -0.25], [1.0, -1.0], [0.0, 0.0]])
    expected = torch.tensor([[0.75, 0.25], [1.0, 0.0], [0.2, 0.3]])
    torch.testing.assert_close(FreeMotion()(positions, torch.zeros(9), actions), expected)


def test_congested_motion_shortens_moves_by_the_local_density() -> None:
    """An explicit loop over taxis gives the same destinations."""
    grid, alpha = Grid(3), 0.4
    positions, actions, mu = rand(20, 2), 2 * rand(20, 2, seed=1) - 1, rand(9, seed=2)
    mu = mu / mu.sum()
    moved = CongestedMotion(grid, alpha)(positions, mu, actions)
    for n in range(20):
        cell = int(positions[n, 0] * 3) * 3 + int(positions[n, 1] * 3)
        for axis in range(2):
            goal = float(positions[n, axis]) + float(actions[n, axis]) / (1 + alpha * 9 * float(mu[cell]))
            assert float(moved[n, axis]) == pytest.approx(min(max(goal, 0.0), 1.0), abs=1e-12)


def test_congestion_of_zero_is_free_motion() -> None:
    """alpha = 0 switches congestion off."""
    positions, actions, mu = rand(20, 2), 2 * rand(20, 2, seed=1) - 1, rand(9, seed=2)
    assert torch.equal(CongestedMotion(Grid(3), 0.0)(positions, mu, actions), FreeMotion()(positions, mu, actions))


@pytest.mark.parametrize("cells", [3, 5])
def test_batches_of_distributions_broadcast_against_shared_positions(cells: int) -> None:
    """[B, K] distributions over the [K, 2] cell centres, with shared or batched actions, are the loop over the batch."""
    grid = Grid(cells)
    size = cells * cells
    motion = CongestedMotion(grid, 0.3)
    mu, actions, centers = rand(4, size), 2 * rand(4, size, 2, seed=1) - 1, grid.centers(dtype=torch.float64)
    batched, shared = motion(centers, mu, actions), motion(centers, mu, actions[0])
    for b in range(4):
        torch.testing.assert_close(batched[b], motion(centers, mu[b], actions[b]))
        torch.testing.assert_close(shared[b], motion(centers, mu[b], actions[0]))


@pytest.mark.parametrize(
    ("positions", "distributions"),
    [((7,), ()), ((2, 7), ()), ((2, 7), (2,)), ((1, 7), (5,)), ((2, 7), (5, 2)), ((5, 1, 7), (2,))],
)
def test_local_mass_broadcasts_batch_dimensions(positions: tuple[int, ...], distributions: tuple[int, ...]) -> None:
    """Batch dimensions of distributions broadcast against those of positions, as documented."""
    grid = Grid(3)
    s, mu = rand(*positions, 2), rand(*distributions, 9, seed=1)
    result = local_mass(grid, s, mu)
    batch = torch.broadcast_shapes(positions[:-1], distributions)
    assert result.shape == (*batch, 7)
    flat_s, flat_mu = s.expand(*batch, 7, 2).reshape(-1, 7, 2), mu.expand(*batch, 9).reshape(-1, 9)
    for b, row in enumerate(result.reshape(-1, 7)):
        assert torch.equal(row, flat_mu[b][grid.index(flat_s[b])])


def test_congested_motion_passes_gradients_to_action_and_distribution() -> None:
    """Planning through congestion needs both gradients; gradcheck in float64."""
    grid = Grid(2)
    centers = grid.centers(dtype=torch.float64)
    mu, actions = rand(4).requires_grad_(), (0.2 * rand(4, 2, seed=1) - 0.1).requires_grad_()
    motion = CongestedMotion(grid, 0.5)
    assert torch.autograd.gradcheck(lambda m, a: motion(centers, m, a), (mu, actions))


@pytest.mark.parametrize("alpha", [-0.1, math.nan, math.inf])
def test_bad_alpha_raises(alpha: float) -> None:
    """Negative or unbounded congestion is refused by name and value."""
    with pytest.raises(ValueError, match=f"alpha .*got {alpha}"):
        CongestedMotion(Grid(3), alpha)


def test_motions_meet_the_protocol() -> None:
    """All motions are Motions to a type check at run time."""
    assert isinstance(FreeMotion(), Motion)
    assert isinstance(CongestedMotion(Grid(3)), Motion)
    assert isinstance(TorusMotion(7.0, 0.01), Motion)


def test_torus_motion_drifts_and_comes_around() -> None:
    """(s + max_speed a dt) mod 1, axis by axis, past 1 and below 0."""
    positions = torch.tensor([[0.5, 0.95], [0.02, 0.3]], dtype=torch.float64)
    actions = torch.tensor([[1.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[0.57, 0.02], [0.95, 0.3]], dtype=torch.float64)
    torch.testing.assert_close(TorusMotion(7.0, 0.01)(positions, torch.zeros(4), actions), expected)


def test_torus_motion_passes_gradients_across_the_seam() -> None:
    """Planning needs the gradient where a particle comes around; gradcheck in float64."""
    positions = torch.tensor([[0.99], [0.5], [0.01]], dtype=torch.float64, requires_grad=True)
    actions = torch.tensor([[0.5], [0.1], [-0.5]], dtype=torch.float64, requires_grad=True)
    motion = TorusMotion(7.0, 0.01)
    assert torch.autograd.gradcheck(lambda s, a: motion(s, torch.zeros(3), a), (positions, actions))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_bad_speed_and_step_raise(value: float) -> None:
    """Speed and step are positive, and refused by name and value."""
    with pytest.raises(ValueError, match=f"max_speed .*got {value}"):
        TorusMotion(value, 0.01)
    with pytest.raises(ValueError, match=f"dt .*got {value}"):
        TorusMotion(7.0, value)
