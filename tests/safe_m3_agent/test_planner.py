"""What holds for every planner: the interface that the outer loop relies on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from mf_taxi_env import TaxiMDP
from safe_m3_agent import Config
from safe_m3_agent.config import PlannerName
from safe_m3_agent.hallucination import HallucinatedMDP
from safe_m3_agent.improvement import make_planner
from safe_m3_agent.model.dynamics_model import KnownModel
from safe_m3_agent.model.ensemble import EnsembleConfig, ProbabilisticEnsemble
from safe_m3_agent.planners.planner import BestIterate, Plan, Planner
from safe_m3_agent.policy import FieldPolicy, PolicyConfig, make_policy

NAMES = get_args(PlannerName)


def known(world: TaxiMDP) -> HallucinatedMDP:
    """The learned world of an agent that knows the motion."""
    return HallucinatedMDP(world, KnownModel(world.motion, world.noise.std), 1.0)


def vague(world: TaxiMDP) -> HallucinatedMDP:
    """The learned world of an agent that has seen nothing."""
    config, generator = EnsembleConfig(members=3, hidden=(4, 4)), torch.Generator().manual_seed(0)
    return HallucinatedMDP(world, ProbabilisticEnsemble(config, world.grid, world.noise.std, generator), 1.0)


def plan(planner: Planner, mdp: HallucinatedMDP, *, adversaries: int = 0, seed: int = 0, **options: Any) -> Plan:
    """A plan from staying put."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(adversaries, mdp.model.members, generator=generator, dtype=mdp.dtype)
    settings: dict[str, Any] = {"weight": 0.1, "optimistic": not mdp.model.exact, **options}
    return planner.plan(mdp, FieldPolicy(mdp), adversaries=directions, generator=generator, **settings)


@pytest.mark.parametrize("name", NAMES)
def test_from_a_feasible_start_the_plan_is_feasible_and_no_worse(
    make_world: Callable[..., TaxiMDP], tiny: Config, name: PlannerName
) -> None:
    """Staying put is feasible here: whatever steps were tried, the plan is safe and earns at least as much."""
    world = make_world(floor=0.9)
    found = plan(make_planner(replace(tiny, planner=name)), known(world))
    with torch.no_grad():
        before, after = (world.rollout(policy) for policy in (FieldPolicy(world), found.policy))
    assert found.feasible and math.isfinite(found.objective)
    assert after.worst_margin >= 0 and after.returns >= before.returns


