"""The learned world: a mean-field MDP like any other, within its confidence set, with no way to the true motion."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mf_taxi_env import FreeMotion, MeanFieldMDP, Scenario, TaxiMDP
from mf_taxi_env.safety import scatter
from safe_m3_agent import Config, SafeM3UCRL
from safe_m3_agent.certificate import Certifier
from safe_m3_agent.hallucination import FLEET_DEVIATIONS, HallucinatedField, HallucinatedMDP
from safe_m3_agent.model.dynamics_model import KnownModel
from safe_m3_agent.model.ensemble import EnsembleConfig, ProbabilisticEnsemble
from safe_m3_agent.model.trip_model import TripModel
from safe_m3_agent.planners.bptt import BPTTPlanner
from safe_m3_agent.planners.ddpg import DDPGPlanner
from safe_m3_agent.policy import FieldPolicy
from safe_m3_agent.transitions import Transitions

BETA = 2.0


class Recorder:
    """A noise that remembers where particles were sent."""

    def __init__(self, noise: Any) -> None:
        self.noise = noise
        self.destinations: Tensor

    def push_forward(self, mass: Tensor, destinations: Tensor) -> Tensor:
        self.destinations = destinations
        return self.noise.push_forward(mass, destinations)  # type: ignore[no-any-return]


class Field:
    """A field of given actions."""

    def __init__(self, actions: Tensor) -> None:
        self.actions = actions

    def field(self, mu: Tensor, t: int) -> Tensor:
        return self.actions


@pytest.fixture(scope="module")
def model(make_world: Callable[..., TaxiMDP], roam: Callable[..., tuple[Transitions, Tensor]]) -> ProbabilisticEnsemble:
    """An ensemble that has seen fifty moves."""
    world, generator = make_world(), torch.Generator().manual_seed(0)
    ensemble = ProbabilisticEnsemble(EnsembleConfig(members=5, steps=20), world.grid, world.noise.std, generator)
    ensemble.fit(roam(FreeMotion(), 50, 0, grid=world.grid, noise_std=world.noise.std)[0], generator)
    return ensemble


@pytest.fixture
def learned(world: TaxiMDP, model: ProbabilisticEnsemble) -> HallucinatedMDP:
    """The learned world."""
    return HallucinatedMDP(world, model, BETA)


def scene(world: TaxiMDP, *batch: int) -> tuple[Tensor, Tensor]:
    """A random distribution, and random moves at the cell centres."""
    generator = torch.Generator().manual_seed(8)
    mass = torch.rand(*batch, world.grid.size, generator=generator)
    return mass / mass.sum(-1, keepdim=True), 2 * torch.rand(*batch, world.grid.size, 2, generator=generator) - 1


def destinations(learned: HallucinatedMDP, mu: Tensor, actions: Tensor) -> Tensor:
    """Where the learned world sends particles."""
    recorder = Recorder(learned._world.noise)
    learned._world.noise = recorder  # type: ignore[assignment]
    learned.move(mu, actions)
    return recorder.destinations


def test_is_a_mean_field_mdp(learned: HallucinatedMDP, world: TaxiMDP) -> None:
    """A planner cannot tell it from a true world: same interface, shapes, trips, reward and margins; eta is not rewarded."""
    assert isinstance(learned, MeanFieldMDP)
    mu, actions = scene(world, 4)
    both = torch.cat([actions, torch.zeros_like(actions)], -1)
    assert learned.action_dim == both.shape[-1] == 4
    following = learned.transition(mu, both, 1)
    assert following.shape == learned.initial((4,)).shape == mu.shape
    assert torch.equal(learned.initial(), world.initial())
    assert torch.equal(learned.shift(mu, 1), world.shift(mu, 1))
    assert torch.equal(learned.reward(mu, both, following, 1), world.reward(mu, actions, following, 1))
    assert torch.equal(learned.margins(mu), world.margins(mu))
    assert learned.rollout(Field(both)).margins.shape == (4, world.horizon, 1)


def test_the_reward_does_not_see_eta(make_world: Callable[..., TaxiMDP], model: ProbabilisticEnsemble) -> None:
    """A world whose reward depends on the actions is rewarded for the policy's, not for the hallucinated control."""

    class Costly(TaxiMDP):
        def reward(self, mu: Tensor, actions: Tensor, next_mu: Tensor, t: int = 0) -> Tensor:
            return super().reward(mu, actions, next_mu, t) - (mu * actions.square().sum(-1)).sum(-1)

    plain = make_world()
    world = Costly(plain.scenario, horizon=3, noise_std=0.1, constraints=plain.constraints)
    learned = HallucinatedMDP(world, model, BETA)
    mu, actions = scene(world)
    both = torch.cat([actions, torch.ones_like(actions)], -1)
    assert torch.equal(learned.reward(mu, both, mu, 1), world.reward(mu, actions, mu, 1))


