"""Heuristic policies, called as every policy: ``policy(positions, mu, t)`` by a fleet, ``field(mu, t)`` by the mean field."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from baselines.aiming import EMPTY, AimedPolicy, one_way
from baselines.cellwise import CellPolicy
from mf_taxi_env import MeanFieldMDP, Motion, TaxiMDP
from mf_taxi_env.checks import finite_number, whole_number
from mf_taxi_env.parameterization import Parameterization, make_parameterization


class Stay(CellPolicy):
    """Nobody moves: the score's zero, and the policy that safe learning starts from.

    Args:
        mdp: The world; it gives the shape of a field.

    Example:
        >>> from mf_taxi_env import FleetSimulator, TaxiMDP, load_scenario
        >>> mdp = TaxiMDP(load_scenario("shenzhen", cells=5))
        >>> FleetSimulator(mdp, 1000).rollout(Stay(mdp)).distributions.shape
        torch.Size([13, 25])
    """

    def field(self, mu: Tensor, t: int) -> Tensor:
        """Zero actions at the cell centres, ``[..., K, d]``, for ``mu`` ``[..., K]``."""
        return mu.new_zeros(*mu.shape, self.mdp.action_dim)

    def __call__(self, positions: Tensor, mu: Tensor, t: int) -> Tensor:
        """Zero actions ``[m, d]`` at ``positions`` ``[m, d]``."""
        return torch.zeros_like(positions)


class RandomField(CellPolicy):
    """What an agent does that draws its action from the env's action space, anew at every step of the episode.

    The parameters of step ``t`` are uniform in ``[-1, 1]^n`` and depend on the seed and ``t`` alone, neither on the
    distribution nor on what was asked before: the same seed plays the same episode again. It aims at nothing and may violate.

    Args:
        mdp: The world.
        seed: Seed, at least 0.
        parameterization: What the parameters mean, see :func:`~mf_taxi_env.parameterization.make_parameterization`; by default
            every cell has an action of its own.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from mf_taxi_env import TaxiMDP, load_scenario
        >>> mdp = TaxiMDP(load_scenario("shenzhen", cells=5))
        >>> field = RandomField(mdp, seed=7).field(mdp.initial(), 0)
        >>> field.shape, bool((field == RandomField(mdp, seed=7).field(mdp.initial(), 0)).all())
        (torch.Size([25, 2]), True)
    """

    def __init__(self, mdp: MeanFieldMDP, seed: int = 0, *, parameterization: str | Parameterization = "cells") -> None:
        super().__init__(mdp)
        self.seed = whole_number("seed", seed, least=0)
        self.parameterization = make_parameterization(parameterization, mdp.grid, mdp.action_dim)

    def field(self, mu: Tensor, t: int) -> Tensor:
        drawn = np.random.default_rng((self.seed, t)).uniform(-1.0, 1.0, self.parameterization.n_parameters)
        actions = self.parameterization.field(torch.from_numpy(drawn).to(mu))
        return actions.expand(*mu.shape[:-1], *actions.shape)


class Proportional(AimedPolicy):
    """Density feedback: taxis flow down the gradient of the surplus, in proportion to it.

    With the surplus ``phi = mu - mu*`` of the fleet, the velocity ``v = -grad phi / mu`` moves the mass
    ``mu v = -grad phi``, so that the surplus obeys the heat equation and fades: the control law of Eren and Acikmese, *Velocity
    Field Generation for Density Control of Swarms using Heat Equation and Smoothing Kernels* (IFAC 2017), and of Zheng, Han
    and Lin, *Transporting Robotic Swarms via Mean-Field Feedback Control* (arXiv 2006.11462).

    A step is no instant, so the flow of a time ``gain`` is taken at once. With the Laplacian ``L`` of the grid, no flow across
    the city's edge, and the potential ``psi = (1 - exp(gain L)) (-L)^-1 phi``, the mass that crosses from a cell to its
    neighbour is ``psi``'s difference between the two, and what would be left of the surplus is ``exp(gain L) phi``. Cosines
    diagonalise ``L``: small matrix products, batched. Of the flows across a cell's sides its taxis make
    :func:`~baselines.aiming.one_way`.

    It aims at the certified bound's optimum, and may violate: see :class:`~baselines.aiming.AimedPolicy`.

    Args:
        mdp: The city; its motion is not looked at.
        motion: Where actions lead, as far as the policy knows. Default free motion, which is a guess.
        gain: Time for which the surplus diffuses in a step, in squared sides of the city; positive. Of a surplus as long
            as the city, ``exp(-pi^2 gain)`` is left.
        barrier: Weight of the log-barrier of the target, at least 0.

    Raises:
        ImportError: If CVXPY is not installed (extra ``bounds``).
        TypeError: If the world is no city, or a constraint has no certified bound.
        ValueError: If an argument is out of range.
    """

    def __init__(self, mdp: TaxiMDP, motion: Motion | None = None, *, gain: float = 0.1, barrier: float = 0.0) -> None:
        finite_number("gain", gain, positive=True)
        super().__init__(mdp, motion, barrier=barrier)
        self.gain = gain
        k = mdp.grid.cells
        frequency = torch.arange(k, dtype=torch.float64, device=mdp.device)
        waves = torch.cos(math.pi / k * frequency.unsqueeze(-1) * (frequency + 0.5))
        self._waves = waves / torch.linalg.vector_norm(waves, dim=-1, keepdim=True)  # [k, k], orthonormal rows
        decay = 2.0 * k**2 * (1.0 - torch.cos(math.pi / k * frequency))
        rate = decay.unsqueeze(-1) + decay
        rate[0, 0] = 1.0  # the total mass, which has no surplus
        self._spread = -torch.expm1(-gain * rate) / rate

    def shifts(self, mu: Tensor, t: int) -> Tensor:
        k = self.mdp.grid.cells
        waves, surplus = self._waves, self.surplus(mu, t).unflatten(-1, (k, k))
        potential = waves.mT @ (waves @ surplus @ waves.mT * self._spread) @ waves
        mass = mu.clamp_min(EMPTY / mu.shape[-1]).unflatten(-1, (k, k))
        along = _across(potential * k**2)
        shifts = [along, _across(potential.mT * k**2).mT]
        return torch.stack([shift / (k * mass) for shift in shifts], -1).flatten(-3, -2)


def _across(potential: Tensor) -> Tensor:
    """Mass that leaves cells along the first axis of ``[..., k, k]``, signed, of flows down a potential's differences."""
    forward = -potential.diff(dim=-2)  # across the side between cells i and i + 1
    edge = torch.zeros_like(potential[..., :1, :])
    ahead = torch.cat([forward, edge], -2).clamp_min(0.0)
    behind = -torch.cat([edge, forward], -2).clamp_max(0.0)
    return one_way(ahead, behind)