@pytest.mark.parametrize("name", NAMES)
def test_more_effort_is_more_steps(world: TaxiMDP, tiny: Config, name: PlannerName) -> None:
    """Twice the effort is what settings of twice as many steps do."""
    twice = {"bptt": {"bptt": replace(tiny.bptt, epochs=2 * tiny.bptt.epochs)}}
    twice["ddpg"] = {"ddpg": replace(tiny.ddpg, rounds=2 * tiny.ddpg.rounds)}  # type: ignore[dict-item]
    by_effort = plan(make_planner(replace(tiny, planner=name)), known(world), effort=2)
    by_settings = plan(make_planner(replace(tiny, planner=name, **twice[name])), known(world))  # type: ignore[arg-type]
    for one, other in zip(by_effort.policy.parameters(), by_settings.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    once = plan(make_planner(replace(tiny, planner=name)), known(world))
    assert by_effort.objective != once.objective


@pytest.mark.parametrize("name", NAMES)
def test_an_infeasible_plan_says_so(make_world: Callable[..., TaxiMDP], tiny: Config, name: PlannerName) -> None:
    """Where nothing can be safe, the plan is not called feasible."""
    assert not plan(make_planner(replace(tiny, planner=name)), known(make_world(floor=1.0))).feasible


@pytest.mark.parametrize("name", NAMES)
def test_weight_zero_plans_without_constraints(make_world: Callable[..., TaxiMDP], tiny: Config, name: PlannerName) -> None:
    """A constraint that nothing meets does not stand in the way of M3-UCRL."""
    assert plan(make_planner(replace(tiny, planner=name)), known(make_world(floor=1.0)), weight=0.0).feasible


@pytest.mark.parametrize("optimistic", [False, True])
@pytest.mark.parametrize("adversaries", [0, 2])
@pytest.mark.parametrize("name", NAMES)
def test_plans_in_learned_worlds(world: TaxiMDP, tiny: Config, name: PlannerName, adversaries: int, optimistic: bool) -> None:
    """With and without adversaries and hallucinated control, the policy that comes back is one of the true world."""
    found = plan(make_planner(replace(tiny, planner=name)), vague(world), adversaries=adversaries, optimistic=optimistic)
    assert math.isfinite(found.objective)
    assert found.policy.field(world.initial(), 0).shape == (25, 2)
    assert all(parameter.requires_grad for parameter in found.policy.parameters())


@pytest.mark.parametrize("kind", ["field", "network"])
@pytest.mark.parametrize("name", NAMES)
def test_the_given_policy_is_left_alone(world: TaxiMDP, tiny: Config, name: PlannerName, kind: Any) -> None:
    """Planning happens on a copy."""
    generator = torch.Generator().manual_seed(0)
    policy = make_policy(PolicyConfig(kind, hidden=(6,)), world, generator)
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    planner = make_planner(replace(tiny, planner=name))
    found = planner.plan(known(world), policy, weight=0.1, adversaries=torch.zeros(0, 1), optimistic=False, generator=generator)
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), before, strict=True))
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert found.policy is not policy and type(found.policy) is type(policy)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_plan(world: TaxiMDP, tiny: Config, name: PlannerName) -> None:
    """All randomness comes from the generator that is handed in; global seeds are left alone."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second = (plan(make_planner(replace(tiny, planner=name)), vague(world), seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.objective == second.objective
    assert all(torch.equal(a, b) for a, b in zip(first.policy.parameters(), second.policy.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_planner_goes_on_from_its_state(world: TaxiMDP, tiny: Config, name: PlannerName) -> None:
    """A second plan is the same, bit for bit, by the planner that made the first and by one that took over its state."""
    config = replace(tiny, planner=name)
    planner, successor = make_planner(config), make_planner(config)
    plan(planner, vague(world))
    state = {key: value.clone() for key, value in planner.state().items()}
    successor.load_state(state)
    assert successor.state().keys() == state.keys()
    ours, theirs = (plan(one, vague(world), seed=1, weight=0.05) for one in (planner, successor))
    assert ours.objective == theirs.objective
    assert all(torch.equal(a, b) for a, b in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True))
    assert all(torch.equal(value, successor.state()[key]) for key, value in planner.state().items())


def test_bptt_carries_nothing() -> None:
    """Its state is empty, and a state that is not is refused."""
    planner = make_planner(Config())
    assert planner.state() == {} and planner.metrics() == {}
    planner.load_state({})
    with pytest.raises(RuntimeError, match=r"BPTTPlanner carries nothing.*'critic'"):
        planner.load_state({"critic": torch.zeros(1)})


def test_the_best_iterate_is_kept_until_a_better_one_is_allowed() -> None:
    """Neither a worse one, nor one that is not allowed, nor one whose value is no number replaces it."""
    parameter = torch.zeros(2)
    best = BestIterate([parameter])
    yes, no = torch.tensor(True), torch.tensor(False)
    for content, value, allowed, kept in (
        (1.0, -5.0, no, 0.0),
        (2.0, -6.0, yes, 2.0),
        (3.0, -7.0, yes, 2.0),
        (4.0, math.nan, yes, 2.0),
        (5.0, -5.0, yes, 5.0),
    ):
        parameter.fill_(content)
        assert bool(best.offer([parameter], torch.tensor(value), allowed)) == (kept == content)
        assert best.parameters[0].tolist() == [kept, kept]
    parameter.fill_(9.0)
    best.restore([parameter])
    assert parameter.tolist() == [5.0, 5.0] and float(best.value) == -5.0
