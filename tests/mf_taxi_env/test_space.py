"""Cube and torus: what differs between a city and a ring, in one place."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mf_taxi_env import CongestedMotion, FreeMotion, Grid, SwarmMDP, TaxiMDP, TorusMotion, load_scenario
from mf_taxi_env.noise import TruncatedGaussian
from mf_taxi_env.space import CUBE, TORUS, Space
from mf_taxi_env.wrapped_noise import WrappedGaussian

DTYPE = torch.float64
points = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8).map(lambda values: torch.tensor(values, dtype=DTYPE))


def turns_apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Distance from a whole number of turns."""
    return ((a - b) - (a - b).round()).abs()


@given(points, st.floats(-3.0, 3.0))
def test_admissible_points_lie_in_the_space(start: torch.Tensor, way: float) -> None:
    """Wherever someone heads, they end in the space: at the edge of the cube, a whole number of turns away on the torus."""
    for space in (CUBE, TORUS):
        reached = space.admissible(start + way)
        assert bool(((reached >= 0) & (reached <= 1)).all())
    assert float(turns_apart(TORUS.admissible(start + way), start + way).max()) < 1e-12
    assert torch.equal(CUBE.admissible(start + way), (start + way).clamp(0, 1))


@pytest.mark.parametrize("space", [CUBE, TORUS])
@given(start=points, end=st.floats(0.0, 1.0))
def test_displacements_lead_there(space: Space, start: torch.Tensor, end: float) -> None:
    """Start plus displacement is the end, and the way back is as long."""
    goal = torch.full_like(start, end)
    way = space.displacement(start, goal)
    assert float(turns_apart(start + way, goal).max()) < 1e-12
    torch.testing.assert_close(space.displacement(goal, start).abs(), way.abs())


@given(start=points, end=st.floats(0.0, 1.0), turns=st.integers(-2, 2))
def test_the_shorter_way_round(start: torch.Tensor, end: float, turns: int) -> None:
    """On the torus no way is longer than half a turn, and whole turns do not matter; in the cube there is one way."""
    goal = torch.full_like(start, end)
    way = TORUS.displacement(start, goal)
    assert float(way.abs().max()) <= 0.5
    torch.testing.assert_close(TORUS.displacement(start + turns, goal).abs(), way.abs(), atol=1e-12, rtol=0)
    assert torch.equal(CUBE.displacement(start, goal), goal - start)


def test_coordinates_have_no_seam() -> None:
    """Points that are near each other on the torus have near coordinates, across 0 too; in the cube a point is its own."""
    x = torch.linspace(0, 1, 101, dtype=DTYPE).unsqueeze(-1)
    seen = TORUS.coordinates(x)
    assert seen.shape == (101, 2) and TORUS.coordinates(torch.rand(3, 5, 2)).shape == (3, 5, 4)
    torch.testing.assert_close(seen[0], seen[-1])
    torch.testing.assert_close(
        (seen[1:] - seen[:-1]).norm(dim=-1), torch.full((100,), 2 * math.sin(math.pi / 100), dtype=DTYPE)
    )
    assert torch.equal(CUBE.coordinates(x), x)


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_motions_and_noise_agree_with_their_space(seed: int) -> None:
    """What a motion or a noise gives is admissible as it is, in the space that it is made for."""
    generator = torch.Generator().manual_seed(seed)
    for space, d, motion in (
        (CUBE, 2, FreeMotion()), (CUBE, 2, CongestedMotion(Grid(4), 0.1)), (TORUS, 1, TorusMotion(7.0, 0.2)),
    ):  # fmt: skip
        grid = Grid(4, d)
        noise = WrappedGaussian(grid, 0.3) if space.periodic else TruncatedGaussian(grid, 0.3)
        positions, actions = torch.rand(9, d, generator=generator), 2 * torch.rand(9, d, generator=generator) - 1
        goals = motion(positions, torch.full((grid.size,), 1 / grid.size), actions)
        landings = noise.sample(goals, generator)
        for reached in (goals, landings):
            assert float(turns_apart(space.admissible(reached), reached).max()) < 1e-6
    assert isinstance(noise, WrappedGaussian)


def test_worlds_state_their_space_and_scale() -> None:
    """A city is a square whose sides an action crosses; the swarm a ring of which a step crosses a part."""
    city, swarm = TaxiMDP(load_scenario("shenzhen", cells=5)), SwarmMDP(cells=10, max_speed=5.0, dt=0.02)
    assert (city.space, city.periodic, city.reach) == (CUBE, False, 1.0)
    assert (swarm.space, swarm.periodic) == (TORUS, True) and swarm.reach == pytest.approx(0.1)
    farthest = swarm.space.displacement(swarm.centers, swarm.motion(swarm.centers, swarm.initial(), torch.ones(10, 1)))
    torch.testing.assert_close(farthest, torch.full((10, 1), swarm.reach))
