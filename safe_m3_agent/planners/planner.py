"""What every planner offers: from a policy to a better one in a learned world."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mf_taxi_env.mdp import Trajectory
from safe_m3_agent.hallucination import HallucinatedMDP
from safe_m3_agent.policy import Policy
from safe_m3_agent.tightening import accumulated_tightening


class Plan(NamedTuple):
    """What a planner came up with."""

    policy: Policy
    objective: float  #: of the last iterate, or of the best one where a planner takes back what is worse
    feasible: bool  #: whether the policy kept every constraint in every world that was planned for


class Planner(ABC):
    """Maximises ``sum_t r(mu~_t) + lambda * barrier`` over policy and hallucinated control (arXiv 2306.17052, Eq. 8a).

    The reward is that of the optimistic world, in which the hallucinated control is chosen together with the policy. The
    barrier is that of the optimistic world, with its margins tightened, and of every adversarial world that certificates have
    found so far: a policy that is planned against its own worst cases is certified sooner and closer to the constraint.
    """

    #: Whether a plan depends on nothing but what it is given, so that it can start anew.
    forgets: bool = False

    @abstractmethod
    def plan(
        self,
        mdp: HallucinatedMDP,
        policy: Policy,
        *,
        weight: float,
        adversaries: Tensor,
        optimistic: bool,
        generator: torch.Generator,
        effort: int = 1,
    ) -> Plan:
        """Improve a copy of ``policy``; the best feasible iterate is kept, the last one where none was feasible.

        Args:
            mdp: The learned world.
            policy: Where to start.
            weight: Weight ``lambda`` of the barrier; 0 plans without constraints.
            adversaries: Directions ``[A, E]`` of plausible motions to be safe against; ``A`` may be 0.
            optimistic: Whether to choose the hallucinated control of the reward's world, or leave it at zero.
            generator: Source of randomness, on the device of ``mdp``.
            effort: How many times as many steps to take as the planner's settings say.
        """

    def metrics(self) -> dict[str, float]:
        """Figures of the last plan that only this planner has, by name; none, unless it says otherwise."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """What the planner carries from one plan to the next, as named tensors that the next plan does not touch; nothing,
        unless it says otherwise."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` gave.

        Raises:
            RuntimeError: If it does not fit.
        """
        if state:
            raise RuntimeError(f"{type(self).__name__} carries nothing from plan to plan, got {sorted(state)}")


def part_of(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, by what follows it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


class BestIterate:
    """The parameters with the highest value so far. Compared on the device: reading a number back would stall it.

    Args:
        parameters: Those at the start, whose value is not known yet.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = [parameter.detach().clone() for parameter in parameters]
        self.value = self.parameters[0].new_tensor(-math.inf)

    @torch.no_grad()
    def offer(self, parameters: Sequence[Tensor], value: Tensor, allowed: Tensor) -> Tensor:
        """Keep ``parameters`` if they are ``allowed`` and their ``value`` is higher; whether they were kept, ``[]``."""
        better = allowed & (value > self.value)
        self.value = torch.where(better, value, self.value)
        self.parameters = [torch.where(better, new, old) for new, old in zip(parameters, self.parameters, strict=True)]
        return better

    @torch.no_grad()
    def restore(self, parameters: Sequence[Tensor]) -> None:
        """Write the kept values into ``parameters``."""
        for parameter, value in zip(parameters, self.parameters, strict=True):
            parameter.copy_(value)


def planned_worlds(mdp: HallucinatedMDP, adversaries: Tensor) -> HallucinatedMDP:
    """The nominal world and every adversarial one, side by side: batch ``[1 + A]``."""
    return mdp.plausible(torch.cat([adversaries.new_zeros(1, mdp.directions), adversaries]))


def planned_margins(trajectory: Trajectory, lipschitz: Tensor) -> Tensor:
    """Margins that a plan has to keep, ``[1 + A, T, n_constraints]``: the first world's are tightened."""
    tightening = accumulated_tightening(trajectory.uncertainty[:1], lipschitz)
    return torch.cat([trajectory.margins[:1] - tightening, trajectory.margins[1:]])
