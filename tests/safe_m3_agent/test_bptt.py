"""MF-BPTT: gradients through whole episodes, the best feasible iterate, and nothing done to what it is given."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mf_taxi_env import FreeMotion, Scenario, TaxiMDP
from mf_taxi_env.safety import EntropyFloor
from safe_m3_agent.barrier import relaxed_log_barrier
from safe_m3_agent.hallucination import HallucinatedMDP
from safe_m3_agent.model.dynamics_model import KnownModel
from safe_m3_agent.model.ensemble import EnsembleConfig, ProbabilisticEnsemble
from safe_m3_agent.planners import bptt
from safe_m3_agent.planners.bptt import BPTTConfig, BPTTPlanner
from safe_m3_agent.planners.planner import Plan
from safe_m3_agent.policy import FieldPolicy, NetworkPolicy, Policy
from safe_m3_agent.transitions import Transitions

NONE = torch.zeros(0, 1)
UNUSED = torch.Generator()  # nothing about MF-BPTT is random


def known(world: TaxiMDP) -> HallucinatedMDP:
    """The learned world of an agent that knows the motion."""
    return HallucinatedMDP(world, KnownModel(world.motion, world.noise.std), 1.0)


def plan(world: TaxiMDP, policy: Policy, *, weight: float = 0.01, epochs: int = 40, learning_rate: float = 0.02) -> Plan:
    """A plan with the motion known."""
    planner = BPTTPlanner(BPTTConfig(epochs=epochs, learning_rate=learning_rate), 0.01)
    return planner.plan(known(world), policy, weight=weight, adversaries=NONE, optimistic=False, generator=UNUSED)


@torch.no_grad()
def executed(world: TaxiMDP, policy: Policy) -> tuple[float, float]:
    """Return and worst margin in the true world."""
    trajectory = world.rollout(policy)
    return float(trajectory.returns), float(trajectory.worst_margin)


def test_planning_improves_the_return(make_world: Callable[..., TaxiMDP]) -> None:
    """A plan in the known world recovers most of what staying put loses, safely."""
    world = make_world(floor=0.9, horizon=4)
    start = FieldPolicy(world)
    found = plan(world, start)
    before, after = executed(world, start)[0], executed(world, found.policy)
    assert found.feasible
    assert after[0] > 0.6 * before  # both are negative
    assert after[1] >= 0


def test_a_network_learns_too(make_world: Callable[..., TaxiMDP]) -> None:
    """All parameters of a network policy take part in a plan."""
    world = make_world(floor=0.9, horizon=4)
    start = NetworkPolicy(world, (8,), torch.Generator().manual_seed(0))
    found = plan(world, start)
    assert executed(world, found.policy)[0] > 0.7 * executed(world, start)[0]
    moved = [not torch.equal(a, b) for a, b in zip(start.parameters(), found.policy.parameters(), strict=True)]
    assert all(moved)


@pytest.mark.parametrize("weight", [1e-4, 0.3])
@pytest.mark.parametrize("learning_rate", [0.02, 0.5])
def test_the_best_feasible_iterate_is_kept(make_world: Callable[..., TaxiMDP], weight: float, learning_rate: float) -> None:
    """From a feasible start the plan is feasible and no worse than the start, also where steps overshoot the limit."""
    world = make_world(floor=0.93, horizon=4)
    start = FieldPolicy(world)
    found = plan(world, start, weight=weight, learning_rate=learning_rate, epochs=15)
    reward, margin = executed(world, found.policy)
    assert found.feasible and margin >= 0
    assert reward >= executed(world, start)[0]


def test_an_unsafe_policy_finds_back(make_world: Callable[..., TaxiMDP]) -> None:
    """Started far outside of the safe set, the relaxed barrier leads back into it."""
    world = make_world(floor=0.9, horizon=4)
    start = FieldPolicy(world)
    with torch.no_grad():
        start.logits += 0.5 * (0.5 - world.centers)  # everybody to the centre
    assert executed(world, start)[1] < -0.1
    found = plan(world, start, weight=1.0, epochs=60, learning_rate=0.05)
    assert found.feasible and executed(world, found.policy)[1] >= 0


def test_no_feasible_iterate_is_said_so(make_world: Callable[..., TaxiMDP]) -> None:
    """Where no iterate was feasible the plan says so and gives its last one."""
    world = make_world(floor=1.0)
    start = FieldPolicy(world)
    found = plan(world, start, epochs=2)
    assert not found.feasible
    assert not torch.equal(next(found.policy.parameters()), start.logits)


def test_weight_zero_ignores_constraints(make_world: Callable[..., TaxiMDP]) -> None:
    """M3-UCRL plans as if there were no constraints: with or without them it finds the same policy."""
    tight, free = make_world(floor=0.97), make_world(constraints=())
    start = FieldPolicy(tight)
    bounded, unbounded = (plan(world, start, weight=0.0, epochs=30).policy for world in (tight, free))
    assert executed(tight, unbounded)[1] < -0.01  # the constraint would have mattered
    torch.testing.assert_close(next(bounded.parameters()), next(unbounded.parameters()))


def test_the_given_policy_is_not_touched(make_world: Callable[..., TaxiMDP]) -> None:
    """Planning happens on a copy: the policy in use stays in use, without gradients."""
    world = make_world()
    start = FieldPolicy(world)
    with torch.no_grad():
        start.logits += 0.1
    before = start.logits.detach().clone()
    found = plan(world, start, epochs=3)
    assert torch.equal(start.logits, before) and start.logits.grad is None
    assert found.policy is not start


def test_objective_is_reward_and_barrier(make_world: Callable[..., TaxiMDP]) -> None:
    """The number that is reported is Eq. 8a: after one epoch, that of the start."""
    world = make_world()
    start = FieldPolicy(world)
    trajectory = world.rollout(start)
    expected = trajectory.returns + 0.3 * relaxed_log_barrier(trajectory.margins, 0.01).sum()
    assert plan(world, start, weight=0.3, epochs=1).objective == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.fixture(scope="module")
def learned(make_world: Callable[..., TaxiMDP], roam: Callable[..., tuple[Transitions, Tensor]]) -> HallucinatedMDP:
    """A world that is known vaguely."""
    world, generator = make_world(floor=0.9, horizon=4), torch.Generator().manual_seed(0)
    model = ProbabilisticEnsemble(EnsembleConfig(members=4, steps=20), world.grid, world.noise.std, generator)
    model.fit(roam(FreeMotion(), 80, 0, grid=world.grid, noise_std=world.noise.std)[0], generator)
    return HallucinatedMDP(world, model, 3.0)


def test_margins_are_tightened_and_adversaries_heeded(learned: HallucinatedMDP) -> None:
    """A plan keeps the tightened margin in its own world and the plain one in every adversary's."""
    adversaries = 1.5 * torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0]])
    planner = BPTTPlanner(BPTTConfig(epochs=15, learning_rate=0.05), 0.01)
    found = planner.plan(learned, FieldPolicy(learned), weight=0.1, adversaries=adversaries, optimistic=False, generator=UNUSED)
    assert found.feasible
    with torch.no_grad():
        nominal = learned.rollout(found.policy)
        hostile = learned.plausible(adversaries).rollout(found.policy)
    tightening = 0.1 * nominal.uncertainty.cumsum(-1)
    assert (nominal.margins[:, 0] - tightening >= -1e-6).all()
    assert (hostile.margins >= -1e-6).all()
    assert float(hostile.worst_margin.min()) < float(nominal.worst_margin)


