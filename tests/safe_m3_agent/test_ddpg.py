"""MF-DDPG: it learns in seconds, its replay holds what was executed, and every ingredient does what its name says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mf_taxi_env import EntropyFloor, Scenario, SwarmMDP, TaxiMDP, load_scenario, score
from safe_m3_agent import Config, SafeM3UCRL
from safe_m3_agent.barrier import relaxed_log_barrier
from safe_m3_agent.hallucination import HallucinatedMDP
from safe_m3_agent.model.dynamics_model import KnownModel
from safe_m3_agent.model.ensemble import EnsembleConfig, ProbabilisticEnsemble
from safe_m3_agent.planners.actor import Acting, Jittered, LiftedActor, Perturbed
from safe_m3_agent.planners.critic import StateCritic, expand
from safe_m3_agent.planners.ddpg import ActorCritic, DDPGPlanner, follow
from safe_m3_agent.planners.ddpg_config import DDPGConfig
from safe_m3_agent.planners.episodes import Script, Stage, gaussian_starts
from safe_m3_agent.planners.modes import CosineModes
from safe_m3_agent.planners.planner import Plan
from safe_m3_agent.planners.replay import Replay
from safe_m3_agent.policy import FieldPolicy, NetworkPolicy

QUICK = DDPGConfig(rounds=3, episodes=4, critic_steps=4, critic_batch=4, actor_batch=2, hidden=8, modes=3, replay_episodes=8)


def test_one_episode_of_one_step_is_enough(make_world: Callable[..., TaxiMDP], tiny: Config) -> None:
    """Units of the critic come from the episodes played: a single number has no deviation, and is no reason to break down."""
    config = replace(tiny, planner="ddpg", ddpg=replace(tiny.ddpg, episodes=1))
    assert len(SafeM3UCRL(make_world(horizon=1), config).learn(2)) == 2


def known(world: TaxiMDP) -> HallucinatedMDP:
    """The learned world of an agent that knows the motion."""
    return HallucinatedMDP(world, KnownModel(world.motion, world.noise.std), 1.0)


def vague(world: TaxiMDP) -> HallucinatedMDP:
    """The learned world of an agent that has seen nothing."""
    config, generator = EnsembleConfig(members=3, hidden=(4, 4)), torch.Generator().manual_seed(0)
    return HallucinatedMDP(world, ProbabilisticEnsemble(config, world.grid, world.noise.std, generator), 1.0)


def plan(planner: DDPGPlanner, mdp: HallucinatedMDP, policy: FieldPolicy | None = None, **options: Any) -> Plan:
    """A plan, from staying put unless told otherwise."""
    generator = torch.Generator().manual_seed(options.pop("seed", 0))
    chosen: dict[str, Any] = {"weight": 0.1, "optimistic": False, "adversaries": torch.zeros(0, mdp.model.members), **options}
    return planner.plan(mdp, policy or FieldPolicy(mdp), generator=generator, **chosen)


def seeded(seed: int = 0) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(seed)


# -- learning -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("critic", "threshold"), [("plain", 0.3), ("grid", 0.25), ("expansion", 0.4)])
def test_it_learns(critic: Any, threshold: float) -> None:
    """From staying put, one plan of seconds reaches a good share of what is possible, safely, with every critic."""
    scenario = load_scenario("shenzhen", cells=8)
    world = TaxiMDP(scenario, constraints=[EntropyFloor(0.85)], horizon=6, noise_std=0.05, reward_timing="next")
    config = DDPGConfig(critic, rounds=15, critic_steps=15, modes=4, hidden=64)
    found = plan(DDPGPlanner(config, 0.01), known(world), weight=0.03)
    with torch.no_grad():
        assert score(world.rollout(found.policy).mu[1:], world) >= threshold  # NaN after a violation


# -- episodes and replay --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic", ["plain", "grid", "expansion"])
def test_an_episode_may_have_one_step(make_world: Callable[..., TaxiMDP], critic: Any) -> None:
    """Where nothing follows a step there is nothing to bootstrap from, and the plan is one all the same."""
    world = make_world(horizon=1)
    found = plan(DDPGPlanner(replace(QUICK, critic=critic), 0.01), known(world))
    assert math.isfinite(found.objective)


def test_episodes_are_those_of_the_world(world: TaxiMDP) -> None:
    """Rewards are Eq. 8a step by step, and each part of an episode leads to the next."""
    mdp, policy = known(world), FieldPolicy(world)
    with torch.no_grad():
        policy.logits += 0.1
    episodes, returns, margins = Stage(mdp, 0.3, 0.01).play(policy, mdp.initial((2,)), torch.zeros(2, 1))
    with torch.no_grad():
        path = world.rollout(policy)
    expected = path.rewards + 0.3 * relaxed_log_barrier(path.margins, 0.01).sum(-1)
    torch.testing.assert_close(episodes.rewards, expected.expand(2, -1))
    torch.testing.assert_close(returns, path.returns.expand(2))
    torch.testing.assert_close(margins, path.margins.expand(2, -1, -1))
    for t in range(world.horizon):
        torch.testing.assert_close(episodes.mu[0, t], path.mu[t])
        torch.testing.assert_close(episodes.shifted[0, t], world.shift(path.mu[t], t))


def test_adversaries_worlds_earn_the_barrier_alone(world: TaxiMDP) -> None:
    """In the nominal world margins are tightened by all doubt so far; in an adversary's they are plain, nothing is earned."""
    mdp = vague(world)
    z = torch.stack([torch.zeros(3), torch.tensor([1.0, -1.0, 0.5])])
    episodes, _, margins = Stage(mdp, 0.3, 0.01).play(FieldPolicy(mdp), mdp.initial((2,)), z)
    with torch.no_grad():
        path = mdp.plausible(z).rollout(FieldPolicy(mdp))
    assert episodes.nominal.tolist() == [[1.0] * 3, [0.0] * 3]
    torch.testing.assert_close(margins[0, :, 0], path.margins[0, :, 0] - 0.1 * path.uncertainty[0].cumsum(0))
    torch.testing.assert_close(margins[1], path.margins[1])
    torch.testing.assert_close(episodes.rewards[1], 0.3 * relaxed_log_barrier(margins[1], 0.01).sum(-1))
    torch.testing.assert_close(episodes.doubt[0], path.uncertainty[0].cumsum(0) - path.uncertainty[0])


