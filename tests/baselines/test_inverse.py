"""The inverse of motion and noise: taxis arrive where they are wanted, whatever the motion."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from baselines.inverse import LandingInverse, Steering, actions_to
from mf_taxi_env import CongestedMotion, FreeMotion, Grid, Motion, TaxiMDP, load_scenario
from mf_taxi_env.motion import local_mass
from mf_taxi_env.noise import TruncatedGaussian
from safe_m3_agent.hallucination import UnknownMotion

GRID = Grid(5)


@dataclass
class Bent:
    """Actions lead astray: turned, skewed, weaker where the fleet is dense, and not linear."""

    calls: int = 0

    def __call__(self, positions: Tensor, mu: Tensor, actions: Tensor) -> Tensor:
        self.calls += 1
        x, y = actions.unbind(-1)
        density = GRID.size * local_mass(GRID, positions, mu)
        turned = torch.stack([0.9 * x - 0.3 * y + 0.1 * y * y, 0.3 * x + 0.7 * y], -1)
        return (positions + turned / (1.0 + 0.2 * density.unsqueeze(-1)) + 0.01).clamp(0.0, 1.0)


def fleets(*batch: int) -> Tensor:
    """Random distributions, dense in places."""
    mass = torch.rand(*batch, GRID.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).pow(4) + 1e-6
    return mass / mass.sum(-1, keepdim=True)


@pytest.mark.parametrize("motion", [FreeMotion(), CongestedMotion(GRID, 0.5), Bent()], ids=["free", "congested", "bent"])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_taxis_arrive_where_they_are_wanted(motion: Motion, batch: tuple[int, ...]) -> None:
    """To a thousandth of a cell, in batches of distributions, for whatever is in reach."""
    generator = torch.Generator().manual_seed(1)
    mu, positions = fleets(*batch), torch.rand(40, 2, generator=generator, dtype=torch.float64)
    way = 0.2 * (2 * torch.rand(*batch, 40, 2, generator=generator, dtype=torch.float64) - 1)
    wanted = (positions + way).clamp(0.0, 1.0)
    actions = actions_to(motion, positions, mu, wanted)
    assert actions.shape == wanted.shape and bool((actions.abs() <= 1).all())
    torch.testing.assert_close(motion(positions, mu, actions), wanted, atol=2e-4, rtol=0)


def test_free_motion_needs_a_single_look() -> None:
    """Where the guess is right there is nothing to search for."""
    calls = []

    def counted(positions: Tensor, mu: Tensor, actions: Tensor) -> Tensor:
        calls.append(1)
        return FreeMotion()(positions, mu, actions)

    wanted = torch.tensor([[0.0, 1.0], [0.5, 0.25]])
    actions = actions_to(counted, torch.full((2, 2), 0.5), torch.full((25,), 0.04), wanted)
    torch.testing.assert_close(actions, wanted - 0.5)
    assert len(calls) == 1


def test_what_is_out_of_reach_is_approached() -> None:
    """No nearer point was tried in vain, actions stay allowed, and a motion that moves nobody gives finite ones."""
    motion, mu = CongestedMotion(GRID, 5.0), torch.full((25,), 0.04)
    positions, wanted = torch.full((1, 2), 0.05), torch.tensor([[0.95, 0.5]])
    actions = actions_to(motion, positions, mu, wanted)
    torch.testing.assert_close(actions[:, :1], torch.ones(1, 1))
    torch.testing.assert_close(motion(positions, mu, actions)[:, 1], torch.tensor([0.05 + 1 / 6]))

    def still(positions: Tensor, mu: Tensor, actions: Tensor) -> Tensor:
        return positions.expand_as(actions)

    assert bool((actions_to(still, positions, mu, wanted).abs() <= 1).all())


def test_nobody_ends_up_further_away_than_by_the_guess() -> None:
    """A motion that jumps has no slopes to follow; the search may fail, and then the guess of free motion stands."""

    def jumping(positions: Tensor, mu: Tensor, actions: Tensor) -> Tensor:
        return (positions + (actions * 5).round() / 5 + 0.03).clamp(0.0, 1.0)

    generator = torch.Generator().manual_seed(2)
    positions, wanted = torch.rand(50, 2, generator=generator), torch.rand(50, 2, generator=generator)
    mu, guess = torch.full((25,), 0.04), wanted - positions
    missed, guessed = (
        (jumping(positions, mu, actions) - wanted).norm(dim=-1)
        for actions in (actions_to(jumping, positions, mu, wanted), guess)
    )
    assert bool((missed <= guessed).all())


@pytest.mark.parametrize("cells", [1, 5, 25])
@pytest.mark.parametrize("std", [0.002, 0.0175, 0.3])
def test_taxis_land_on_average_where_they_are_wanted(cells: int, std: float) -> None:
    """The mean centre of the cell of landing is the place asked for: the noise's dead zone on coarse grids is undone."""
    noise = TruncatedGaussian(Grid(cells), std)
    heading = LandingInverse(noise)
    centers = Grid(cells).centers(dtype=torch.float64)[:cells, -1]
    ends = noise.cell_probabilities(torch.tensor([[0.0], [1.0]], dtype=torch.float64))[:, 0] @ centers
    wanted = torch.linspace(0.0, 1.0, 201, dtype=torch.float64).unsqueeze(-1)
    headed = heading(wanted)
    assert bool(((headed >= 0) & (headed <= 1)).all()) and bool((headed.diff(dim=0) >= 0).all())
    landed = noise.cell_probabilities(headed)[:, 0] @ centers
    torch.testing.assert_close(landed, wanted[:, 0].clamp(*ends.tolist()), atol=0.02 / cells, rtol=0)


def test_a_quarter_of_the_taxis_change_their_cell() -> None:
    """Wanted a quarter of a cell to the east, on a grid so coarse that heading there would move next to nobody."""
    world = TaxiMDP(load_scenario("shenzhen", cells=5), motion=CongestedMotion(GRID, 0.3))
    mu = torch.zeros(25)
    mu[12] = 1.0
    shifts = torch.zeros(25, 2)
    shifts[12, 0] = 0.25 / 5
    plain = world.move(mu, shifts).mu
    assert float(plain[17]) < 0.01
    steered = world.move(mu, Steering(world, world.motion)(mu, shifts)).mu
    torch.testing.assert_close(steered[[12, 17]], torch.tensor([0.75, 0.25]), atol=1e-3, rtol=0)


def test_steering_does_not_look_at_the_motion_of_the_world() -> None:
    """It believes what it is told: a world whose motion nobody may ask serves as well."""
    world = TaxiMDP(load_scenario("shenzhen", cells=5))
    shifts, mu = 0.1 * torch.ones(25, 2), world.initial()
    told = Steering(world.with_motion(UnknownMotion()), FreeMotion())(mu, shifts)
    torch.testing.assert_close(told, Steering(world, FreeMotion())(mu, shifts), rtol=0, atol=0)
