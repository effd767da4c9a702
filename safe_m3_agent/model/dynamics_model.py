"""The interface of every model of motion: what it believes, how sure it is, and how it learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mf_taxi_env.motion import Motion
from mf_taxi_env.space import CUBE, Space
from safe_m3_agent.transitions import Transitions


class Belief(NamedTuple):
    """What a model believes of moves. Epistemic and aleatoric parts are never mixed."""

    mean: Tensor  #: destinations [..., n, d] in the world's space, [0, 1] per axis, before noise
    epistemic: Tensor  #: standard deviation of what the model does not know [..., n, d]
    aleatoric: Tensor  #: standard deviation of the noise [..., n, d]
    #: Deviations of E sampled motions from their mean, divided by sqrt(E - 1): their squares sum to epistemic^2. [E, ..., n, d]
    deviations: Tensor

    @classmethod
    def of_members(cls, destinations: Tensor, aleatoric: Tensor, shape: Sequence[int], space: Space = CUBE) -> Belief:
        """What ``E`` motions believe together: their mean, and their spread as what is not known.

        Args:
            destinations: Of every motion, ``[E, m, d]``, ``E`` at least 2; in ``[0, 1]``, or on a ring not wrapped, so that
                they are as near to each other as they are there.
            aleatoric: ``[m, d]`` or what broadcasts to it.
            shape: ``(..., n, d)`` with ``m`` rows in all: that of the belief.
            space: What the destinations are points of.
        """
        members = len(destinations)
        mean = destinations.mean(0)
        deviations = (destinations - mean) * (members - 1) ** -0.5
        # The floor keeps the root differentiable where all members agree, as beyond the edge of the city.
        epistemic = deviations.square().sum(0).clamp_min(1e-12).sqrt()
        return cls(
            space.admissible(mean).view(*shape),
            epistemic.view(*shape),
            aleatoric.expand_as(mean).reshape(shape),
            deviations.view(members, *shape),
        )


class DynamicsModel(ABC):
    """Learns ``s, mu', a -> destination``."""

    #: Whether the model is the truth itself, so that there is nothing to hallucinate and nothing to explore.
    exact: bool = False
    #: Number of sampled motions, ``E``.
    members: int

    @abstractmethod
    def predict(self, positions: Tensor, mu: Tensor, actions: Tensor) -> Belief:
        """Belief about moves.

        Args:
            positions: ``[n, d]`` or ``[..., n, d]``.
            mu: Distribution after trips ``[..., K]``. A model that learns sees of it the density at the position alone.
            actions: ``[..., n, d]``.
        """

    @abstractmethod
    def fit(self, data: Transitions, generator: torch.Generator) -> None:
        """Learn from all transitions so far."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything learned, as named tensors; a later fit makes new ones and leaves these as they are."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` gave."""


class KnownModel(DynamicsModel):
    """The true motion, without uncertainty (arXiv 2306.17052, Remark 1).

    Args:
        motion: The motion.
        noise_std: The world's noise.
    """

    exact = True
    members = 1

    def __init__(self, motion: Motion, noise_std: float) -> None:
        self.motion = motion
        self.noise_std = noise_std

    def predict(self, positions: Tensor, mu: Tensor, actions: Tensor) -> Belief:
        mean = self.motion(positions, mu, actions)
        return Belief(mean, torch.zeros_like(mean), torch.full_like(mean, self.noise_std), torch.zeros_like(mean).unsqueeze(0))

    def fit(self, data: Transitions, generator: torch.Generator) -> None:
        """Nothing is left to learn."""

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Nothing was learned."""