def test_the_replay_holds_what_was_executed(world: TaxiMDP) -> None:
    """The noisy fields that moved the fleet, not what the actor would have done: played again, they give the same episode."""
    mdp = known(world)
    actor, stage, replay = LiftedActor(mdp, FieldPolicy(mdp), optimistic=False), Stage(mdp, 0.1, 0.01), Replay(8)
    noisy = Perturbed(actor, torch.ones(4), torch.tensor(0.1), 1, CosineModes(mdp, 3), seeded())
    episodes, _, _ = stage.play(noisy, mdp.initial((4,)), torch.zeros(4, 1))
    replay.add(episodes)
    now, then = replay.sample(20, seeded())
    clean = actor.fields(now.shifted, now.nominal)
    assert float((now.fields - clean).detach().abs().mean()) > 0.01
    for t in range(world.horizon - 1):
        moved = world.move(now.shifted[:, t], now.fields[:, t], t).mu
        torch.testing.assert_close(moved, then.mu[:, t])
    again, _, _ = stage.play(Script(episodes.fields), episodes.mu[:, 0], episodes.z[:, 0])
    assert all(torch.equal(a, b) for a, b in zip(again, episodes, strict=True))


def test_every_constraint_enters_the_rewards(make_world: Callable[..., TaxiMDP]) -> None:
    """The barrier of a step is the sum over all margins of it."""
    world = make_world(constraints=[EntropyFloor(0.8, lipschitz=0.1), EntropyFloor(0.6, lipschitz=2.0)])
    mdp, policy = known(world), FieldPolicy(world)
    episodes, _, _ = Stage(mdp, 0.3, 0.01).play(policy, mdp.initial((1,)), torch.zeros(1, 1))
    with torch.no_grad():
        path = world.rollout(policy)
    barrier = relaxed_log_barrier(path.margins, 0.01)
    assert not torch.allclose(barrier[:, 0], barrier[:, 1])
    torch.testing.assert_close(episodes.rewards[0], path.rewards + 0.3 * barrier.sum(-1))