def test_mass_is_conserved(learned: HallucinatedMDP, world: TaxiMDP) -> None:
    """However wild the hallucination, the fleet stays whole."""
    mu, actions = scene(world, 4)
    for eta in (-1.0, 0.0, 1.0):
        following = learned.transition(mu, torch.cat([actions, torch.full_like(actions, eta)], -1))
        torch.testing.assert_close(following.sum(-1), torch.ones(4))
        assert (following >= 0).all()


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_eta_moves_destinations_by_beta_standard_deviations(learned: HallucinatedMDP, world: TaxiMDP, sign: float) -> None:
    """Eq. 7: the full hallucinated control is beta standard deviations (not variances) off the mean, within the city."""
    mu, actions = scene(world)
    belief = learned.model.predict(world.centers, mu, actions)
    reached = destinations(learned, mu, torch.cat([actions, torch.full_like(actions, sign)], -1))
    torch.testing.assert_close(reached, (belief.mean + sign * BETA * belief.epistemic).clamp(0, 1))
    assert float((reached - belief.mean).abs().max()) > 0.01


def test_uncertainty_is_the_fleets_mean_standard_deviation(learned: HallucinatedMDP, world: TaxiMDP) -> None:
    """What tightens constraints is the epistemic norm, averaged over where the fleet is."""
    mu, actions = scene(world)
    belief = learned.model.predict(world.centers, mu, actions)
    expected = (mu * belief.epistemic.norm(dim=-1)).sum()
    torch.testing.assert_close(learned.move(mu, torch.cat([actions, actions], -1)).uncertainty, expected)


def test_with_the_known_model_it_is_the_true_world(make_world: Callable[..., TaxiMDP]) -> None:
    """Remark 1: trajectory, rewards and margins are the true world's, exactly, and eta has no effect."""
    world = make_world(motion="congested")
    learned = HallucinatedMDP(world, KnownModel(world.motion, world.noise.std), BETA)
    _, actions = scene(world)
    true = world.rollout(Field(actions))
    for policy in (Field(actions), HallucinatedField(Field(actions), torch.ones_like(actions))):
        believed = learned.rollout(policy)
        for name in ("mu", "rewards", "margins"):
            assert torch.equal(getattr(believed, name), getattr(true, name))
        assert float(believed.uncertainty.max()) < 1e-9


def test_plausible_motions_stay_in_the_confidence_set(learned: HallucinatedMDP, world: TaxiMDP) -> None:
    """No direction within the ball leads farther than beta standard deviations from the mean, anywhere."""
    generator = torch.Generator().manual_seed(0)
    mu, actions = scene(world)
    belief = learned.model.predict(world.centers, mu, actions)
    for _ in range(20):
        z = torch.nn.functional.normalize(torch.randn(5, generator=generator), dim=0) * BETA
        reached = destinations(learned.plausible(z), mu, torch.cat([actions, torch.zeros_like(actions)], -1))
        learned._world.noise = world.noise
        assert ((reached - belief.mean).abs() <= BETA * belief.epistemic + 1e-6).all()


def test_plausible_motions_reach_every_member(learned: HallucinatedMDP, world: TaxiMDP) -> None:
    """The set is no smaller than promised: a member's own motion is the direction along it."""
    mu, actions = scene(world)
    belief = learned.model.predict(world.centers, mu, actions)
    z = torch.zeros(5)
    z[2] = 4**0.5
    reached = destinations(learned.plausible(z), mu, torch.cat([actions, torch.zeros_like(actions)], -1))
    torch.testing.assert_close(reached, (belief.mean + 4**0.5 * belief.deviations[2]).clamp(0, 1))
    assert float((reached - belief.mean).abs().max()) > 0.01


