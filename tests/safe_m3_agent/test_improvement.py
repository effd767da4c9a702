"""What may be executed: a certified policy that is predicted no worse, or the one in use."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mf_taxi_env import EntropyFloor, TaxiMDP
from safe_m3_agent import Config, SafeM3UCRL
from safe_m3_agent.barrier import BarrierConfig
from safe_m3_agent.certificate import Certificate, CertificateConfig, Certifier
from safe_m3_agent.confidence import Confidence, student_quantile
from safe_m3_agent.hallucination import HallucinatedMDP
from safe_m3_agent.improvement import PATH_EFFORT, PATH_FALL, Decision, SafeImprovement
from safe_m3_agent.model.dynamics_model import Belief, KnownModel
from safe_m3_agent.planners.bptt import BPTTPlanner
from safe_m3_agent.planners.ddpg import DDPGPlanner
from safe_m3_agent.planners.planner import Plan
from safe_m3_agent.policy import FieldPolicy


def planned(monkeypatch: pytest.MonkeyPatch, logits: torch.Tensor, objective: float = 0.0) -> list[dict[str, Any]]:
    """Let the planner come up with a given field; gives the options that it is asked with."""
    asked: list[dict[str, Any]] = []

    def plan(self: BPTTPlanner, mdp: HallucinatedMDP, policy: FieldPolicy, **options: Any) -> Plan:
        asked.append(options)
        found = FieldPolicy(mdp)
        with torch.no_grad():
            found.logits += logits
        return Plan(found, objective, True)

    monkeypatch.setattr(BPTTPlanner, "plan", plan)
    return asked


class WellLearned(KnownModel):
    """A model that has learned the motion and doubts nothing, but is not told that it is right."""

    exact = False
    members = 2

    def predict(self, positions: torch.Tensor, mu: torch.Tensor, actions: torch.Tensor) -> Belief:
        belief = super().predict(positions, mu, actions)
        return belief._replace(deviations=torch.zeros(2, *actions.shape))


def decide(town: TaxiMDP, config: Config, kind: type[KnownModel] = KnownModel) -> tuple[Decision, FieldPolicy, SafeImprovement]:
    """One decision in the true world, from staying put."""
    learned = HallucinatedMDP(town, kind(town.motion, town.noise.std), config.beta)
    start = FieldPolicy(town)
    improvement = SafeImprovement(config, start, torch.zeros(0, kind.members))
    return improvement.improve(learned, start, torch.Generator(), transitions=1), start, improvement


def inwards(town: TaxiMDP, strength: float) -> torch.Tensor:
    """Everybody towards the busy centre."""
    return strength * (0.5 - town.centers)


ONE_ROUND = Config(model="known", rounds=1, anew=0.0, certificate=CertificateConfig(attempts=1))


def test_a_better_certified_plan_is_executed(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is taken whole where it is certified, with the margin of its certificate, and lowers the barrier."""
    planned(monkeypatch, inwards(town, 0.1), objective=-1.5)
    decision, _, improvement = decide(town, ONE_ROUND)
    assert decision.taken and decision.objective == -1.5 and improvement.weight == ONE_ROUND.barrier.after(0.3, certified=True)
    torch.testing.assert_close(decision.policy.raw(0), inwards(town, 0.1))  # type: ignore[operator]
    with torch.no_grad():
        assert decision.worst_margin == pytest.approx(float(town.rollout(decision.policy).worst_margin), abs=1e-6)