def test_the_critic_learns_from_what_was_executed(world: TaxiMDP) -> None:
    """Every field that it is fitted to is one of the replay's, noise included, not what the actor would do now."""
    mdp = known(world)
    modes = CosineModes(mdp, 3)
    critics = DDPGPlanner(QUICK, 0.01)._critics(mdp, modes, False, seeded())
    run = ActorCritic(
        QUICK, Stage(mdp, 0.1, 0.01), LiftedActor(mdp, FieldPolicy(mdp), optimistic=False), *critics,
        Replay(8), modes, torch.zeros(0, 1), torch.tensor(0.05), seeded(),
    )  # fmt: skip
    run.explore()
    seen: list[torch.Tensor] = []
    run.critic.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    run.fit_critic()
    executed = run.replay.episodes.fields  # [N, T, K, a]
    assert len(seen) == QUICK.critic_steps and float(executed.abs().max()) > 0
    for batch in seen:  # [M, T, K, a]
        assert bool((batch.unsqueeze(1) == executed).flatten(3).all(-1).any(1).all())


def test_the_replay_keeps_the_last_episodes_and_forgets_no_world(world: TaxiMDP) -> None:
    """The oldest episodes go; what is left is paid anew when the barrier's weight falls."""
    mdp, replay = known(world), Replay(3)
    with pytest.raises(RuntimeError, match="replay is empty"):
        replay.sample(1, seeded())
    fields = torch.linspace(-0.1, 0.1, 5).reshape(5, 1, 1, 1).expand(5, 3, 25, 2)
    for some in (fields[:2], fields[2:]):
        replay.add(Stage(mdp, 1.0, 0.01).play(Script(some), mdp.initial((len(some),)), torch.zeros(len(some), 1))[0])
    assert replay.episodes is not None and torch.equal(replay.episodes.fields, fields[2:])
    replay.refresh(Stage(mdp, 0.0, 0.01))
    with torch.no_grad():
        expected = torch.stack([world.rollout(Script(fields[i : i + 1]), mdp.initial((1,))).rewards[0] for i in (2, 3, 4)])
    torch.testing.assert_close(replay.episodes.rewards, expected)


# -- ingredients ----------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(tau=st.floats(0.0, 1.0))
def test_targets_move_by_tau(tau: float) -> None:
    """A target's parameters go a share tau of the way."""
    source, target = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    expected = [(1 - tau) * b + tau * a for a, b in zip(source.parameters(), target.parameters(), strict=True)]
    follow(target, source, tau)
    for ours, theirs in zip(target.parameters(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_parameter_noise_keeps_its_distance(world: TaxiMDP) -> None:
    """Executed actions differ from the actor's by what was asked for, whatever scale of parameter noise that takes."""
    for distance in (0.005, 0.05):
        planner = DDPGPlanner(replace(QUICK, rounds=8, noise_distance=distance, episodes=16), 0.01)
        planner.noise_scale = torch.tensor(0.02)
        plan(planner, known(world))
        assert planner.metrics()["noise_distance"] == pytest.approx(distance, rel=0.25)


@pytest.mark.parametrize("hold", [1, 3])
def test_perturbed_copies_act_side_by_side(world: TaxiMDP, hold: int) -> None:
    """Every episode has a copy of its own, all parameters of a network are perturbed, and a copy is kept as long as asked."""
    mdp = known(world)
    actor = LiftedActor(mdp, NetworkPolicy(mdp, (4,), seeded()), optimistic=True)
    noisy = Perturbed(actor, torch.ones(2), torch.tensor(0.1), hold, CosineModes(mdp, 3), seeded())
    fields = torch.stack([noisy.field(mdp.initial((2,)), t).detach() for t in range(3)])
    assert fields.shape == (3, 2, 25, 4)
    assert not torch.allclose(fields[0, 0], fields[0, 1])
    assert torch.equal(fields[0], fields[1]) == (hold == 3)
    silent = Perturbed(actor, torch.ones(2), torch.tensor(0.0), 1, CosineModes(mdp, 3), seeded())
    torch.testing.assert_close(silent.field(mdp.initial((2,)), 0), Acting(actor, torch.ones(2)).field(mdp.initial((2,)), 0))


def test_hallucinated_control_acts_in_the_nominal_world_alone(world: TaxiMDP) -> None:
    """An adversary chooses the motion itself."""
    mdp = vague(world)
    actor = LiftedActor(mdp, FieldPolicy(mdp), optimistic=True)
    assert actor.eta is not None
    with torch.no_grad():
        actor.eta += 1.0
    worlds = torch.tensor([1.0, 0.0])
    for behaviour in (
        Acting(actor, worlds),
        Perturbed(actor, worlds, torch.tensor(0.01), 1, CosineModes(mdp, 3), seeded()),
        Jittered(actor, worlds, 0.01, seeded()),
    ):
        fields = behaviour.field(mdp.initial((2,)), 0)
        assert (fields[0, :, 2:] > 0.7).all() and not fields[1, :, 2:].any()
        assert bool(fields[1, :, :2].any()) == (not isinstance(behaviour, Acting)), "what taxis do is noisy in every world"
    jittered = Jittered(actor, worlds, 0.01, seeded()).field(mdp.initial((2,)), 0)
    assert float(jittered[0, :, 2:].detach().std()) > 0.001, "and in the nominal one what is hallucinated"
    blind = Jittered(LiftedActor(mdp, FieldPolicy(mdp), optimistic=False), worlds, 0.01, seeded())
    assert blind.field(mdp.initial((2,)), 0).shape == (2, 25, 2)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), floor=st.floats(0.5, 1.0))