def test_direction_zero_is_the_nominal_motion(learned: HallucinatedMDP, world: TaxiMDP) -> None:
    """Nothing is added where nothing is asked for."""
    policy = Field(scene(world)[1])
    torch.testing.assert_close(learned.plausible(torch.zeros(5)).rollout(policy).mu, learned.rollout(policy).mu)


def test_batched_directions_equal_loop(learned: HallucinatedMDP, world: TaxiMDP) -> None:
    """Many plausible worlds at once are the same worlds one by one, at every step of an episode."""
    z = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    policy = Field(scene(world)[1])
    together = learned.plausible(z).rollout(policy)
    for i in range(3):
        alone = learned.plausible(z[i]).rollout(policy)
        torch.testing.assert_close(together.mu[i], alone.mu)
        torch.testing.assert_close(together.uncertainty[i], alone.uncertainty)
    assert not torch.allclose(together.mu[0, -1], together.mu[1, -1], atol=1e-3)


def test_plausible_worlds_leave_the_original_alone(learned: HallucinatedMDP, world: TaxiMDP) -> None:
    """An adversary's motion does not leak into the world that was asked for it."""
    policy = Field(scene(world)[1])
    before = learned.rollout(policy).mu
    learned.plausible(torch.full((4, 5), 0.8)).rollout(policy)
    assert torch.equal(learned.rollout(policy).mu, before)


def test_a_fleets_margins_are_lower_by_its_scatter(learned: HallucinatedMDP, world: TaxiMDP) -> None:
    """In plausible worlds and tangents, too; the world it was made of and the true one keep theirs."""
    stay = FieldPolicy(world)
    ours = learned.for_fleet(1000)
    for judge in (ours, ours.plausible(torch.zeros(learned.directions)), ours.near(stay)):
        path = judge.rollout(stay)
        less = learned.margins(path.mu[1:]) - FLEET_DEVIATIONS / 1000**0.5 * scatter(world.constraints, path.mu[1:])
        torch.testing.assert_close(path.margins, less)
        assert bool((path.margins < world.margins(path.mu[1:]) - 1e-3).all())
    with pytest.raises(ValueError, match=r"taxis .* 0"):
        learned.for_fleet(0)


def test_beta_is_validated(world: TaxiMDP, model: ProbabilisticEnsemble) -> None:
    """A negative or undefined confidence set is refused."""
    for beta in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="beta must be at least 0"):
            HallucinatedMDP(world, model, beta)


# -- no way to the true motion --------------------------------------------------------------------------------------------


class SecretMotion:
    """A true motion that can be told from all others."""

    def __call__(self, positions: Tensor, mu: Tensor, actions: Tensor) -> Tensor:
        return (positions + 0.8 * actions).clamp(0, 1)


def leads_to(root: object, target: object) -> bool:
    """Whether references lead from ``root`` to ``target``: attributes, slots, containers, closures, defaults, bound methods.

    Classes, modules and a function's globals are left out: from them everything leads everywhere.
    """
    seen: dict[int, object] = {}
    stack = [root]
    while stack:
        thing = stack.pop()
        if thing is target:
            return True
        if id(thing) in seen or isinstance(thing, type | ModuleType):
            continue
        seen[id(thing)] = thing  # kept alive, so that its id stays its own
        if isinstance(thing, FunctionType):
            stack += [thing.__closure__, thing.__defaults__, thing.__kwdefaults__, thing.__dict__]
        else:
            stack += gc.get_referents(thing)
    return False


def test_the_search_finds_hidden_references(make_world: Callable[..., TaxiMDP]) -> None:
    """The test below would see a motion in an attribute, a closure, a partial, a bound method, a default or a container."""
    motion = SecretMotion()
    world = make_world(motion=motion)
    ways: list[object] = [
        world,
        lambda: motion,
        partial(print, motion),
        motion.__call__,
        lambda x=motion: x,
        ({"a": [(motion,)]},),
        HallucinatedMDP(world, KnownModel(motion, 0.1), 1.0),
    ]
    assert all(leads_to(way, motion) for way in ways)
    assert not leads_to(FreeMotion(), motion)