def test_doubt_tightens_the_plan(learned: HallucinatedMDP, make_world: Callable[..., TaxiMDP]) -> None:
    """With a Lipschitz constant so large that the model's doubt uses up every margin, no iterate is feasible."""
    planner, start = BPTTPlanner(BPTTConfig(epochs=3), 0.01), FieldPolicy(learned)
    feasible = []
    for lipschitz in (0.0, 100.0):
        world = make_world(horizon=4, constraints=[EntropyFloor(0.9, lipschitz=lipschitz)])
        mdp = HallucinatedMDP(world, learned.model, learned.beta)
        found = planner.plan(mdp, start, weight=0.1, adversaries=torch.zeros(0, 4), optimistic=False, generator=UNUSED)
        feasible.append(found.feasible)
    assert feasible == [True, False]


def test_optimism_expects_more(learned: HallucinatedMDP) -> None:
    """Choosing the hallucinated control together with the policy raises the planned objective."""
    planner = BPTTPlanner(BPTTConfig(epochs=30, learning_rate=0.01), 0.01)
    none = torch.zeros(0, 4)
    cautious, optimistic = (
        planner.plan(learned, FieldPolicy(learned), weight=0.003, adversaries=none, optimistic=flag, generator=UNUSED).objective
        for flag in (False, True)
    )
    assert optimistic > cautious + 0.003


