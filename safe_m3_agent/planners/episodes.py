"""Episodes of the lifted MDP as MF-DDPG sees them: played in many plausible worlds at once, rewarded with the barrier."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mf_taxi_env.mdp import Field
from safe_m3_agent.barrier import relaxed_log_barrier, width_at
from safe_m3_agent.hallucination import HallucinatedMDP
from safe_m3_agent.tightening import lipschitz_constants


class Episodes(NamedTuple):
    """``N`` episodes; every tensor starts ``[N, T]``."""

    z: Tensor  #: the plausible motion, the same at all steps; zero is the nominal one [N, T, E]
    mu: Tensor  #: distribution before the step [N, T, K]
    shifted: Tensor  #: after trips, what the policy acts on [N, T, K]
    doubt: Tensor  #: uncertainty accumulated before the step [N, T]
    fields: Tensor  #: the executed field (a, eta) [N, T, K, a]
    rewards: Tensor  #: reward and weighted barrier of the step [N, T]

    @property
    def nominal(self) -> Tensor:
        """1 in the nominal world, 0 in an adversary's, ``[N, T]``."""
        return nominal(self.z)

    @property
    def to_go(self) -> Tensor:
        """Sum of rewards from each step on, ``[N, T]``."""
        return self.rewards.flip(-1).cumsum(-1).flip(-1)


def nominal(z: Tensor) -> Tensor:
    """1 where a plausible motion ``[..., E]`` is the nominal one, else 0, ``[...]``."""
    return (z == 0).all(-1).to(z.dtype)


class Script:
    """Executed fields ``[N, T, K, a]``, played again whatever the distribution."""

    def __init__(self, fields: Tensor) -> None:
        self.fields = fields

    def field(self, mu: Tensor, t: int) -> Tensor:
        return self.fields[:, t]


class Transcript:
    """A policy whose questions and answers are kept."""

    def __init__(self, policy: Field) -> None:
        self.policy = policy
        self.shifted: list[Tensor] = []
        self.fields: list[Tensor] = []

    def field(self, mu: Tensor, t: int) -> Tensor:
        field = self.policy.field(mu, t)
        self.shifted.append(mu)
        self.fields.append(field)
        return field


class Stage:
    """Where episodes are played: the learned world, with the objective of Eq. 8a paid out step by step.

    In the nominal world a step earns the world's reward and the barrier of the tightened margins; in an adversary's the
    barrier of the plain margins alone. Summed over all steps and planned worlds this is what MF-BPTT maximises.

    Args:
        mdp: The learned world.
        weight: Weight ``lambda`` of the barrier.
        width: Width of the relaxed barrier.
    """

    def __init__(self, mdp: HallucinatedMDP, weight: float, width: float) -> None:
        self.mdp = mdp
        self.weight = weight
        self.width = width_at(weight, width)
        self.lipschitz = lipschitz_constants(mdp)

    def reward(self, earned: Tensor, margins: Tensor, doubt: Tensor, nominal: Tensor) -> Tensor:
        """Reward of a step with the barrier, ``[...]``.

        Args:
            earned: The world's reward, ``[...]``.
            margins: Margins of the next distribution, ``[..., n_constraints]``.
            doubt: Uncertainty accumulated by the end of the step, ``[...]``.
            nominal: 1 in the nominal world, 0 in an adversary's, ``[...]``.
        """
        total = nominal * earned
        if self.weight:
            barrier = relaxed_log_barrier(self.tightened(margins, doubt, nominal), self.width).sum(-1)
            total = total + self.weight * barrier
        return total

    def tightened(self, margins: Tensor, doubt: Tensor, nominal: Tensor) -> Tensor:
        """Margins that a plan has to keep, ``[..., n_constraints]``; arguments as in :meth:`reward`."""
        return margins - (nominal * doubt).unsqueeze(-1) * self.lipschitz

    @torch.no_grad()
    def play(self, policy: Field, start: Tensor, z: Tensor) -> tuple[Episodes, Tensor, Tensor]:
        """Play whole episodes.

        Args:
            policy: Gives the fields ``[N, K, a]``.
            start: Initial distributions ``[N, K]``.
            z: Plausible motions ``[N, E]``.

        Returns:
            The episodes; the world's returns ``[N]``; the margins that a plan has to keep ``[N, T, n_constraints]``.
        """
        recorder = Transcript(policy)
        path = self.mdp.plausible(z).rollout(recorder, start)
        doubt = path.uncertainty.cumsum(-1)
        z = z.unsqueeze(1).expand(-1, self.mdp.horizon, -1)
        rewards = self.reward(path.rewards, path.margins, doubt, nominal(z))
        episodes = Episodes(
            z,
            path.mu[:, :-1],
            torch.stack(recorder.shifted, 1),
            doubt - path.uncertainty,
            torch.stack(recorder.fields, 1),
            rewards,
        )
        return episodes, path.returns, self.tightened(path.margins, doubt, nominal(z))


def gaussian_starts(mdp: HallucinatedMDP, n: int, generator: torch.Generator) -> Tensor:
    """Gaussian mean fields as initial distributions, mixed with the world's own start as far as safety asks.

    Centres are uniform over the city and standard deviations over ``[0.1, 0.5]`` of its side. Of the shares ``1, 1/2, ..,
    1/128`` of the Gaussian the largest is found with which every constraint holds, zero where none does; a uniformly random
    part of it is taken, for a start at the very limit teaches little but the barrier.

    Args:
        mdp: The world.
        n: How many.
        generator: Source of randomness.

    Returns:
        ``[n, K]``.
    """
    own = mdp.initial((n,))
    center = own.new_empty(n, 1, mdp.grid.dimension).uniform_(generator=generator)
    std = own.new_empty(n, 1).uniform_(0.1, 0.5, generator=generator)
    cells = mdp.grid.centers(dtype=mdp.dtype, device=mdp.device)
    gaussian = (-0.5 * mdp.space.displacement(center, cells).square().sum(-1) / std.square()).softmax(-1)
    shares = 0.5 ** torch.arange(8, dtype=mdp.dtype, device=mdp.device)
    mixed = own.unsqueeze(1) + shares.unsqueeze(-1) * (gaussian - own).unsqueeze(1)
    safe = (mdp.margins(mixed) >= 0).all(-1)
    share = (shares * safe).amax(-1, keepdim=True) * own.new_empty(n, 1).uniform_(generator=generator)
    return torch.lerp(own, gaussian, share)
