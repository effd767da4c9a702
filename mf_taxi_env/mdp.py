"""The lifted mean-field MDP: a pure, batched, differentiable object. Every world, true or learned, is one."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from mf_taxi_env.checks import used_device, whole_number
from mf_taxi_env.grid import Grid
from mf_taxi_env.information import kl_divergence
from mf_taxi_env.motion import Motion
from mf_taxi_env.noise import Noise
from mf_taxi_env.safety import Constraint, EntropyFloor
from mf_taxi_env.space import CUBE, Space


class Field(Protocol):
    """A policy seen from the lifted MDP: the actions at all cell centres."""

    def field(self, mu: Tensor, t: int) -> Tensor:
        """Actions at the cell centres, ``[..., K, action_dim]``, for ``mu`` ``[..., K]`` after trips at step ``t``."""
        ...


class Move(NamedTuple):
    """What repositioning does to a distribution."""

    mu: Tensor  #: next distribution [..., K]
    uncertainty: Tensor  #: mean epistemic standard deviation of the fleet's move [...]; zero where the motion is known


class Trajectory(NamedTuple):
    """One episode of the lifted MDP, or a batch of them."""

    mu: Tensor  #: [..., T + 1, K], the initial distribution first
    rewards: Tensor  #: [..., T]
    margins: Tensor  #: [..., T, n_constraints], of the T distributions that the policy causes
    uncertainty: Tensor  #: [..., T], see :class:`Move`

    @property
    def returns(self) -> Tensor:
        """Sum of rewards ``[...]``."""
        return self.rewards.sum(-1)

    @property
    def worst_margin(self) -> Tensor:
        """Smallest margin over steps and constraints ``[...]``; infinite without constraints."""
        return worst(self.margins.flatten(-2))

    @property
    def violations(self) -> Tensor:
        """Number of steps ``[...]`` at which some constraint is violated."""
        return broken(self.margins).sum(-1)


def worst(margins: Tensor) -> Tensor:
    """Smallest of the margins ``[..., n]``, ``[...]``; infinite where there are none."""
    return margins.amin(-1) if margins.shape[-1] else margins.new_full(margins.shape[:-1], torch.inf)


def broken(margins: Tensor) -> Tensor:
    """Whether some constraint is violated, ``[...]``, by its margin ``[..., n]``; one that is no number is not kept."""
    return (~(margins >= 0)).any(-1)


class MeanFieldMDP(ABC):
    """What every lifted mean-field MDP offers: initial, transition, reward, margins.

    The state is a distribution over the grid's cells; the action is a field, one action per cell centre. All operators take
    leading batch dimensions, are differentiable, and hold no state of their own.

    One step is :meth:`shift` (what happens to the fleet by itself, such as passenger trips) and then :meth:`move`
    (what the policy makes of it); :meth:`transition` is the two together.

    Args:
        grid: Cells of the state space.
        horizon: Steps per episode, at least 1.
        action_dim: Dimension of the action at one cell.
        constraints: Safety constraints; empty for none.
        dtype: ``torch.float32`` or ``torch.float64``, of all tensors.
        device: Device of all tensors.
    """

    #: What particles move in: where they may be, and how far apart.
    space: Space = CUBE

    def __init__(
        self,
        grid: Grid,
        *,
        horizon: int,
        action_dim: int,
        constraints: Sequence[Constraint] = (),
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        self.grid = grid
        self.horizon = whole_number("horizon", horizon, least=1)
        self.action_dim = action_dim
        self.constraints = checked_constraints(constraints)
        for constraint in self.constraints:
            made_for = getattr(constraint, "dimension", grid.dimension)
            if made_for != grid.dimension:
                raise ValueError(
                    f"constraints must be for this world: construct them with dimension={grid.dimension}, got {constraint!r}"
                )
        self.dtype = dtype
        self.device = used_device(device)

    @property
    def periodic(self) -> bool:
        """Whether the space has no edges: a ring."""
        return self.space.periodic

    @abstractmethod
    def initial(self, batch: Sequence[int] = ()) -> Tensor:
        """Initial distributions ``[*batch, K]``."""

    @abstractmethod
    def reward(self, mu: Tensor, actions: Tensor, next_mu: Tensor, t: int = 0) -> Tensor:
        """Reward ``[...]`` of going from ``mu`` to ``next_mu`` (both ``[..., K]``) under ``actions`` at step ``t``."""

    @abstractmethod
    def move(self, mu: Tensor, actions: Tensor, t: int = 0) -> Move:
        """Reposition the fleet and perturb it.

        Args:
            mu: Distribution after :meth:`~MeanFieldMDP.shift`, ``[..., K]``.
            actions: Actions at the cell centres, ``[..., K, action_dim]``.
            t: Step of the episode.
        """

    def shift(self, mu: Tensor, t: int = 0) -> Tensor:
        """What happens to ``mu`` ``[..., K]`` before the policy acts at step ``t``: nothing, unless a world says otherwise."""
        return mu

    def target(self, t: int = 0) -> Tensor | None:
        """The distribution that the world wants the fleet to have at step ``t``, ``[K]``; None where it names none."""
        return None

    def target_kl(self, mu: Tensor, t: int = 0, log_mu: Tensor | None = None) -> Tensor:
        """``KL(target || mu)`` in nats, ``[...]``; NaN where the world names no target.

        Args:
            mu: Distributions ``[..., K]``.
            t: Step of the episode.
            log_mu: Their :func:`~mf_taxi_env.information.floored_log`, where it is at hand.
        """
        target = self.target(t)
        if target is None:
            return mu.new_full(mu.shape[:-1], torch.nan)
        return kl_divergence(target, mu, log_mu)

    def transition(self, mu: Tensor, actions: Tensor, t: int = 0) -> Tensor:
        """The next distribution.

        Args:
            mu: Distributions ``[..., K]``.
            actions: Actions at the cell centres, ``[..., K, action_dim]`` in ``[-1, 1]``.
            t: Step of the episode, for worlds that change with time.

        Returns:
            ``[..., K]``, summing to one.
        """
        return self.move(self.shift(mu, t), actions, t).mu

    def margins(self, mu: Tensor, log_mu: Tensor | None = None) -> Tensor:
        """The margin of every constraint, ``[..., n_constraints]``; safe where all are at least zero.

        Args:
            mu: Distributions ``[..., K]``.
            log_mu: Their :func:`~mf_taxi_env.information.floored_log`, where it is at hand.
        """
        if not self.constraints:
            return mu.new_zeros((*mu.shape[:-1], 0))
        return torch.stack([_margin(constraint, mu, log_mu) for constraint in self.constraints], -1)

    def rollout(self, policy: Field, mu: Tensor | None = None) -> Trajectory:
        """One episode under ``policy``.

        Args:
            policy: Gives the field of actions from the distribution after trips.
            mu: Initial distributions ``[..., K]``; default :meth:`initial`.
        """
        mu = self.initial() if mu is None else mu
        states, rewards, uncertainty = [mu], [], []
        for t in range(self.horizon):
            shifted = self.shift(mu, t)
            actions = policy.field(shifted, t)
            moved = self.move(shifted, actions, t)
            rewards.append(self.reward(mu, actions, moved.mu, t))
            uncertainty.append(moved.uncertainty)
            mu = moved.mu
            states.append(mu)
        # An adversary or an ensemble may add batch dimensions at the first move; earlier states broadcast to them.
        path = torch.stack([state.expand_as(mu) for state in states], -2)
        shape = mu.shape[:-1]
        return Trajectory(
            path,
            torch.stack([reward.expand(shape) for reward in rewards], -1),
            self.margins(path[..., 1:, :]),
            torch.stack([value.expand(shape) for value in uncertainty], -1),
        )


class ParticleMDP(MeanFieldMDP):
    """A lifted MDP whose particles head where a motion takes them and are then perturbed by noise.

    A world whose particles move on a ring says so by its ``space``, and one whose moves are short by its ``reach``.

    Args:
        grid: Cells of the state space.
        motion: The true motion of a particle.
        noise: What perturbs it.
        horizon: Steps per episode.
        constraints: Safety constraints.
        dtype: Floating-point type.
        device: Device of all tensors.
    """

    #: The scale of a move: about how far the action 1 takes a particle, in sides of the space.
    reach: float = 1.0

    def __init__(
        self,
        grid: Grid,
        motion: Motion,
        noise: Noise,
        *,
        horizon: int,
        constraints: Sequence[Constraint] = (),
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(grid, horizon=horizon, action_dim=grid.dimension, constraints=constraints, dtype=dtype, device=device)
        self.motion = motion
        self.noise = noise
        self.centers = grid.centers(dtype=dtype, device=self.device)

    def with_motion(self, motion: Motion) -> Self:
        """The same world with another motion; the copy holds no reference to this one's."""
        world = copy.copy(self)
        world.motion = motion
        return world

    def initial(self, batch: Sequence[int] = ()) -> Tensor:
        """Initial distributions ``[*batch, K]``: uniform, of the largest entropy, unless a world says otherwise."""
        return torch.full((*batch, self.grid.size), 1.0 / self.grid.size, dtype=self.dtype, device=self.device)

    def move(self, mu: Tensor, actions: Tensor, t: int = 0) -> Move:
        destinations = self.motion(self.centers, mu, actions)
        return Move(self.noise.push_forward(mu, destinations), mu.new_zeros(mu.shape[:-1]))


def _margin(constraint: Constraint, mu: Tensor, log_mu: Tensor | None) -> Tensor:
    """The margin, from the logarithm of the masses where that is given and of use to the constraint."""
    if log_mu is not None and type(constraint) is EntropyFloor:  # a subclass may have a margin of its own
        return constraint.margin(mu, log_mu)
    return constraint.margin(mu)


def checked_constraints(constraints: object) -> tuple[Constraint, ...]:
    """The constraints of a world.

    Raises:
        ValueError: If they are no sequence of constraints.
    """
    given = tuple(constraints) if isinstance(constraints, Iterable) else (constraints,)
    if not isinstance(constraints, Iterable) or not all(
        isinstance(one, Constraint) and not isinstance(one, type) for one in given
    ):
        raise ValueError(f"constraints must be a sequence of constraints, such as (EntropyFloor(0.9),), got {constraints!r}")
    return given
