"""Which action takes a taxi where it is wanted: the inverse of a motion, and of what noise and cells make of where it heads."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mf_taxi_env.mdp import ParticleMDP
from mf_taxi_env.motion import Motion
from mf_taxi_env.noise import Noise
from mf_taxi_env.space import CUBE, Space

#: Newton steps at most; where a motion is smooth, three settle it to rounding.
NEWTON_STEPS = 8
#: Shares of a Newton step that are tried: motions have kinks, for edges stop vehicles.
SHARES = (1.0, 0.5, 0.2, 0.05)
#: First action, as a share of the way to the middle of the space.
INWARDS = 0.1
#: Step of the difference quotients, in units of an action.
NUDGE = 0.01
#: Largest miss, in sides of the space, that is as good as none.
CLOSE = 1e-5
#: Damping of Newton steps in squared units of a motion's slope, which is about one: no step where no action moves a vehicle.
DAMPING = 1e-6
#: Points of the table of landings per cell, and per standard deviation of the noise.
POINTS_PER_CELL, POINTS_PER_STD = 16, 8


def actions_to(motion: Motion, positions: Tensor, mu: Tensor, destinations: Tensor, space: Space = CUBE) -> Tensor:
    """The actions that take taxis as near as possible to where they are wanted.

    Where actions lead as in free motion, that is all. Else a damped Newton method per taxi (Levenberg 1944; Marquardt 1963), on
    difference quotients of the motion and with a line search, from a short move inwards on: nobody is stopped by an edge there.
    Of all actions tried, each taxi gets the one that led it nearest.

    Args:
        motion: Any motion, true or believed; a taxi's destination depends on its own action alone.
        positions: ``[n, d]`` or ``[..., n, d]``.
        mu: Distribution after trips, ``[..., K]``.
        destinations: ``[..., n, d]``.
        space: What positions are points of.

    Returns:
        ``[..., n, d]`` in ``[-1, 1]``.
    """

    def missing(actions: Tensor) -> Tensor:
        return space.displacement(motion(positions, mu, actions), destinations)

    guess = space.displacement(positions, destinations).clamp(-1.0, 1.0)
    guessed = _length(missing(guess))
    if bool(guessed.max() <= CLOSE):
        return guess
    actions = (INWARDS * space.displacement(positions, torch.full_like(positions, 0.5))).expand_as(guess).contiguous()
    miss = missing(actions)
    shares = actions.new_tensor(SHARES).view(-1, *[1] * actions.dim())
    for _ in range(NEWTON_STEPS):
        step = _newton_step(missing, actions, miss)
        tried = torch.cat([actions.unsqueeze(0), (actions + shares * step).clamp(-1.0, 1.0)])
        missed = torch.cat([miss.unsqueeze(0), missing(tried[1:])])
        nearest = _length(missed).argmin(0, keepdim=True).expand(1, *actions.shape)
        actions, miss = tried.gather(0, nearest).squeeze(0), missed.gather(0, nearest).squeeze(0)
        if bool(_length(miss).max() <= CLOSE):
            break
    return torch.where(guessed <= _length(miss), guess, actions)


def _length(way: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(way, dim=-1, keepdim=True)
    return length


def _newton_step(missing: Callable[[Tensor], Tensor], actions: Tensor, miss: Tensor) -> Tensor:
    """By what actions ``[..., n, d]`` would have to change to undo the miss, were the motion linear; quotients stay allowed."""
    columns = []
    for axis in range(actions.shape[-1]):
        nudge = torch.zeros_like(actions)
        nudge[..., axis] = torch.where(actions[..., axis] > 0, -NUDGE, NUDGE)
        columns.append((miss - missing(actions + nudge)) / nudge[..., axis, None])
    slopes = torch.stack(columns, -1)
    normal = slopes.mT @ slopes + DAMPING * torch.eye(slopes.shape[-1], dtype=slopes.dtype, device=slopes.device)
    step: Tensor = torch.linalg.solve(normal, slopes.mT @ miss.unsqueeze(-1)).squeeze(-1)
    return step


class LandingInverse:
    """Where a taxi has to head so that the cell in which it lands is, on average, where it is wanted.

    A taxi that heads a quarter of a cell away from its centre lands in the same cell again if the noise is small against cells:
    a policy that asks for small moves would move nobody. The mean centre of the cell in which a taxi lands grows with its
    destination, axis by axis, and can be inverted. To be wanted a quarter of a cell away then means that a quarter of the
    taxis change their cell.

    Args:
        noise: What perturbs taxis, on the grid where they land.
    """

    def __init__(self, noise: Noise) -> None:
        cells = noise.grid.cells
        points = 1 + max(POINTS_PER_CELL * cells, math.ceil(POINTS_PER_STD / noise.std))
        self._destinations = torch.linspace(0.0, 1.0, points, dtype=torch.float64)
        probabilities = noise.cell_probabilities(self._destinations.unsqueeze(-1)).squeeze(-2)
        centers = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
        # Where the means hardly grow, rounding may let them fall by a bit.
        self._means = (probabilities @ centers).cummax(0).values

    def __call__(self, places: Tensor) -> Tensor:
        """Destinations in ``[0, 1]`` of taxis that are wanted at ``places`` on average, both ``[..., d]``.

        Nobody lands beyond the centres of the outermost cells; who is wanted there heads for the edge.
        """
        means, destinations = self._means.to(places.device), self._destinations.to(places.device)
        wanted = places.double().contiguous()
        above = torch.searchsorted(means, wanted).clamp(1, len(means) - 1)
        low, high = means[above - 1], means[above]
        share = ((wanted - low) / (high - low).clamp_min(torch.finfo(low.dtype).tiny)).clamp(0.0, 1.0)
        return torch.lerp(destinations[above - 1], destinations[above], share).to(places)


class Steering:
    """Actions that shift the taxis of each cell, on average, by as much as is wanted.

    Args:
        world: It gives the cells and the noise; its motion is not looked at.
        motion: What is known, or believed, of where actions lead.
    """

    def __init__(self, world: ParticleMDP, motion: Motion) -> None:
        self.motion = motion
        self._centers = world.centers
        self._space = world.space
        self._heading = LandingInverse(world.noise)

    def __call__(self, mu: Tensor, shifts: Tensor) -> Tensor:
        """Actions at the cell centres, ``[..., K, d]``.

        Args:
            mu: Distributions after trips, ``[..., K]``.
            shifts: Wanted mean displacements of the taxis of each cell, ``[..., K, d]``, in sides of the space.
        """
        destinations = self._heading(self._centers + shifts)
        return actions_to(self.motion, self._centers, mu, destinations, self._space)
