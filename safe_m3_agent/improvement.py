"""From the policy in use to a better one that may be executed: plan, certify, compare."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from safe_m3_agent.certificate import Certificate, Certifier, within
from safe_m3_agent.config import Config
from safe_m3_agent.hallucination import HallucinatedMDP
from safe_m3_agent.planners.bptt import BPTTPlanner
from safe_m3_agent.planners.ddpg import DDPGPlanner
from safe_m3_agent.planners.planner import Planner, part_of, planned_worlds
from safe_m3_agent.policy import Policy

#: A path that is followed anew takes plans of this many times as many steps, and its weight falls by this factor at each.
PATH_EFFORT, PATH_FALL = 2, 0.64


class Decision(NamedTuple):
    """Which policy to execute, and why."""

    policy: Policy  #: to execute: a new one, or the one in use
    taken: bool = False  #: whether a new policy was certified and is to be executed
    objective: float = math.nan  #: of the last plan at its last epoch; NaN where nothing was planned
    #: Under the worst plausible motion found for the policy taken, or else for the last candidate; NaN without one.
    worst_margin: float = math.nan
    weight: float = 0.0  #: of the barrier that was planned with


def make_planner(config: Config) -> Planner:
    """The planner that the settings name."""
    if config.planner == "ddpg":
        return DDPGPlanner(config.ddpg, config.barrier.width)
    return BPTTPlanner(config.bptt, config.barrier.width)


class Candidate(NamedTuple):
    """A policy that has passed the screen, and may get a certificate."""

    policy: Policy
    margin: float  #: under the worst plausible motion found so far
    predicted: float  #: return in the nominal learned world


class SafeImprovement:
    """Improves a policy without ever letting an uncertified one through.

    An episode's improvement is a few rounds of planning and screening, then a certificate for the best that passed. A refused
    candidate leaves the motion that refused it, and the next plan is made against that one too (a cutting-plane method on
    the confidence set: Blankenship and Falk 1976); one that passes lets the next plan go closer to the constraint.

    Where a plan ends depends on where it started, and what starts from a policy that was planned with a poor model stays near
    it. Whenever the transitions have multiplied, the path is therefore followed anew from the first policy.

    Args:
        config: Settings of the agent.
        first: The policy to start anew from.
        adversaries: Directions of plausible motions to plan against from the start, ``[A, E]``; ``A`` may be 0.
    """

    def __init__(self, config: Config, first: Policy, adversaries: Tensor) -> None:
        self.config = config
        self.first = first
        #: Adversaries that certificates found, [A, E]: those of the running episode, and the last ones from before it.
        self.adversaries = adversaries
        #: Weight of the barrier.
        self.weight = config.barrier.initial if config.constrained else 0.0
        #: Transitions that the model had seen at the last plan, and when a plan last started anew.
        self.planned_at = self.anew_at = 0
        #: The last plan that was refused: a start for the next one, where it is nearer to a certificate than the policy in use.
        self.draft: Policy | None = None
        self.planner = make_planner(config)
        self._certifier = Certifier(config.certificate)

    def improve(
        self,
        learned: HallucinatedMDP,
        policy: Policy,
        generator: torch.Generator,
        *,
        transitions: int,
        seen_unsafe: bool = False,
    ) -> Decision:
        """Plan in the learned world, and decide what to execute. What is cut short is undone by :meth:`load_state`.

        Args:
            learned: The learned world.
            policy: The policy in use.
            generator: Source of randomness.
            transitions: How many transitions the model has seen; without one there is nothing to plan with.
            seen_unsafe: Whether the policy in use violates a constraint: any with a certificate is better, whatever it earns.

        Raises:
            FloatingPointError: If the planner's objective is not finite.
        """
        certifies = self.config.constrained and self.config.certified
        at_once = certifies and seen_unsafe
        enough = transitions > 0 and (at_once or transitions >= (1.0 + self.config.growth) * self.planned_at)
        if not (enough or learned.exact):
            return Decision(policy, weight=self.weight)
        if not certifies:
            decision = self._uncertified(learned, policy, generator)
        else:
            promised = -math.inf if at_once else _predicted_return(learned, policy)
            anew = self._is_due(learned, transitions)
            if anew:
                self.anew_at = transitions
            decision = self._constrained(learned, policy, promised, generator, anew=anew)
        self.planned_at = transitions
        return decision

    def start_over(self) -> None:
        """Plan anew in the next episode, as if nothing had been planned: what was planned last turned out to be unsafe."""
        self.draft, self.planned_at, self.anew_at = None, 0, 0

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that is carried from episode to episode: tensors, which the next episode does not touch, and numbers."""
        draft = self.draft.state_dict() if self.draft is not None else {}
        tensors = {
            "adversaries": self.adversaries,
            **{f"draft.{name}": value for name, value in draft.items()},
            **{f"planner.{name}": value for name, value in self.planner.state().items()},
        }
        return tensors, {"barrier_weight": self.weight, "planned_at": self.planned_at, "anew_at": self.anew_at}

    def load_state(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave; there may be more beside it.

        Raises:
            KeyError: If something is missing.
            RuntimeError: If something does not fit.
        """
        self.draft = None
        if draft := part_of(tensors, "draft."):
            self.draft = copy.deepcopy(self.first)
            self.draft.load_state_dict(draft)
        self.planner.load_state(part_of(tensors, "planner."))
        self.adversaries = tensors["adversaries"]
        self.weight, self.planned_at = float(facts["barrier_weight"]), int(facts["planned_at"])
        self.anew_at = int(facts["anew_at"])

    def _is_due(self, learned: HallucinatedMDP, transitions: int) -> bool:
        """Whether to start anew."""
        never = learned.exact or not learned.constraints or not self.planner.forgets or not self.config.anew
        return not never and transitions >= self.config.anew * self.anew_at

    def _uncertified(self, learned: HallucinatedMDP, policy: Policy, generator: torch.Generator) -> Decision:
        """Whatever the planner comes up with: M3-UCRL, and, with a barrier, Safe-M3-UCRL as published."""
        optimistic, before = self.config.optimistic and not learned.model.exact, self.weight
        none = self.adversaries[:0]
        policy, objective = self._plan(learned, policy, generator, self.config.rounds, none, optimistic=optimistic)
        if self.weight:
            self.weight = self.config.barrier.after(self.weight, certified=True)
        return Decision(policy, objective=objective, weight=before)

    def _constrained(
        self, learned: HallucinatedMDP, policy: Policy, promised: float, generator: torch.Generator, *, anew: bool = False
    ) -> Decision:
        """The best policy found that gets a certificate and earns no less than ``promised`` in the nominal learned world."""
        before, objective, worst = self.weight, math.nan, math.nan
        # What was found in a wider confidence set may be beyond this one.
        self.adversaries = within(learned, self.adversaries)
        if learned.constraints and not learned.exact:
            # The model has been refitted since: what is worst for the policy in use has changed, and is where to begin.
            self._remember(self._certifier.screen(learned, policy, self._last(self.adversaries), generator))
        # Where the world is known a refusal teaches nothing: one long plan follows the barrier further than short ones.
        optimistic = self.config.optimistic and not learned.model.exact
        rounds, effort = (1, self.config.rounds) if learned.exact else (self.config.rounds, 1)
        path = self._anew(learned, generator) if anew else []
        candidate, passed = path[-1].policy if path else self._start(learned, policy), path.copy()
        for _ in range(rounds):
            candidate, objective = self._plan(learned, candidate, generator, effort, self.adversaries, optimistic=optimistic)
            screened = self._screen(learned, candidate, generator)
            worst = screened.margin
            if screened.certified:
                passed.append(Candidate(candidate, worst, _predicted_return(learned, candidate)))
                # It lowers the barrier even where it is not executed: nothing better is to be had at this weight.
                self.weight = self.config.barrier.after(self.weight, certified=True)
        chosen, refused = self._best(learned, policy, promised, passed, generator)
        worst = worst if refused is None else refused
        self.draft = None if passed else candidate
        if not passed:
            self.weight = self.config.barrier.after(before, certified=False)
            chosen = self._part_of_the_way(learned, policy, candidate, promised, generator)
        elif chosen is None and path:
            self.weight = before  # that of the way to the policy in use
        self.adversaries = self._last(self.adversaries)
        if chosen is None:
            return Decision(policy, False, objective, worst, before)
        return Decision(chosen.policy, True, objective, chosen.margin, before)

    def _anew(self, learned: HallucinatedMDP, generator: torch.Generator) -> list[Candidate]:
        """Down the barrier's path from the first policy; against adversaries from the first refusal on."""
        before, self.weight = self.weight, self.config.barrier.initial
        candidate, passed, refusals = self.first, [], 0
        while self.weight > self.config.barrier.final and refusals < self.config.rounds:
            against = self.adversaries if refusals else self.adversaries[:0]
            candidate, _ = self._plan(learned, candidate, generator, PATH_EFFORT, against, optimistic=False)
            screened = self._screen(learned, candidate, generator)
            if screened.certified:
                passed.append(Candidate(candidate, screened.margin, _predicted_return(learned, candidate)))
                self.weight = max(self.config.barrier.final, self.weight * PATH_FALL)
            else:
                refusals += 1
        if not passed:
            self.weight = before
        return passed

    def _best(
        self, learned: HallucinatedMDP, policy: Policy, promised: float, passed: list[Candidate], generator: torch.Generator
    ) -> tuple[Candidate | None, float | None]:
        """The candidate that earns most, and no less than ``promised``, of those that get a certificate, or None.

        A plan that found nothing better than the policy in use gives that very policy back, which is no candidate: it is
        executed anyway, and what its episode showed is not to be certified away. Those that are refused a certificate are taken
        out of ``passed``; beside the candidate stands the last one's margin, or None.
        """
        refused = None
        for candidate in sorted(passed, key=lambda one: one.predicted, reverse=True):
            if not candidate.predicted >= promised or _equal(candidate.policy, policy):
                continue
            # An adversary that a later candidate met may refute an earlier one.
            margin = self._known_worst(learned, candidate.policy)
            if margin >= 0:
                certificate = self._certifier.certify(learned, candidate.policy, self._last(self.adversaries), generator)
                margin = min(margin, certificate.margin)
                if certificate.certified:
                    return candidate._replace(margin=min(margin, candidate.margin)), refused
                self._remember(certificate)
            refused = margin
            passed.remove(candidate)
        return None, refused

    def _plan(
        self,
        learned: HallucinatedMDP,
        start: Policy,
        generator: torch.Generator,
        effort: int,
        adversaries: Tensor,
        *,
        optimistic: bool,
    ) -> tuple[Policy, float]:
        plan = self.planner.plan(
            learned,
            start,
            weight=self.weight,
            adversaries=self._last(adversaries),
            optimistic=optimistic,
            generator=generator,
            effort=effort,
        )
        if not math.isfinite(plan.objective):
            raise FloatingPointError(
                f"the planner's objective is {plan.objective}. The policy in use and all that was learned are intact; a "
                "smaller bptt.learning_rate or ddpg.actor_step, or a larger barrier.final may help, in "
                "another run from here: SafeM3UCRL(world, config, first=agent.policy)"
            )
        return plan.policy, plan.objective

    def _start(self, learned: HallucinatedMDP, policy: Policy) -> Policy:
        """Where to plan from; a better model sees that a draft led astray by an early one is worse, and drops it."""
        if self.draft is not None and self._known_worst(learned, self.draft) > self._known_worst(learned, policy):
            return self.draft
        return policy

    def _screen(self, learned: HallucinatedMDP, candidate: Policy, generator: torch.Generator) -> Certificate:
        # Adversaries that are known already refuse a hopeless candidate at the price of one rollout.
        known = self._known_margins(learned, candidate)
        worst = int(known.argmin())
        if not bool(known[worst] >= 0):  # NaN is refused as well
            if not worst:
                return Certificate(float(known[worst]), self.adversaries.new_zeros(learned.directions))
            refuser = self.adversaries[worst - 1 : worst]  # to be planned against, as one just found would be
            self.adversaries = torch.cat([self.adversaries[: worst - 1], self.adversaries[worst:], refuser])
            return Certificate(float(known[worst]), refuser.squeeze(0))
        screened = self._certifier.screen(learned, candidate, self._last(self.adversaries), generator)
        if not screened.certified:
            self._remember(screened)
        return screened

    def _part_of_the_way(
        self, learned: HallucinatedMDP, start: Policy, goal: Policy, promised: float, generator: torch.Generator
    ) -> Candidate | None:
        """The largest certified step from ``start`` towards a refused ``goal``, found by halving; None where there is none."""
        for attempt in range(1, self.config.certificate.attempts + 1):
            candidate = _between(start, goal, 0.5**attempt)
            screened = self._screen(learned, candidate, generator)
            if screened.certified:
                step = Candidate(candidate, screened.margin, _predicted_return(learned, candidate))
                chosen, _ = self._best(learned, start, promised, [step], generator)
                if chosen is not None:
                    return chosen
        return None

    def _remember(self, certificate: Certificate) -> None:
        self.adversaries = torch.cat([self.adversaries, certificate.z.unsqueeze(0)])

    def _last(self, adversaries: Tensor) -> Tensor:
        """The last ones, ``[A, E]``, as many as the settings say."""
        return adversaries[max(0, len(adversaries) - self.config.adversaries) :]

    @torch.no_grad()
    def _known_margins(self, learned: HallucinatedMDP, policy: Policy) -> Tensor:
        """Worst margins in the nominal world and under every known adversary, ``[1 + A]``."""
        return planned_worlds(learned, self.adversaries).rollout(policy).worst_margin

    def _known_worst(self, learned: HallucinatedMDP, policy: Policy) -> float:
        return float(self._known_margins(learned, policy).min())


@torch.no_grad()
def _predicted_return(learned: HallucinatedMDP, policy: Policy) -> float:
    return float(learned.rollout(policy).returns)


def _equal(policy: Policy, other: Policy) -> bool:
    """Whether two policies of a kind are the same to the last bit."""
    return all(torch.equal(ours, theirs) for ours, theirs in zip(policy.parameters(), other.parameters(), strict=True))


def _between(start: Policy, goal: Policy, share: float) -> Policy:
    """The policy whose parameters lie at ``share`` of the way."""
    policy = copy.deepcopy(start)
    with torch.no_grad():
        for parameter, other in zip(policy.parameters(), goal.parameters(), strict=True):
            parameter.lerp_(other, share)
    return policy
