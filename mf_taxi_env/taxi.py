"""Taxi repositioning in a city, the world of Safe-M3-UCRL."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Self, get_args

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from mf_taxi_env.grid import Grid
from mf_taxi_env.information import floored_log, kl_divergence
from mf_taxi_env.mdp import ParticleMDP
from mf_taxi_env.motion import CongestedMotion, FreeMotion, Motion
from mf_taxi_env.noise import TruncatedGaussian
from mf_taxi_env.safety import Constraint, EntropyFloor
from mf_taxi_env.scenarios.scenario import Scenario
from mf_taxi_env.sparse import SparseMatrix

RewardTiming = Literal["current", "next"]


class TaxiMDP(ParticleMDP):
    """A fleet of taxis steered by one policy, in the mean-field limit (arXiv 2306.17052, Section 5 and Appendix D).

    One step is a quarter of an hour, or a slice of time where the city's trips were cut into slices. First passengers are
    served: of a cell's taxis ``min(mu, rho)`` are taken and end where the city's trips end. Then the free choice: every taxi
    moves by the action of its cell, and Gaussian noise, truncated to the city, perturbs where it arrives. The reward is
    ``-KL(rho || mu)``: the fleet should stand where the demand is.

    Args:
        scenario: Demand, trips and the default constraint.
        horizon: Steps per episode.
        noise_std: Standard deviation of the noise per axis, in sides of the unit square.
        motion: ``"free"``, ``"congested"`` or a callable, see :class:`mf_taxi_env.motion.Motion`.
        constraints: Safety constraints; default the scenario's entropy floor; ``()`` for none.
        reward_timing: ``"current"`` rewards the distribution acted from, ``"next"`` the one that the action causes.
        device: Device of all tensors.
        dtype: Floating-point type.

    Raises:
        TypeError: If the scenario is none, but a name for instance.
        ValueError: If an argument is out of range.

    Example:
        >>> from mf_taxi_env import load_scenario
        >>> mdp = TaxiMDP(load_scenario("shenzhen", cells=10))
        >>> mu = mdp.initial((3,))
        >>> mdp.transition(mu, torch.zeros(3, 100, 2)).shape
        torch.Size([3, 100])
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        horizon: int = 12,
        noise_std: float = 0.0175,
        motion: Literal["free", "congested"] | Motion = "free",
        constraints: Sequence[Constraint] | None = None,
        reward_timing: RewardTiming = "current",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if reward_timing not in get_args(RewardTiming):
            raise ValueError(f"reward_timing must be one of {get_args(RewardTiming)}, got {reward_timing!r}")
        if not isinstance(scenario, Scenario):
            raise TypeError(f"scenario must be a Scenario, got {scenario!r}: load_scenario(name) gives one")
        grid = Grid(scenario.cells)
        if constraints is None:
            constraints = (EntropyFloor(scenario.entropy_floor),)
        super().__init__(
            grid,
            _named_motion(motion, grid),
            TruncatedGaussian(grid, noise_std),
            horizon=horizon,
            constraints=constraints,
            dtype=dtype,
            device=device,
        )
        if not isinstance(motion, str):
            self._probe_motion()
        self.scenario = scenario
        self.reward_timing: RewardTiming = reward_timing
        #: Trips that stand in the place of the scenario's, see :meth:`with_trips`; None where those are the world's.
        self.own_trips: Tensor | None = None
        # One row per step of the day; a single row where demand and trips do not change.
        self._demand = torch.tensor(scenario.demand, dtype=dtype, device=self.device).reshape(-1, grid.size).unbind()
        self._log_demand = tuple(map(floored_log, self._demand))
        self._trips: tuple[Tensor | SparseMatrix, ...] = tuple(
            torch.tensor(trips, dtype=dtype, device=self.device)
            if isinstance(trips, np.ndarray)
            else SparseMatrix(trips, dtype, self.device)
            for trips in scenario.trip_steps
        )

    def _probe_motion(self) -> None:
        """A motion that leaves the city would turn the fleet into no number many steps later; it is told here."""
        mu = self.initial()
        for action in (-1.0, 0.0, 1.0):
            moved: object = self.motion(self.centers, mu, torch.full_like(self.centers, action))
            shape, kind = (tuple(moved.shape), moved.dtype) if isinstance(moved, Tensor) else ((), type(moved))
            if not isinstance(moved, Tensor) or shape != self.centers.shape or kind != self.dtype:
                raise ValueError(
                    f"motion must return destinations {tuple(self.centers.shape)} of {self.dtype}, got {shape} of {kind}"
                )
            if not bool(((moved >= 0) & (moved <= 1)).all()):
                raise ValueError(
                    f"motion must return destinations in [0, 1]; under actions of {action:g} some are not: clamp them"
                )

    def demand(self, t: int) -> Tensor:
        """Demand ``rho_t``, ``[K]``; the last one known for steps past the scenario's."""
        return self._demand[min(t, len(self._demand) - 1)]

    def with_trips(self, probabilities: Tensor) -> Self:
        """The same city with other trips, the same at all steps; the copy holds no reference to this one's.

        Its scenario keeps demand and map; nobody rides there (trips end where they start), and :attr:`own_trips` holds
        those that the copy has in their place.

        Args:
            probabilities: Row-stochastic, ``[K, K]``, or ``[..., K, K]`` for a batch of cities side by side: the leading
                dimensions broadcast with those of distributions. Differentiable.

        Raises:
            ValueError: If they are of other cells.
        """
        size = self.grid.size
        if probabilities.shape[-2:] != (size, size):
            raise ValueError(f"probabilities must have shape [..., {size}, {size}], got {tuple(probabilities.shape)}")
        world = copy.copy(self)
        world._trips = (probabilities,)
        world.own_trips = probabilities
        if self.own_trips is None:  # else that was done before
            world.scenario = replace(self.scenario, trips=sparse.eye_array(size, format="csr"))
        return world

    def trips(self, t: int) -> Tensor | SparseMatrix:
        """Trip probabilities ``Phi_t``, ``[K, K]``: row = origin, column = destination; sparse where the scenario's are."""
        return self._trips[min(t, len(self._trips) - 1)]

    @property
    def changes(self) -> bool:
        """Whether demand or trips differ from step to step of an episode."""
        return self.horizon > 1 and max(len(self._demand), len(self._trips)) > 1

    def target(self, t: int = 0) -> Tensor:
        """The demand ``rho_t``, ``[K]``."""
        return self.demand(t)

    def target_kl(self, mu: Tensor, t: int = 0, log_mu: Tensor | None = None) -> Tensor:
        target, row = self.target(t), min(t, len(self._demand) - 1)
        known = self._log_demand[row] if target is self._demand[row] else None  # a subclass may want something else
        return kl_divergence(target, mu, log_mu, known)

    def shift(self, mu: Tensor, t: int = 0) -> Tensor:
        """Passenger trips: ``min(mu, rho) Phi + (mu - min(mu, rho))``, ``[..., K]``."""
        # mu - idle = min(mu, rho) is mu * min(1, rho / mu) without the quotient, whose gradient is NaN at an empty cell.
        idle = (mu - self.demand(t)).relu_()
        served, trips = mu - idle, self.trips(t)
        if isinstance(trips, Tensor) and trips.dim() > 2:  # cities side by side
            return (served.unsqueeze(-2) @ trips).squeeze(-2) + idle
        shifted: Tensor = served @ trips
        return shifted.add_(idle)

    def reward(self, mu: Tensor, actions: Tensor, next_mu: Tensor, t: int = 0) -> Tensor:
        """``-KL(rho || mu)`` in nats, ``[...]``, at most zero."""
        return -self.target_kl(mu if self.reward_timing == "current" else next_mu, t)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.scenario.name!r}, cells={self.grid.cells}, horizon={self.horizon}, "
            f"motion={self.motion}, constraints={self.constraints}, device={str(self.device)!r})"
        )


def _named_motion(motion: str | Motion, grid: Grid) -> Motion:
    if not isinstance(motion, str):
        if not callable(motion):
            raise ValueError(f"motion must be 'free', 'congested' or a callable, got {motion!r}")
        if getattr(motion, "grid", grid) != grid:
            raise ValueError(f"motion is made for {motion.grid}, but the world has {grid}")  # type: ignore[attr-defined]
        return motion
    named: dict[str, Motion] = {"free": FreeMotion(), "congested": CongestedMotion(grid)}
    if motion not in named:
        raise ValueError(f"motion must be 'free', 'congested' or a callable, got {motion!r}")
    return named[motion]