def test_gradient_flows_through_the_whole_episode(random_city: Callable[..., Scenario]) -> None:
    """The derivative of reward and barrier by the field agrees with finite differences, in float64."""
    floor = EntropyFloor(0.9)
    world = TaxiMDP(random_city(0, 2), horizon=3, noise_std=0.3, constraints=[floor], motion="congested", dtype=torch.float64)
    mdp = known(world)

    class Field:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

        def field(self, mu: Tensor, t: int) -> Tensor:
            return self.logits.tanh()

    def objective(logits: Tensor) -> Tensor:
        trajectory = mdp.rollout(Field(logits))
        return trajectory.returns + 0.5 * relaxed_log_barrier(trajectory.margins, 0.1).sum()

    logits = 0.1 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(objective, logits.requires_grad_())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "bptt.epochs must be an integer >= 1, got 0"),
        ({"renewal": 1.5}, "bptt.renewal must be an integer >= 0, got 1.5"),
        ({"learning_rate": 0.0}, "bptt.learning_rate must be a finite number > 0"),
        ({"gradient_clip": -1.0}, "bptt.gradient_clip must be a finite number > 0, got -1.0"),
        ({"learning_rate": math.nan}, "must be a finite number > 0"),
    ],
)
def test_settings_are_validated(options: dict[str, float], message: str) -> None:
    """Nonsense is refused where it enters."""
    with pytest.raises(ValueError, match=message):
        BPTTConfig(**options)  # type: ignore[arg-type]


def two_floors(make_world: Callable[..., TaxiMDP]) -> TaxiMDP:
    """A world whose constraints have margins of their own."""
    return make_world(constraints=[EntropyFloor(0.8, lipschitz=0.1), EntropyFloor(0.6, lipschitz=2.0)])


def test_every_constraint_enters_the_objective(make_world: Callable[..., TaxiMDP]) -> None:
    """Return and barrier of all margins of all steps, of the plan's only iterate."""
    world = two_floors(make_world)
    start = FieldPolicy(world)
    with torch.no_grad():
        path = world.rollout(start)
    barrier = relaxed_log_barrier(path.margins, 0.01)
    assert barrier.shape[-1] == 2 and not torch.allclose(barrier[:, 0], barrier[:, 1])
    expected = float(path.returns + 0.3 * barrier.sum())
    assert plan(world, start, weight=0.3, epochs=1).objective == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("clip", [0.5, 2.0])
def test_gradients_are_clipped_as_set(make_world: Callable[..., TaxiMDP], monkeypatch: pytest.MonkeyPatch, clip: float) -> None:
    """The setting is what the optimizer is made with."""
    given, made = [], bptt.MultilevelAdam

    def recorded(*arguments: Any) -> Any:
        given.append(arguments[3])
        return made(*arguments)

    monkeypatch.setattr(bptt, "MultilevelAdam", recorded)
    world = make_world()
    planner = BPTTPlanner(BPTTConfig(epochs=1, gradient_clip=clip), 0.01)
    planner.plan(known(world), FieldPolicy(world), weight=0.1, adversaries=NONE, optimistic=False, generator=UNUSED)
    assert given == [clip]


def test_a_frozen_policy_is_planned_from(make_world: Callable[..., TaxiMDP]) -> None:
    """A caller may have frozen what it was shown, to evaluate it: the plan's copy learns all the same, and it stays frozen."""
    world = make_world(floor=0.9, horizon=4)
    start = FieldPolicy(world)
    frozen = FieldPolicy(world).requires_grad_(False)
    ours, theirs = plan(world, start), plan(world, frozen)
    assert torch.equal(ours.policy.logits, theirs.policy.logits)  # type: ignore[arg-type]
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