def test_gaussian_starts_are_safe(seed: int, floor: float) -> None:
    """Distributions that keep every constraint, however tight: the world's own start is mixed in as far as needed."""
    world = TaxiMDP(load_scenario("shenzhen", cells=6), constraints=[EntropyFloor(floor)])
    starts = gaussian_starts(known(world), 8, seeded(seed))
    assert starts.shape == (8, 36) and (starts >= 0).all()
    torch.testing.assert_close(starts.sum(-1), torch.ones(8))
    assert (world.margins(starts) >= -1e-5).all()
    if floor < 0.9:
        assert float((starts - world.initial()).abs().sum(-1).max()) > 0.01


def test_gaussian_starts_on_a_ring_have_no_seam() -> None:
    """The first and the last cell of a ring are neighbours: no start jumps between them more than elsewhere."""
    starts = gaussian_starts(known(SwarmMDP(cells=30)), 20, seeded(0))
    jumps = starts.diff(dim=-1).abs().amax(-1)
    assert ((starts[:, 0] - starts[:, -1]).abs() <= 1.5 * jumps).all()


def test_cosine_modes(world: TaxiMDP) -> None:
    """Orthonormal, exact for what they span, and all of them together span everything; noise has a variance of one."""
    mdp = known(world)
    few, all_of_them = CosineModes(mdp, 3), CosineModes(mdp, 99)
    assert few.size == 9 and all_of_them.size == 25
    torch.testing.assert_close(few.coefficients(few.basis), torch.eye(9), atol=1e-5, rtol=0)
    field = torch.randn(25, 2, generator=seeded())
    torch.testing.assert_close(all_of_them.smooth(field), field)
    assert not torch.allclose(few.smooth(field), field)
    torch.testing.assert_close(few.smooth(few.smooth(field)), few.smooth(field))
    noise = few.noise(4000, 25, 2, generator=seeded())
    assert float(noise.square().mean()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("changing", [False, True])
def test_expansion_over_the_whole_episode_is_its_return(
    world: TaxiMDP, random_city: Callable[..., Scenario], changing: bool
) -> None:
    """With as many steps as the episode has, no critic is asked, and the gradient is that of back-propagation through time."""
    if changing:
        world = TaxiMDP(random_city(0, steps=3), horizon=3, noise_std=0.1, reward_timing="next")
    mdp, stage = known(world), Stage(known(world), 0.3, 0.01)
    actor = LiftedActor(mdp, FieldPolicy(mdp), optimistic=False)
    with torch.no_grad():
        actor.policy.logits += 0.05 * torch.randn(1, 25, 2, generator=seeded())  # type: ignore[operator]
    critic = StateCritic(mdp, CosineModes(mdp, 3), 4, seeded())
    episodes, _, _ = stage.play(Acting(actor, torch.ones(1)), mdp.initial((1,)), torch.zeros(1, 1))
    value = expand(stage, critic, actor, episodes, actor.fields(episodes.shifted, episodes.nominal), world.horizon)
    torch.testing.assert_close(value, episodes.to_go)
    (slope,) = torch.autograd.grad(value[0, 0], list(actor.parameters()))
    path = world.rollout(actor.policy.prepared())
    exact = path.returns + 0.3 * relaxed_log_barrier(path.margins, 0.01).sum()
    torch.testing.assert_close(slope, torch.autograd.grad(exact, list(actor.parameters()))[0])


ABLATIONS: dict[str, dict[str, Any]] = {
    "replay": {"replay": False},
    "targets": {"targets": False},
    "action noise": {"noise": "action"},
    "no noise": {"noise": "none"},
    "noise held": {"noise_hold": 3},
    "own starts": {"gaussian_starts": 0.0},
    "no trust region": {"trust_region": False},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_switch_has_an_effect(world: TaxiMDP, name: str) -> None:
    """Each ingredient can be switched off, and a plan without it is another one."""
    config = replace(QUICK, gaussian_starts=0.5)
    planners = [DDPGPlanner(one, 0.01) for one in (config, replace(config, **ABLATIONS[name]))]
    states = []
    for planner in planners:
        plan(planner, known(world))
        states.append(torch.cat([value.flatten() for key, value in planner.state().items() if key.startswith("critic.")]))
    assert not torch.equal(*states)
    assert planners[0].replay.episodes is not None and planners[1].replay.episodes is not None
    if name == "replay":
        assert [len(planner.replay.episodes.rewards) for planner in planners] == [8, 4]  # type: ignore[union-attr]
    if name == "no noise":
        assert planners[1].metrics()["noise_distance"] == 0
    if name == "own starts":
        own = known(world).initial((8,))
        assert not torch.equal(planners[0].replay.episodes.mu[:, 0], own)
        assert torch.equal(planners[1].replay.episodes.mu[:, 0], own)


@pytest.mark.parametrize(("renewal", "taken"), [(0, 0), (1, 3), (2, 2)])
def test_episodes_are_played_in_the_tangent(world: TaxiMDP, monkeypatch: pytest.MonkeyPatch, renewal: int, taken: int) -> None:
    """A learned motion is linearised about the actor, every so many rounds."""
    near, asked = HallucinatedMDP.near, []

    def counted(self: HallucinatedMDP, policy: FieldPolicy) -> HallucinatedMDP:
        asked.append(policy)
        return near(self, policy)

    monkeypatch.setattr(HallucinatedMDP, "near", counted)
    plan(DDPGPlanner(replace(QUICK, renewal=renewal), 0.01), vague(world))
    assert len(asked) == taken


def test_another_world_measures_anew(world: TaxiMDP) -> None:
    """A value from another tangent neither bars what is better in this one, nor makes a plan that was feasible be lost."""
    mdp, policy = known(world), FieldPolicy(world)
    arguments = (CosineModes(mdp, 3), torch.zeros(0, 1), torch.tensor(0.01), seeded())
    planner = DDPGPlanner(QUICK, 0.01)
    critics = planner._critics(mdp, arguments[0], False, seeded())
    actor = LiftedActor(mdp, policy, optimistic=False)
    run = ActorCritic(QUICK, Stage(mdp, 0.1, 0.01), actor, *critics, Replay(8), *arguments)
    run.evaluate()
    honest, length = run.trusted.value.clone(), run.step.clone()
    run.trusted.value += 100.0
    run.best.value += 100.0
    run.move_to(mdp)
    torch.testing.assert_close(run.trusted.value, honest)
    torch.testing.assert_close(run.best.value, honest)
    assert torch.equal(run.step, length)
    with torch.no_grad():
        run.parameters[0] += 3.0  # everybody into a corner
    run.best.parameters = [parameter.detach().clone() for parameter in FieldPolicy(world).parameters()]
    run.move_to(mdp)
    assert run.trusted.value < honest - 1.0
    torch.testing.assert_close(run.best.value, honest)  # of the last feasible one, which is kept
    assert not any(bool(parameter.any()) for parameter in run.best.parameters)


def test_the_trust_region_takes_bad_steps_back(world: TaxiMDP) -> None:
    """With steps far too long nothing is kept but the start, and steps shorten; without the region the actor runs away."""
    bold = replace(QUICK, rounds=4, actor_step=5.0)
    kept, lost = DDPGPlanner(bold, 0.01), DDPGPlanner(replace(bold, trust_region=False), 0.01)
    safe, wild = plan(kept, known(world)), plan(lost, known(world))
    assert safe.objective > wild.objective
    assert kept.metrics()["actor_step"] < 0.02


@pytest.mark.parametrize("renewal", [0, 2])
def test_a_critic_that_diverges_ends_the_plan(world: TaxiMDP, renewal: int) -> None:
    """Steps that lead to no number are taken back, so that the best evaluation is one: the plan is an error all the same."""
    planner = DDPGPlanner(replace(QUICK, critic_rate=1e30, renewal=renewal), 0.01)
    with pytest.raises(FloatingPointError, match=r"critic_loss nan.* smaller ddpg.critic_rate"):
        plan(planner, known(world))


def test_an_agent_whose_critic_diverges_is_left_as_it_was(world: TaxiMDP, tiny: Config) -> None:
    """Nothing that is no number gets into what the next plan starts from, or into a checkpoint."""
    agent = SafeM3UCRL(world, replace(tiny, planner="ddpg", model="known", ddpg=replace(tiny.ddpg, critic_rate=1e30)))
    before, _ = agent._state()
    with pytest.raises(FloatingPointError, match="MF-DDPG's plan broke down"):
        agent.learn(1)
    after, _ = agent._state()
    assert len(agent.history) == 0 and before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_objective_is_that_of_the_evaluation_the_page_on_metrics_names(world: TaxiMDP) -> None:
    """The best one where steps are taken back, which the last one need not be; the last one where they are not."""
    for trusting in (True, False):
        planner = DDPGPlanner(replace(QUICK, rounds=4, actor_step=5.0, trust_region=trusting), 0.01)
        assert (plan(planner, known(world)).objective == planner.metrics()["objective"]) == (not trusting)


def test_metrics_are_named(world: TaxiMDP) -> None:
    """The figures that the documentation defines, finite; none before the first plan."""
    planner = DDPGPlanner(QUICK, 0.01)
    assert planner.metrics() == {}
    plan(planner, known(world))
    metrics = planner.metrics()
    assert set(metrics) == {"noise_distance", "noise_scale", "critic_loss", "objective", "accepted", "actor_step"}
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"critic": "deep"}, r"critic must be one of .*'plain'.*got 'deep'"),
        ({"noise": "white"}, r"noise must be one of .*'parameter'.*got 'white'"),
        ({"rounds": 0}, "ddpg.rounds must be an integer >= 1, got 0"),
        ({"hidden": 64.5}, "ddpg.hidden must be an integer >= 1, got 64.5"),
        ({"replay_episodes": 0}, "ddpg.replay_episodes must be an integer >= 1, got 0"),
        ({"critic_rate": math.nan}, "critic_rate must be a finite number > 0, got nan"),
        ({"noise_distance": 0.0}, "noise_distance must be a finite number > 0, got 0.0"),
        ({"tau": 0.0}, r"tau must lie in \(0, 1\], got 0.0"),
        ({"gaussian_starts": 1.5}, r"gaussian_starts must lie in \[0, 1\], got 1.5"),
    ],
)
def test_settings_are_validated(options: dict[str, Any], message: str) -> None:
    """Nonsense is refused where it enters."""
    with pytest.raises(ValueError, match=message):
        DDPGConfig(**options)


def test_a_state_that_does_not_fit_is_refused(make_world: Callable[..., TaxiMDP]) -> None:
    """Networks of another size are not taken over."""
    planner, other = DDPGPlanner(QUICK, 0.01), DDPGPlanner(replace(QUICK, hidden=9), 0.01)
    plan(planner, known(make_world()))
    other.load_state(planner.state())
    with pytest.raises(RuntimeError, match="size mismatch"):
        plan(other, known(make_world()))


def test_the_nominal_motion_is_planned_in_once(make_world: Callable[..., TaxiMDP]) -> None:
    """A certificate may find nothing worse than it: as an adversary it would be a second world of rewards."""
    learned = vague(make_world())
    known_worst = torch.ones(1, learned.model.members)
    twice = torch.cat([torch.zeros_like(known_worst), known_worst])
    plans = [plan(DDPGPlanner(QUICK, 0.01), learned, adversaries=z, optimistic=True) for z in (known_worst, twice)]
    assert plans[0].objective == plans[1].objective
    for ours, theirs in zip(plans[0].policy.parameters(), plans[1].policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)