def test_an_unsafe_plan_is_not_executed(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that sends everybody into one corner is overruled; the policy in use stays in use."""
    planned(monkeypatch, torch.tensor(3.0))
    decision, start, improvement = decide(town, replace(ONE_ROUND, certificate=CertificateConfig(attempts=3)))
    assert decision.policy is start and not decision.taken
    assert decision.worst_margin < 0 and improvement.weight == 0.3


def test_a_part_of_the_way_may_be_safe(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the whole step is refused, shorter ones towards the same plan are tried."""
    planned(monkeypatch, inwards(town, 0.4))
    decision, _, _ = decide(town, replace(ONE_ROUND, certificate=CertificateConfig(attempts=3)))
    assert decision.taken and decision.worst_margin >= 0
    torch.testing.assert_close(decision.policy.raw(0), inwards(town, 0.1))  # type: ignore[operator]


def test_a_worse_plan_is_not_executed(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certified policy that is predicted to earn less than the one in use is not executed, but lowers the barrier."""
    planned(monkeypatch, inwards(town, -0.1))
    decision, start, improvement = decide(town, ONE_ROUND)
    assert decision.policy is start and not decision.taken
    assert decision.worst_margin >= 0 and improvement.weight == ONE_ROUND.barrier.after(0.3, certified=True)


@pytest.mark.parametrize("unsafe", [False, True])
def test_the_policy_in_use_is_no_new_one(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch, unsafe: bool) -> None:
    """A plan that finds nothing better gives it back: nothing was taken into use, and nothing that violates certified away."""
    planned(monkeypatch, torch.zeros(()))
    learned = HallucinatedMDP(town, KnownModel(town.motion, town.noise.std), 3.0)
    start = FieldPolicy(town)
    improvement = SafeImprovement(ONE_ROUND, FieldPolicy(town), torch.zeros(0, 1))
    decision = improvement.improve(learned, start, torch.Generator(), transitions=1, seen_unsafe=unsafe)
    assert decision.policy is start and not decision.taken
    assert improvement.weight == ONE_ROUND.barrier.after(0.3, certified=True), "at this weight there is nothing better"


def test_certificates_lower_the_barrier(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight that is planned with follows the certificates, not the episodes."""
    asked = planned(monkeypatch, torch.tensor(3.0))
    SafeM3UCRL(town, ONE_ROUND).learn(3)
    assert [options["weight"] for options in asked] == [0.3, 0.3, 0.3]  # where it began, and no higher
    asked = planned(monkeypatch, inwards(town, 0.1))
    SafeM3UCRL(town, ONE_ROUND).learn(3)
    assert [options["weight"] for options in asked] == pytest.approx([0.3, 0.24, 0.192])


def test_refused_plans_are_planned_anew_until_one_is_certified(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rounds of one episode: each goes on from the last plan, refused or not, and the best certified one is executed."""
    found = [inwards(town, 3.0), inwards(town, 0.05), inwards(town, 0.1)]  # the last one is certified, too, but earns less
    starts: list[torch.Tensor] = []

    def plan(self: BPTTPlanner, mdp: HallucinatedMDP, policy: FieldPolicy, **options: Any) -> Plan:
        starts.append(policy.raw(0).detach().clone())
        goal = FieldPolicy(mdp)
        with torch.no_grad():
            goal.logits += found[len(starts) - 1]
        return Plan(goal, 0.0, True)

    monkeypatch.setattr(BPTTPlanner, "plan", plan)
    decision, _, improvement = decide(town, replace(ONE_ROUND, rounds=3), WellLearned)
    for start, before in zip(starts[1:], found, strict=False):
        torch.testing.assert_close(start, before)
    assert decision.taken and improvement.draft is None
    torch.testing.assert_close(decision.policy.raw(0), inwards(town, 0.05))  # type: ignore[operator]
    assert improvement.weight == pytest.approx(0.3 * 0.8**2)  # two of three were certified


def test_a_later_adversary_may_refute_an_earlier_candidate(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is executed has passed every adversary of its episode, also those that later candidates met."""
    fields = iter([inwards(town, 0.05), inwards(town, 3.0)])

    def plan(self: BPTTPlanner, mdp: HallucinatedMDP, policy: FieldPolicy, **options: Any) -> Plan:
        goal = FieldPolicy(mdp)
        with torch.no_grad():
            goal.logits += next(fields)
        return Plan(goal, 0.0, True)

    monkeypatch.setattr(BPTTPlanner, "plan", plan)
    known_margins, asked = SafeImprovement._known_margins, []

    def refuted_in_the_end(self: SafeImprovement, learned: HallucinatedMDP, policy: FieldPolicy) -> torch.Tensor:
        asked.append(policy.raw(0).detach().clone())
        margins = known_margins(self, learned, policy)
        first_again = len(asked) > 1 and torch.equal(asked[-1], asked[0])
        return margins - margins.max() - 0.01 if first_again else margins

    monkeypatch.setattr(SafeImprovement, "_known_margins", refuted_in_the_end)
    decision, start, _ = decide(town, replace(ONE_ROUND, rounds=2), WellLearned)
    assert len(asked) >= 3 and not decision.taken and decision.policy is start


def test_what_only_passed_the_screen_is_not_executed(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """The screen looks in the linearised motion; what the search in the model itself refuses is a refusal like any other."""
    planned(monkeypatch, inwards(town, 0.1))
    judged: list[torch.Tensor] = []

    def refuse(self: Certifier, learned: HallucinatedMDP, policy: FieldPolicy, *_: Any) -> Certificate:
        judged.append(policy.raw(0).detach().clone())
        return Certificate(-0.01, torch.ones(2))

    monkeypatch.setattr(Certifier, "certify", refuse)
    decision, start, improvement = decide(town, replace(ONE_ROUND, rounds=2, barrier=BarrierConfig(initial=0.3)), WellLearned)
    assert not decision.taken and decision.policy is start and len(judged) >= 2
    torch.testing.assert_close(judged[0], inwards(town, 0.1))
    assert improvement.weight == 0.3 and improvement.draft is not None
    assert torch.equal(improvement.adversaries[-1], torch.ones(2))


@pytest.mark.parametrize("constrained", [True, False])
def test_rounds_without_a_certificate_in_between_are_one_plan(
    town: TaxiMDP, monkeypatch: pytest.MonkeyPatch, constrained: bool
) -> None:
    """Where the motion is known, or nothing is to be kept, a single plan takes the steps of all rounds."""
    asked = planned(monkeypatch, inwards(town, 0.1))
    decide(town, replace(ONE_ROUND, rounds=3, constrained=constrained), KnownModel if constrained else WellLearned)
    assert [options["effort"] for options in asked] == [3]


def test_planning_waits_for_new_data(town: TaxiMDP, tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model has seen little more than at the last plan the fleet does what it did, at no cost."""
    asked = planned(monkeypatch, torch.tensor(0.0))
    history = SafeM3UCRL(town, replace(tiny, rounds=1, growth=0.5, anew=0.0)).learn(8)
    # Four taxis and twelve steps: 48 moves an episode; plans at 1, 2, 3, 5 and 8 times that, the last one not yet due.
    assert [episode.episode for episode in history if math.isfinite(episode.objective)] == [1, 2, 3, 5]
    assert len(asked) == 4


def test_a_known_adversary_that_refuses_is_planned_against_next(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more adversaries than are planned against at a time, the one that refuses a plan is among the next plan's."""
    asked = planned(monkeypatch, inwards(town, 0.05))
    learned = HallucinatedMDP(town, WellLearned(town.motion, town.noise.std), 1.0)
    improvement = SafeImprovement(replace(ONE_ROUND, rounds=2, adversaries=1), FieldPolicy(town), torch.eye(2)[:1])
    refusing = iter([torch.tensor([0.1, -0.2, 0.1, 0.1]), torch.tensor([0.1] * 4)])

    def known(self: SafeImprovement, learned: HallucinatedMDP, policy: FieldPolicy) -> torch.Tensor:
        return next(refusing, torch.tensor([0.1]))[: 1 + len(self.adversaries)]

    monkeypatch.setattr(SafeImprovement, "_known_margins", known)
    improvement.improve(learned, FieldPolicy(town), torch.Generator(), transitions=1)
    first, second = (options["adversaries"] for options in asked)
    assert not torch.equal(first, torch.eye(2)[:1])  # what the certificate of the policy in use has just found
    assert torch.equal(second, torch.eye(2)[:1])


def test_the_path_is_followed_anew_as_the_data_multiply(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first policy, in the nominal world, at a falling weight, until a plan is refused; then come the rounds."""
    found = iter([0.02, 0.04, 3.0, 0.03, 0.05, 0.06])
    asked: list[tuple[torch.Tensor, dict[str, Any]]] = []

    def plan(self: BPTTPlanner, mdp: HallucinatedMDP, policy: FieldPolicy, **options: Any) -> Plan:
        asked.append((policy.raw(0).detach().clone(), options))
        goal = FieldPolicy(mdp)
        with torch.no_grad():
            goal.logits += inwards(town, next(found, 3.0))
        return Plan(goal, 0.0, True)

    monkeypatch.setattr(BPTTPlanner, "plan", plan)
    learned = HallucinatedMDP(town, WellLearned(town.motion, town.noise.std), 1.0)
    config = replace(ONE_ROUND, growth=0.0, anew=4.0)
    improvement = SafeImprovement(config, FieldPolicy(town), torch.zeros(0, 2))
    decision = improvement.improve(learned, FieldPolicy(town), torch.Generator(), transitions=4)
    path, [(start, rounds)] = asked[:3], asked[3:]
    for (policy, options), before, weight in zip(
        path, [0.0, 0.02, 0.04], [0.3, 0.3 * PATH_FALL, 0.3 * PATH_FALL**2], strict=True
    ):
        torch.testing.assert_close(policy, inwards(town, before))
        assert options["weight"] == pytest.approx(weight) and len(options["adversaries"]) == 0 and not options["optimistic"]
        assert options["effort"] == PATH_EFFORT
    torch.testing.assert_close(start, inwards(town, 0.04))  # the last one of the path that was certified
    assert rounds["weight"] == pytest.approx(0.3 * PATH_FALL**2) and len(rounds["adversaries"]) > 0 and rounds["optimistic"]
    assert decision.taken
    torch.testing.assert_close(decision.policy.raw(0), inwards(town, 0.04))  # type: ignore[operator]
    improvement.improve(learned, decision.policy, torch.Generator(), transitions=15)
    assert len(asked) == 5  # not four times as many as at the last time: one plan, from the policy in use
    assert improvement.anew_at == 4
    improvement.improve(learned, decision.policy, torch.Generator(), transitions=16)
    assert len(asked) == 8 and improvement.anew_at == 16  # two along the path, and one


def test_a_path_goes_on_from_refusals_against_what_refused(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the same weight, from the refused plan; as many refusals as there are rounds end it, and so does the least weight."""
    least = 0.3 * PATH_FALL**1.5
    found = iter([3.0, 0.05, 0.02, 0.03, 0.03])
    asked: list[tuple[torch.Tensor, dict[str, Any]]] = []

    def plan(self: BPTTPlanner, mdp: HallucinatedMDP, policy: FieldPolicy, **options: Any) -> Plan:
        asked.append((policy.raw(0).detach().clone(), options))
        goal = FieldPolicy(mdp)
        with torch.no_grad():
            goal.logits += inwards(town, next(found))
        return Plan(goal, 0.0, True)

    monkeypatch.setattr(BPTTPlanner, "plan", plan)
    learned = HallucinatedMDP(town, WellLearned(town.motion, town.noise.std), 1.0)
    config = replace(ONE_ROUND, rounds=2, anew=2.0, barrier=BarrierConfig(final=least))
    decision = SafeImprovement(config, FieldPolicy(town), torch.zeros(0, 2)).improve(
        learned, FieldPolicy(town), torch.Generator(), transitions=1
    )
    assert [options["weight"] for _, options in asked] == pytest.approx([0.3, 0.3, 0.3 * PATH_FALL, least, least])
    torch.testing.assert_close(asked[1][0], inwards(town, 3.0))
    assert len(asked[0][1]["adversaries"]) == 0 and len(asked[1][1]["adversaries"]) > 0
    # The best one of the path is taken, though neither its last plan nor those of the rounds.
    torch.testing.assert_close(decision.policy.raw(0), inwards(town, 0.05))  # type: ignore[operator]


def test_a_path_may_be_refused_too_often(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends at as many refusals as an episode has rounds."""
    asked = planned(monkeypatch, inwards(town, 3.0))
    decide(town, replace(ONE_ROUND, rounds=2, anew=2.0), WellLearned)
    assert [options["effort"] for options in asked] == [PATH_EFFORT] * 2 + [1] * 2


def test_a_path_that_is_not_taken_leaves_the_weight(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path whose plans are certified but earn less than the policy in use says nothing about the way that led to that."""
    asked = planned(monkeypatch, inwards(town, -0.03))
    learned = HallucinatedMDP(town, WellLearned(town.motion, town.noise.std), 1.0)
    improvement, start = SafeImprovement(replace(ONE_ROUND, anew=2.0), FieldPolicy(town), torch.zeros(0, 2)), FieldPolicy(town)
    improvement.weight = 0.1
    decision = improvement.improve(learned, start, torch.Generator(), transitions=1)
    assert len(asked) > 2 and math.isfinite(decision.worst_margin) and decision.worst_margin >= 0
    assert not decision.taken and decision.policy is start and decision.weight == improvement.weight == 0.1


def test_a_path_that_leads_nowhere_changes_nothing(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where even its first plan is refused, the rounds begin at the policy in use, with the weight that they had."""
    asked = planned(monkeypatch, inwards(town, 3.0))
    learned = HallucinatedMDP(town, WellLearned(town.motion, town.noise.std), 1.0)
    improvement = SafeImprovement(replace(ONE_ROUND, anew=1.5), FieldPolicy(town), torch.zeros(0, 2))
    improvement.weight = 0.1
    decision = improvement.improve(learned, FieldPolicy(town), torch.Generator(), transitions=1)
    assert [options["weight"] for options in asked] == [0.3, 0.1] and not decision.taken


def test_what_remembers_cannot_start_anew(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """MF-DDPG carries its critic from plan to plan, and a known motion is planned with from the start."""
    asked = planned(monkeypatch, torch.tensor(0.0))
    monkeypatch.setattr(BPTTPlanner, "forgets", False)
    decide(town, replace(ONE_ROUND, anew=1.5), WellLearned)
    monkeypatch.undo()
    asked += planned(monkeypatch, torch.tensor(0.0))
    decide(town, replace(ONE_ROUND, anew=1.5))
    assert len(asked) == 1
    assert BPTTPlanner.forgets and not DDPGPlanner.forgets


def test_without_constraints_the_plan_is_executed(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """M3-UCRL: no barrier, no certificate, whatever the plan does to the margin."""
    asked = planned(monkeypatch, torch.tensor(3.0))
    decision, start, _ = decide(town, replace(ONE_ROUND, constrained=False))
    assert decision.policy is not start and not decision.taken and math.isnan(decision.worst_margin)
    assert asked[0]["weight"] == 0.0


def test_as_published_every_plan_is_executed_behind_a_barrier(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without certificates the barrier stays, its weight falls with every plan, and one that breaks the floor is executed."""
    asked = planned(monkeypatch, torch.tensor(3.0))
    decision, start, improvement = decide(town, replace(ONE_ROUND, certified=False))
    assert decision.policy is not start and not decision.taken and math.isnan(decision.worst_margin)
    assert asked[0]["weight"] == decision.weight == ONE_ROUND.barrier.initial > improvement.weight
    assert float(town.rollout(decision.policy).worst_margin.detach()) < 0


def test_nothing_is_planned_without_data(town: TaxiMDP, tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first transition an agent that has to learn stays put; one that knows the motion plans."""
    asked = planned(monkeypatch, torch.tensor(0.0))
    [first] = SafeM3UCRL(town, tiny).learn(1)
    assert not asked and math.isnan(first.objective) and not first.certified
    SafeM3UCRL(town, ONE_ROUND).learn(1)
    assert len(asked) == 1


def test_hopeless_doubt_keeps_the_fleet_in_place(world: TaxiMDP, tiny: Config) -> None:
    """Where some plausible motion breaks every candidate, the fleet stays as it is, and the refusals are recorded."""
    agent = SafeM3UCRL(world, replace(tiny, beta=1000.0))
    history = agent.learn(3)
    assert not any(history.column("certified")) and history.violations == 0
    assert all(episode.worst_margin < 0 for episode in history[1:])
    assert not any(parameter.any() for parameter in agent.policy.parameters())


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_refusals_leave_adversaries_to_plan_against(world: TaxiMDP, tiny: Config, kept: int) -> None:
    """The last worst cases are kept, no more than asked for, each of them in the confidence set."""
    agent = SafeM3UCRL(world, replace(tiny, beta=20.0, adversaries=kept))
    agent.learn(5)
    adversaries = agent._improvement.adversaries
    assert min(kept, 1) <= len(adversaries) <= kept and adversaries.shape[1] == 3
    assert (adversaries.norm(dim=-1) <= student_quantile(20.0, 3) * (1 + 1e-5)).all()


def test_a_refused_plan_is_a_draft_for_the_next(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused plan is gone on from where it is nearer to safety than the policy in use, until a plan is certified."""
    floor = EntropyFloor(0.9)
    centre = FieldPolicy(town)
    with torch.no_grad():
        centre.logits += inwards(town, 0.6)
    config = ONE_ROUND
    learned = HallucinatedMDP(town, KnownModel(town.motion, town.noise.std), config.beta)
    starts: list[torch.Tensor] = []
    found = [inwards(town, 0.4), inwards(town, 0.1)]

    def plan(self: BPTTPlanner, mdp: HallucinatedMDP, policy: FieldPolicy, **options: Any) -> Plan:
        starts.append(policy.raw(0).detach().clone())
        goal = FieldPolicy(mdp)
        with torch.no_grad():
            goal.logits += found[len(starts) - 1]
        return Plan(goal, 0.0, True)

    monkeypatch.setattr(BPTTPlanner, "plan", plan)
    improvement = SafeImprovement(config, FieldPolicy(town), torch.zeros(0, 1))
    assert floor.margin(town.rollout(centre).mu[-1]) < floor.margin(town.rollout(FieldPolicy(town)).mu[-1])
    for _ in range(2):
        decision = improvement.improve(learned, centre, torch.Generator(), transitions=1)
    torch.testing.assert_close(starts[0], centre.raw(0).detach())
    torch.testing.assert_close(starts[1], inwards(town, 0.4))  # refused, yet nearer to safety than the policy in use
    assert decision.taken
    assert improvement.draft is None


def test_a_planner_that_diverges_is_reported(world: TaxiMDP, tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN objective stops the run with advice; the policy in use, the model and the history are as before."""
    agent = SafeM3UCRL(world, tiny)
    agent.learn(2)
    policy = [parameter.detach().clone() for parameter in agent.policy.parameters()]
    model = {name: value.clone() for name, value in agent.model.state().items()}
    history, improvement = list(agent.history), agent._improvement
    improvement.weight = 0.1
    before = improvement.planned_at, improvement.anew_at, improvement.adversaries.clone()
    seen = agent.knowledge.transitions.size
    assert seen >= agent.config.anew * improvement.anew_at > 0, "the plan that fails is one that starts anew"
    with monkeypatch.context() as patch:
        planned(patch, torch.tensor(math.nan), objective=math.nan)
        with pytest.raises(FloatingPointError, match=r"objective is nan.*learning_rate.*barrier.final"):
            agent.learn(1)
    assert all(torch.equal(a, b) for a, b in zip(agent.policy.parameters(), policy, strict=True))
    assert all(torch.equal(value, model[name]) for name, value in agent.model.state().items())
    assert list(agent.history) == history
    assert improvement.weight == 0.1 and torch.equal(improvement.adversaries, before[2])
    assert (improvement.planned_at, improvement.anew_at) == before[:2]
    assert math.isfinite(agent.learn(1)[-1].objective)  # planned at once, not when the data have grown again


def test_a_plan_that_is_not_a_number_is_not_executed(
    make_world: Callable[..., TaxiMDP], tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy of NaNs whose objective was still finite is neither executed nor counted as certified."""
    agent = SafeM3UCRL(make_world(), tiny)
    agent.learn(1)
    planned(monkeypatch, torch.tensor(math.nan), objective=-1.0)
    episode = agent.learn(1)[-1]
    assert not episode.certified and agent._improvement.weight == agent.config.barrier.initial
    assert not any(parameter.any() for parameter in agent.policy.parameters())


def test_the_margin_of_a_refused_certificate_is_told(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that passed the screen and was refused its certificate is recorded with what refused it."""
    planned(monkeypatch, inwards(town, 0.1))
    refusal = Certificate(-0.05, torch.zeros(2))
    monkeypatch.setattr(Certifier, "certify", lambda *arguments: refusal)
    decision, start, _ = decide(town, ONE_ROUND, WellLearned)
    assert decision.policy is start and not decision.taken
    assert decision.worst_margin == -0.05


def test_adversaries_of_a_wider_set_are_drawn_back(world: TaxiMDP, tiny: Config) -> None:
    """What refused candidates when the model was in doubt refuses no more than the present set does."""
    agent = SafeM3UCRL(world, replace(tiny, beta=2.0), seed=0)
    agent.learn(1)
    agent._improvement.adversaries = 1e4 * torch.eye(3)[:2]
    agent.learn(1)
    assert len(agent._improvement.adversaries) > 0
    largest = Confidence(2.0, agent.calibration.quantile, agent.calibration.tau).radius(3)
    assert (agent._improvement.adversaries.norm(dim=-1) <= largest * (1 + 1e-4)).all()


def test_a_policy_that_violates_gives_way_to_any_with_a_certificate(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the policy in use earns counts for nothing once it was seen to violate a constraint."""
    planned(monkeypatch, inwards(town, -0.1))  # earns less than staying put
    learned = HallucinatedMDP(town, KnownModel(town.motion, town.noise.std), 3.0)
    for unsafe in (False, True):
        improvement = SafeImprovement(ONE_ROUND, FieldPolicy(town), torch.zeros(0, 1))
        decision = improvement.improve(learned, FieldPolicy(town), torch.Generator(), transitions=1, seen_unsafe=unsafe)
        assert decision.taken is unsafe


def test_an_agent_whose_policy_violates_does_not_wait(town: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data have to grow before it is planned again, unless the policy in use violates a constraint."""
    asked = planned(monkeypatch, torch.tensor(3.0))
    learned = HallucinatedMDP(town, WellLearned(town.motion, town.noise.std), 3.0)
    improvement = SafeImprovement(ONE_ROUND, FieldPolicy(town), torch.zeros(0, 2))
    for transitions, unsafe, plans in (
        (0, True, 0),
        (10, False, 1),
        (11, False, 1),
        (11, True, 2),
        (12, False, 2),
        (14, False, 3),
    ):
        improvement.improve(learned, FieldPolicy(town), torch.Generator(), transitions=transitions, seen_unsafe=unsafe)
        assert len(asked) == plans
