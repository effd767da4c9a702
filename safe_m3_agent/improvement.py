"""From the policy in use to a better one that may be executed: plan, certify, compare."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from safe_m3_agent.certificate import Certificate, Certifier
from safe_m3_agent.config import Config
from safe_m3_agent.hallucination import HallucinatedMDP
from safe_m3_agent.planners.bptt import BPTTPlanner
from safe_m3_agent.planners.ddpg import DDPGPlanner
from safe_m3_agent.planners.planner import Planner, planned_worlds
from safe_m3_agent.policy import Policy

#: Steps shorter than this share of the way to the planned policy are not worth a certificate.
SHORTEST_STEP = 0.05


class Decision(NamedTuple):
    """Which policy to execute, and why."""

    policy: Policy  #: to execute: a new one, or the one in use
    taken: bool  #: whether a new policy was certified and is to be executed
    objective: float  #: of the planner at its last epoch; NaN where nothing was planned
    worst_margin: float  #: under the worst plausible motion found for the last candidate; NaN where none was looked for
    weight: float  #: of the barrier


def make_planner(config: Config) -> Planner:
    """The planner that the settings name."""
    if config.planner == "ddpg":
        return DDPGPlanner(config.ddpg, config.barrier.width)
    return BPTTPlanner(config.bptt, config.barrier.width)


class SafeImprovement:
    """Improves a policy without ever letting an uncertified one through.

    Args:
        config: Settings of the agent.
        adversaries: Directions of plausible motions to plan against from the start, ``[A, E]``; ``A`` may be 0.
    """

    def __init__(self, config: Config, adversaries: Tensor) -> None:
        self.config = config
        #: The last adversaries that refused a candidate, [A, E]: planned against from then on.
        self.adversaries = adversaries
        #: Certified plans so far; they, not the clock, lower the barrier's weight.
        self.certificates = 0
        #: The last plan that was refused: a start for the next one, where it is nearer to a certificate than the policy in use.
        self.draft: Policy | None = None
        self.planner = make_planner(config)
        self._certifier = Certifier(config.certificate)

    def improve(self, learned: HallucinatedMDP, policy: Policy, generator: torch.Generator, *, informed: bool) -> Decision:
        """Plan in the learned world, and decide what to execute.

        Args:
            learned: The learned world.
            policy: The policy in use.
            generator: Source of randomness.
            informed: Whether the model has seen any transition; without one there is nothing to plan with.

        Raises:
            FloatingPointError: If the planner's objective is not finite.
        """
        config = self.config
        weight = config.barrier.weight(self.certificates) if config.constrained else 0.0
        if not informed and not learned.model.exact:
            return Decision(policy, False, math.nan, math.nan, weight)
        optimistic = config.optimistic and not learned.model.exact
        start = self._start(learned, policy) if config.constrained else policy
        plan = self.planner.plan(
            learned, start, weight=weight, adversaries=self.adversaries, optimistic=optimistic, generator=generator
        )
        if not math.isfinite(plan.objective):
            raise FloatingPointError(
                f"the planner's objective is {plan.objective}. The policy in use and all that was learned are intact; a "
                "smaller bptt.learning_rate or ddpg.actor_step, or a larger barrier.width may help"
            )
        if not config.constrained:
            return Decision(plan.policy, False, plan.objective, math.nan, weight)
        candidate, certificate = self._certified_step(learned, policy, plan.policy, generator)
        if candidate is None:
            self.draft = plan.policy
            return Decision(policy, False, plan.objective, certificate.margin, weight)
        self.draft = None
        # A certified step lowers the barrier even where it is not executed: nothing better is to be had at this weight.
        self.certificates += 1
        better = _predicted_return(learned, candidate) >= _predicted_return(learned, policy)
        return Decision(candidate if better else policy, better, plan.objective, certificate.margin, weight)

    def _start(self, learned: HallucinatedMDP, policy: Policy) -> Policy:
        """Where to plan from; a better model sees that a draft led astray by an early one is worse, and drops it."""
        if self.draft is not None and self._known_worst(learned, self.draft) > self._known_worst(learned, policy):
            return self.draft
        return policy

    def _certified_step(
        self, learned: HallucinatedMDP, start: Policy, goal: Policy, generator: torch.Generator
    ) -> tuple[Policy | None, Certificate]:
        """The largest certified step from ``start`` towards ``goal``: halved at each failure."""
        certificate = Certificate(math.nan, self.adversaries.new_zeros(learned.model.members))
        attempts, share = 0, 1.0
        while attempts < self.config.certificate.attempts and share > SHORTEST_STEP:
            candidate = _between(start, goal, share)
            share /= 2
            # Adversaries that are known already refuse a hopeless candidate at the price of one rollout.
            known = self._known_worst(learned, candidate)
            if not known >= 0:  # NaN is refused as well
                if math.isnan(certificate.margin):
                    certificate = certificate._replace(margin=known)
                continue
            attempts += 1
            certificate = self._certifier.certify(learned, candidate, self.adversaries, generator)
            if certificate.certified:
                return candidate, certificate
            if self.config.adversaries:
                self.adversaries = torch.cat([self.adversaries, certificate.z.unsqueeze(0)])[-self.config.adversaries :]
        return None, certificate

    @torch.no_grad()
    def _known_worst(self, learned: HallucinatedMDP, policy: Policy) -> float:
        return float(planned_worlds(learned, self.adversaries).rollout(policy).worst_margin.min())


@torch.no_grad()
def _predicted_return(learned: HallucinatedMDP, policy: Policy) -> float:
    return float(learned.rollout(policy).returns)


def _between(start: Policy, goal: Policy, share: float) -> Policy:
    """The policy whose parameters lie at ``share`` of the way."""
    policy = copy.deepcopy(start)
    with torch.no_grad():
        for parameter, other in zip(policy.parameters(), goal.parameters(), strict=True):
            parameter.lerp_(other, share)
    return policy
