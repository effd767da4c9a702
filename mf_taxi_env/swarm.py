"""Swarm motion on a ring, the world of M3-UCRL, whose ergodic solution is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mf_taxi_env.grid import Grid
from mf_taxi_env.information import entropy
from mf_taxi_env.mdp import ParticleMDP
from mf_taxi_env.motion import TorusMotion
from mf_taxi_env.safety import Constraint, DistanceCap, KeepAway
from mf_taxi_env.space import TORUS
from mf_taxi_env.wrapped_noise import WrappedGaussian


class SwarmMDP(ParticleMDP):
    """A swarm on a ring that seeks good places and avoids crowds: the benchmark of M3-UCRL (arXiv 2107.04050).

    As there, a particle at ``x`` in ``[0, 1)`` that drifts at speed ``v`` is at ``x + v dt + N(0, dt)`` (modulo 1) one step
    later, and earns for that step

        ``r(x, v, mu) = 2 pi^2 (sin 2 pi x - cos^2 2 pi x) + 2 sin 2 pi x - v^2 / 2 - log mu(x)``.

    Here ``v = max_speed * a``, so that actions ``a`` lie in ``[-1, 1]`` as in every world, and the reward is the mean of ``r``
    over the distribution ``mu`` that acts. Particles stand at the centre of their cell and ``mu(x)`` is its mass; with a
    density in its place every reward would be ``log K`` less. Rewards are rates: they are not multiplied by ``dt``. The swarm
    starts uniform.

    In continuous time the best stationary policy is ``v = 2 pi cos 2 pi x``. It keeps the swarm at the density
    ``exp(2 sin 2 pi x) / I_0(2)`` and earns ``log I_0(2) = 0.8240`` per unit of time, with a density in the logarithm. Steps of
    finite length earn less.

    Args:
        cells: Cells of the ring.
        horizon: Steps per episode.
        dt: Length of a step, and the variance of its noise; positive.
        max_speed: Speed of the action 1, in circumferences per unit of time; positive. The ergodic solution needs ``2 pi``.
        constraints: Safety constraints for cells of a ring: those that have a ``dimension`` with 1 (their default is a square),
            and in Wasserstein-1 with ``periodic=True``; empty for none.
        density_term: Whether ``-log mu(x)`` is part of the reward. By default it is unless there are constraints, which then
            keep the swarm apart (arXiv 2306.17052).
        device: Device of all tensors.
        dtype: Floating-point type.

    Raises:
        ValueError: If an argument is out of range, or a constraint is for cells of a square or an interval.

    Example:
        >>> mdp = SwarmMDP()
        >>> mu, actions = mdp.initial(), mdp.optimal_actions()
        >>> mdp.transition(mu, actions).shape
        torch.Size([100])
        >>> mdp.reward(mu, actions, mdp.transition(mu, actions)).item()  # -2 pi^2 + log 100
        -15.13...
    """

    space = TORUS

    def __init__(
        self,
        *,
        cells: int = 100,
        horizon: int = 100,
        dt: float = 0.01,
        max_speed: float = 7.0,
        constraints: Sequence[Constraint] = (),
        density_term: bool | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if density_term is not None and not isinstance(density_term, bool):
            raise ValueError(f"density_term must be True, False or None, got {density_term!r}")
        grid = Grid(cells, dimension=1)
        motion = TorusMotion(max_speed, dt)
        noise = WrappedGaussian(grid, math.sqrt(dt))
        super().__init__(grid, motion, noise, horizon=horizon, constraints=constraints, dtype=dtype, device=device)
        for constraint in self.constraints:
            _check_ring(constraint)
        self.dt, self.max_speed = motion.dt, motion.max_speed
        self.reach = self.max_speed * self.dt
        self.density_term = not self.constraints if density_term is None else density_term
        angle = 2.0 * math.pi * self.centers[:, 0]
        self._attraction = 2.0 * math.pi**2 * (angle.sin() - angle.cos().square()) + 2.0 * angle.sin()
        self._ergodic = (2.0 * angle.sin()).softmax(-1)
        self._optimal_actions = (2.0 * math.pi / self.max_speed * angle.cos()).clamp(-1.0, 1.0).unsqueeze(-1)

    def reward(self, mu: Tensor, actions: Tensor, next_mu: Tensor, t: int = 0) -> Tensor:
        """Mean of ``r`` over the swarm that acts, ``[...]``; ``next_mu`` does not enter."""
        earned = self._attraction - 0.5 * (self.max_speed * actions[..., 0]).square()
        mean = (mu * earned).sum(-1)
        return mean + entropy(mu) if self.density_term else mean

    def optimal_actions(self) -> Tensor:
        """The ergodic solution's actions ``2 pi cos(2 pi x) / max_speed``, clipped to ``[-1, 1]``; ``[K, 1]``."""
        return self._optimal_actions

    def ergodic(self) -> Tensor:
        """The ergodic solution's distribution, proportional to ``exp(2 sin 2 pi x)`` at the cell centres; ``[K]``."""
        return self._ergodic

    def target(self, t: int = 0) -> Tensor:
        """The ergodic distribution, ``[K]``, at every step."""
        return self._ergodic

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(cells={self.grid.cells}, horizon={self.horizon}, dt={self.dt}, max_speed={self.max_speed}, "
            f"constraints={self.constraints}, density_term={self.density_term}, device={str(self.device)!r})"
        )


def _check_ring(constraint: Constraint) -> None:
    """ValueError where a constraint measures distances as if the ring were an interval."""
    if isinstance(constraint, DistanceCap | KeepAway) and constraint.distance == "w1" and not constraint.periodic:
        raise ValueError(f"constraints in 'w1' must be for a ring: construct them with periodic=True, got {constraint!r}")