@pytest.mark.parametrize("learn_trips", [False, True])
@pytest.mark.parametrize(("name", "kind"), [("bptt", BPTTPlanner), ("ddpg", DDPGPlanner)])
def test_nothing_in_planning_leads_to_the_truth(
    make_world: Callable[..., TaxiMDP], tiny: Config, monkeypatch: pytest.MonkeyPatch, name: Any, kind: Any, learn_trips: bool
) -> None:
    """Learned world, planner, certifier and all they are handed, over whole episodes: no reference to the true motion, nor,
    where they are learned, to the true trips."""
    motion = SecretMotion()
    world = make_world(motion=motion)
    secrets: list[object] = [motion]
    if learn_trips:
        secrets += [world.trips(0), world._trips, world.scenario, world.scenario.trips]
    agent = SafeM3UCRL(world, replace(tiny, planner=name, learn_trips=learn_trips), seed=0)
    handed: list[object] = []

    def betrays(root: object) -> bool:
        return any(leads_to(root, secret) for secret in secrets)

    def spied(method: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*args: object, **kwargs: object) -> object:
            handed.append((args, kwargs))
            assert not betrays((args, kwargs))
            return method(*args, **kwargs)

        return spy

    monkeypatch.setattr(kind, "plan", spied(kind.plan))
    monkeypatch.setattr(Certifier, "certify", spied(Certifier.certify))
    monkeypatch.setattr(ProbabilisticEnsemble, "fit", spied(ProbabilisticEnsemble.fit))
    monkeypatch.setattr(TripModel, "fit", spied(TripModel.fit))
    agent.learn(3)
    assert len(handed) >= 5
    assert all(leads_to(agent.mdp, secret) for secret in secrets)
    for learned in (agent.model, agent.trips, agent._improvement, agent.policy):
        assert not betrays(learned)


def test_the_world_inside_refuses_to_move(learned: HallucinatedMDP, world: TaxiMDP) -> None:
    """Whoever reaches past the learned motion gets an error, not the truth."""
    mu, actions = scene(world)
    with pytest.raises(RuntimeError, match="true motion is not known"):
        learned._world.transition(mu, actions)
    with pytest.raises(RuntimeError, match="true motion is not known"):
        learned._world.motion(world.centers, mu, actions)
    world.transition(mu, actions)  # the true one still moves


def test_eta_is_no_part_of_a_policy(world: TaxiMDP) -> None:
    """A hallucinated field is for planning; what is executed is the policy alone, and it gives actions without eta."""
    policy = FieldPolicy(world)
    hallucinated = HallucinatedField(policy, torch.ones(world.grid.size, 2))
    field = hallucinated.field(world.initial(), 0)
    assert torch.equal(field[..., 2:], torch.ones(world.grid.size, 2))
    assert torch.equal(field[..., :2], policy.field(world.initial(), 0))
    assert policy.field(world.initial(), 0).shape[-1] == world.action_dim


def test_the_learned_world_changes_with_the_true_one(random_city: Callable[..., Scenario]) -> None:
    """Demand and trips of step ``t`` are those of step ``t`` in the true world, not those of the first."""
    world = TaxiMDP(random_city(0, steps=2), horizon=2, noise_std=0.1, reward_timing="next")
    learned, policy = HallucinatedMDP(world, KnownModel(world.motion, 0.1), 1.0), FieldPolicy(world)
    with torch.no_grad():
        ours, true = learned.rollout(policy), world.rollout(policy)
    assert torch.equal(ours.mu, true.mu) and torch.equal(ours.rewards, true.rewards)
    assert not torch.allclose(world.shift(true.mu[1], 0), world.shift(true.mu[1], 1))


class Stricter(TaxiMDP):
    """A world of the user's own, with a reserve in every margin."""

    def margins(self, mu: Tensor, log_mu: Tensor | None = None) -> Tensor:
        return super().margins(mu, log_mu) - 0.01


def test_the_learned_world_judges_as_the_true_one(world: TaxiMDP, model: ProbabilisticEnsemble) -> None:
    """Margins, target and KL are known: those of the world itself, also where it has margins of its own."""
    strict = Stricter(world.scenario, constraints=world.constraints, horizon=3, noise_std=0.1)
    learned, mu = HallucinatedMDP(strict, model, BETA), world.initial()
    assert torch.equal(learned.margins(mu), world.margins(mu) - 0.01)
    target = learned.target(1)
    assert target is not None and torch.equal(target, world.demand(1))
    assert torch.equal(learned.target_kl(mu, 1), world.target_kl(mu, 1))
