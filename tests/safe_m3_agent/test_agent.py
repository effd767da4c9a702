"""The agent: it learns without a violation, the same from the same seed, and resumes as if it had never stopped."""

from __future__ import annotations

import math
import pkgutil
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from mf_taxi_env import (
    DistanceCap,
    EntropyFloor,
    FleetSimulator,
    RegionCoverage,
    Scenario,
    SwarmMDP,
    TaxiMDP,
    bound,
    load_scenario,
    scoring,
)
from mf_taxi_env.finite_samples import corrected_margins
from mf_taxi_env.information import entropy_fraction
from mf_taxi_env.safety import scatter
from safe_m3_agent import Config, Episode, History, SafeM3UCRL
from safe_m3_agent.barrier import BarrierConfig
from safe_m3_agent.checkpoint import CHECKPOINT_FILE, load_checkpoint
from safe_m3_agent.hallucination import FLEET_DEVIATIONS
from safe_m3_agent.model.ensemble import EnsembleConfig
from safe_m3_agent.model.gaussian_process import GPConfig
from safe_m3_agent.model.trip_model import TripConfig
from safe_m3_agent.planners.bptt import BPTTConfig
from safe_m3_agent.planners.ddpg_config import DDPGConfig
from safe_m3_agent.policy import FieldPolicy, Policy, PolicyConfig
from safe_m3_agent.run import RunFolder

QUICK = Config(beta=3.0, representative_agents=40, ensemble=EnsembleConfig(steps=60))


def parameters(agent: SafeM3UCRL) -> list[torch.Tensor]:
    """A copy of the policy's parameters."""
    return [parameter.detach().clone() for parameter in agent.policy.parameters()]


# -- learning -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def midway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run below is saved after its fifth episode."""
    return tmp_path_factory.mktemp("midway")


@pytest.fixture(scope="module")
def safe(town: TaxiMDP, midway: Path) -> SafeM3UCRL:
    """The motion unknown, six episodes."""
    agent = SafeM3UCRL(town, QUICK, seed=0)

    def keep(agent: SafeM3UCRL, episode: Episode) -> None:
        if episode.episode == 4:
            agent.save(midway)

    agent.learn(6, callback=keep)
    return agent


def test_known_motion(town: TaxiMDP) -> None:
    """With the motion known the central path leads to most of what is possible in six episodes, every plan certified."""
    config = Config(model="known", barrier=BarrierConfig(fall=0.5), bptt=BPTTConfig(learning_rate=0.02))
    history = SafeM3UCRL(town, config, seed=0).learn(6)
    assert history.violations == 0
    assert history[-1].score >= 0.8
    assert history.column("score") == sorted(history.column("score"))
    assert history.column("epistemic") == pytest.approx([0.0] * 6, abs=1e-9)


def test_unknown_motion(safe: SafeM3UCRL) -> None:
    """With the motion unknown the fleet stays put at first, then moves with a certificate, and never violates."""
    history = safe.history
    assert history.violations == 0 and min(history.column("min_margin")) > 0
    assert history[0].score == pytest.approx(0.0, abs=1e-6) and not history[0].certified
    assert any(history.column("certified"))
    assert history[-1].score >= 0.15
    assert history[-1].epistemic < 0.2 * history[0].epistemic


def test_true_margins_keep_what_certificates_promise(safe: SafeM3UCRL) -> None:
    """An executed policy's margin is at least the one that its certificate's adversary found: the truth is in the set."""
    certified = [episode for episode in safe.history if episode.certified]
    assert certified and all(episode.min_margin >= episode.worst_margin - 1e-4 for episode in certified)


def test_coverage_is_calibrated(safe: SafeM3UCRL) -> None:
    """Nearly all true destinations lie within beta standard deviations of what was believed before they were seen."""
    assert float(np.mean(safe.history.column("coverage"))) >= 0.95


def test_without_constraints_it_gets_closer_and_violates(town: TaxiMDP, safe: SafeM3UCRL) -> None:
    """M3-UCRL earns more than its safe sister in half the episodes; the floor it breaks is recorded, and voids its score."""
    history = SafeM3UCRL(town, replace(QUICK, constrained=False), seed=0).learn(3)
    last = history[-1]
    assert last.reward > safe.history[-1].reward + 0.1
    assert last.min_margin < 0 and last.violations >= 1 and math.isnan(last.score)
    assert not any(history.column("certified")) and set(history.column("barrier_weight")) == {0.0}


def test_congested_motion(make_world: Callable[..., TaxiMDP]) -> None:
    """Where moves shorten with density the agent learns as safely, and gets a policy certified."""
    world = make_world(cells=6, floor=0.9, horizon=6, motion="congested")
    history = SafeM3UCRL(world, replace(QUICK, anew=0.0), seed=1).learn(5)
    assert history.violations == 0
    assert any(history.column("certified"))
    assert history[-1].score >= 0.15


@pytest.mark.parametrize("motion", ["free", "congested"])
def test_gaussian_process(make_world: Callable[..., TaxiMDP], motion: str) -> None:
    """With a Gaussian process in the ensemble's place the fleet comes to move with a certificate, and never violates."""
    world = make_world(cells=5, floor=0.9, horizon=6, motion=motion)
    history = SafeM3UCRL(world, replace(QUICK, model="gp", anew=0.0), seed=0).learn(4)
    assert history.violations == 0 and min(history.column("min_margin")) > 0
    assert any(history.column("certified"))
    assert history[-1].score >= 0.15
    assert float(np.mean(history.column("coverage")[1:])) >= 0.95


def test_unknown_trips(town: TaxiMDP, safe: SafeM3UCRL) -> None:
    """Not told where passengers go, the fleet stays put for longer, then moves with a certificate, and never violates."""
    agent = SafeM3UCRL(town, replace(QUICK, learn_trips=True, anew=0.0), seed=0)
    history = agent.learn(5)
    assert history.violations == 0 and min(history.column("min_margin")) > 0
    assert history[0].score == pytest.approx(0.0, abs=1e-6)
    certified = history.column("certified")
    assert any(certified) and certified.index(True) >= safe.history.column("certified").index(True)
    assert all(episode.min_margin >= episode.worst_margin - 1e-4 for episode in history if episode.certified)
    assert history[-1].score >= 0.15
    assert agent.trip_metrics["observed"] > 300 and agent.trip_metrics["error"] < 0.1


def test_unknown_trips_with_the_motion_known(town: TaxiMDP) -> None:
    """Trips alone are doubt enough: nothing is certified at first, then the fleet moves, and never violates."""
    config = replace(QUICK, model="known", learn_trips=True, anew=0.0)
    history = SafeM3UCRL(town, config, seed=0).learn(4)
    assert history.violations == 0
    assert not history[0].certified and any(history.column("certified"))
    assert history[-1].score >= 0.15


@pytest.mark.parametrize("model", ["ensemble", "known"])
def test_a_world_without_constraints(make_world: Callable[..., TaxiMDP], tiny: Config, model: Any) -> None:
    """Nothing to keep: every plan passes, margins are infinite, no step violates; without certificates none has a worst one."""
    config = replace(tiny, model=model)
    free, without = (SafeM3UCRL(make_world(constraints=()), one).learn(2) for one in (config, replace(config, certified=False)))
    assert free.violations == 0
    assert free.column("min_margin") == [math.inf, math.inf]
    assert free[-1].worst_margin == math.inf
    if model == "known":
        assert all(free.column("certified")), "a longer plan is a better one"
    assert all(math.isnan(margin) for margin in without.column("worst_margin")) and not any(without.column("certified"))


def test_the_episode_records_what_the_policy_in_use_does(safe: SafeM3UCRL, town: TaxiMDP) -> None:
    """Return, margin and violations are those of the policy in the true world, without hallucination."""
    with torch.no_grad():
        executed = town.rollout(safe.policy)
    last = safe.history[-1]
    assert last.reward == pytest.approx(float(executed.returns), rel=1e-6)
    assert last.min_margin == pytest.approx(float(executed.worst_margin), abs=1e-6)


# -- reproducibility ------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "float64": ({}, {"dtype": torch.float64}),
    "network per step": ({"policy": PolicyConfig("network", per_step=True, hidden=(6,))}, {}),
    "policy exploration, congested": ({"exploration": "policy", "beta": 0.5}, {"motion": "congested"}),
    "too sure, Lemma 2": (
        {"beta": 0.01, "delta": 0.3, "tightening": "lemma2", "ensemble": EnsembleConfig(members=3, steps=6, linear_scale=0.02)},
        {},
    ),
    "learned noise": ({"ensemble": EnsembleConfig(members=3, hidden=(4, 4), steps=6, learn_noise=True)}, {}),
    "sparse Gaussian process": ({"model": "gp"}, {}),
    "exact Gaussian process, learned noise": (
        {"model": "gp", "gp": GPConfig(kind="exact", members=3, features=8, steps=2, learn_noise=True)},
        {"dtype": torch.float64},
    ),
    "known": ({"model": "known"}, {}),
    "learned trips": ({"learn_trips": True, "trips": TripConfig(members=3)}, {}),
    "learned trips, too sure": (
        {
            "learn_trips": True,
            "trips": TripConfig(members=3, beta=0.01, attraction_scale=0.01, demand_scale=0.01, decay_scale=0.01),
        },
        {},
    ),
    "learned trips, known motion, float64": ({"learn_trips": True, "model": "known"}, {"dtype": torch.float64}),
    "unconstrained": ({"constrained": False}, {}),
    "ddpg": ({"planner": "ddpg"}, {}),
    "ddpg, known, float64": ({"planner": "ddpg", "model": "known"}, {"dtype": torch.float64}),
    "ddpg, network per step": ({"planner": "ddpg", "policy": PolicyConfig("network", per_step=True, hidden=(6,))}, {}),
    "ddpg, grid critic": (
        {"planner": "ddpg", "ddpg": DDPGConfig("grid", rounds=2, episodes=4, hidden=8, replay_episodes=6)},
        {},
    ),
    "ddpg, expansion": (
        {"planner": "ddpg", "ddpg": DDPGConfig("expansion", rounds=2, episodes=4, critic_steps=2, lookahead=2)},
        {"motion": "congested"},
    ),
    "ddpg, expansion, learned trips": (
        {
            "learn_trips": True,
            "planner": "ddpg",
            "ddpg": DDPGConfig("expansion", rounds=2, episodes=4, critic_steps=2, lookahead=2),
        },
        {},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_is_the_uninterrupted_one(
    make_world: Callable[..., TaxiMDP], tiny: Config, tmp_path: Path, variant: str
) -> None:
    """Saved, loaded and continued, a run equals one that never stopped, bit for bit; and a second seed differs."""
    settings, options = VARIANTS[variant]
    config, world = replace(tiny, **settings), make_world(**options)
    whole = SafeM3UCRL(world, config, seed=7)
    whole.learn(4)
    first = SafeM3UCRL(make_world(**options), config, seed=7)
    first.learn(2)
    second = SafeM3UCRL.load(first.save(tmp_path))
    assert second.history == first.history and second.config == config and second.seed == 7
    second.learn(1)
    third = SafeM3UCRL.load(second.save(tmp_path))
    assert third.learn(1) == whole.history
    assert all(torch.equal(a, b) for a, b in zip(parameters(third), parameters(whole), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(third.knowledge.transitions, whole.knowledge.transitions, strict=True))
    assert (third.trips is not None) == (whole.trips is not None) == config.learn_trips
    if third.trips is not None and whole.trips is not None:
        assert whole.trips.trips.size > 0
        assert whole.trips.tau > 1.0 or variant != "learned trips, too sure"
        trips = third.trips.state(), whole.trips.state()
        assert trips[0].keys() == trips[1].keys() and all(torch.equal(trips[0][name], trips[1][name]) for name in trips[0])
    held_out = [agent.calibration.held_out for agent in (third, whole)]
    assert all(torch.equal(a, b) for a, b in zip(*(part[1:] for part in held_out), strict=True))
    assert torch.equal(held_out[0].residual.nan_to_num(9.0), held_out[1].residual.nan_to_num(9.0))
    assert third.calibration.tau == whole.calibration.tau and (
        whole.calibration.tau > 1.0 or not variant.startswith("too sure")
    )
    assert torch.equal(third._generator.get_state(), whole._generator.get_state())
    assert torch.equal(third._improvement.adversaries, whole._improvement.adversaries)
    planners = [agent._improvement.planner.state() for agent in (third, whole)]
    assert planners[0].keys() == planners[1].keys()
    assert all(torch.equal(planners[0][name], planners[1][name]) for name in planners[0])
    assert bool(planners[0]) == (config.planner == "ddpg")
    assert (third._improvement.draft is None) == (whole._improvement.draft is None)
    assert third._improvement.anew_at == whole._improvement.anew_at
    origins = [agent._improvement.first.parameters() for agent in (third, whole)]
    assert all(torch.equal(a, b) for a, b in zip(*origins, strict=True))
    if variant == "default":
        assert SafeM3UCRL(world, config, seed=8).learn(4) != whole.history


def test_resumed_after_certificates(safe: SafeM3UCRL, midway: Path) -> None:
    """The barrier's weight and the adversaries found so far are part of what is resumed."""
    resumed = SafeM3UCRL.load(midway)
    assert len(resumed.history) == 5
    assert resumed._improvement.weight < resumed.config.barrier.initial and resumed._improvement.planned_at > 0
    assert len(resumed._improvement.adversaries) > 0
    assert any(parameter.any() for parameter in parameters(resumed))
    assert not any(parameter.any() for parameter in resumed._improvement.first.parameters())  # it is to stay put, not in use
    assert resumed.learn(1) == safe.history
    assert all(torch.equal(a, b) for a, b in zip(parameters(resumed), parameters(safe), strict=True))


#: Where an interrupt may come: after what has been called how often, in which episode, under which settings.
INTERRUPTS: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "planning": ("planners.bptt.BPTTPlanner.plan", 2, 2, {}),
    "planning, critics new": ("planners.ddpg.DDPGPlanner.plan", 2, 1, {"planner": "ddpg"}),
    "planning, critics learned": ("planners.ddpg.ActorCritic.fit_critic", 3, 2, {"planner": "ddpg"}),
    "screening": ("certificate.Certifier.screen", 1, 2, {}),
    "going part of the way": ("improvement.SafeImprovement._part_of_the_way", 1, 1, {}),
    "observing": ("agent.observe", 1, 2, {}),
    "fitting": ("model.ensemble.ProbabilisticEnsemble._descend", 1, 2, {}),
    "fitting a Gaussian process": ("model.gaussian_process.GaussianProcess._sampled", 1, 2, {"model": "gp"}),
    "fitting trips": ("model.trip_model.TripModel.fit", 1, 2, {"learn_trips": True}),
    "judging": ("agent.episode_score", 1, 0, {}),
}


@pytest.mark.parametrize("place", INTERRUPTS)
def test_an_interrupted_episode_has_not_happened(
    world: TaxiMDP, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Whatever an interrupt cuts short, agent and folder are as before the episode, and both go on as if nothing had been."""
    target, times, done, settings = INTERRUPTS[place]
    config = replace(tiny, **settings)
    whole = SafeM3UCRL(world, config, seed=7)
    whole.learn(done + 2)
    original, calls = pkgutil.resolve_name(f"safe_m3_agent.{target}"), []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        calls.append(place)
        if len(calls) == times:
            raise KeyboardInterrupt
        return result

    agent = SafeM3UCRL(world, config, seed=7)
    with RunFolder(tmp_path) as run:
        if done:
            agent.learn(done, callback=run)
        before = {name: value.clone() for name, value in agent._state()[0].items()}, agent._state()[1]
        with monkeypatch.context() as patch:
            patch.setattr(f"safe_m3_agent.{target}", interrupted)
            with pytest.raises(KeyboardInterrupt):
                agent.learn(1, callback=run)
    tensors, facts = agent._state()
    assert facts == before[1] and tensors.keys() == before[0].keys() and len(agent.history) == done
    assert all(torch.equal(value.nan_to_num(9.0), before[0][name].nan_to_num(9.0)) for name, value in tensors.items())
    resumed = SafeM3UCRL.load(tmp_path)
    assert resumed.history == agent.history
    for one in (agent, resumed):
        assert one.learn(2) == whole.history
        assert all(torch.equal(a, b) for a, b in zip(parameters(one), parameters(whole), strict=True))
        assert torch.equal(one._generator.get_state(), whole._generator.get_state())


def test_global_seeds_are_left_alone(world: TaxiMDP, tiny: Config) -> None:
    """A run neither reads nor moves the global generators."""
    torch.manual_seed(1)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = SafeM3UCRL(world, tiny).learn(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002
    torch.manual_seed(2)
    assert SafeM3UCRL(world, tiny).learn(2) == first


# -- the first policy in use ----------------------------------------------------------------------------------------------


def drifting(world: TaxiMDP, share: float) -> FieldPolicy:
    """Everybody goes a share of the way to the centre, or away from it."""
    return FieldPolicy.of_actions(world, share * (0.5 - world.centers))


@pytest.mark.parametrize("kind", ["field", "network"])
def test_a_first_policy_is_executed_and_resumed(world: TaxiMDP, tiny: Config, tmp_path: Path, kind: Any) -> None:
    """The policy handed in is the first in use and where plans start anew; a resumed run, from before the first episode on,
    equals one that never stopped, bit for bit."""
    config = replace(tiny, policy=PolicyConfig(kind, hidden=(6,)))
    first: Policy = drifting(world, 0.05)
    if kind == "network":
        donor = SafeM3UCRL(world, replace(config, model="known"), seed=3)
        donor.learn(1)
        first = donor.policy
    whole = SafeM3UCRL(world, config, seed=7, first=first)
    assert whole.policy is not first and all(
        torch.equal(a, b) for a, b in zip(parameters(whole), first.parameters(), strict=True)
    )
    with torch.no_grad():
        executed = world.rollout(first)
    whole.learn(4)
    assert whole.history[0].reward == float(executed.returns) != SafeM3UCRL(world, config, seed=7).learn(1)[0].reward
    assert whole._improvement.anew_at > 0
    part = SafeM3UCRL(world, config, seed=7, first=first)
    for _ in range(2):
        part = SafeM3UCRL.load(part.save(tmp_path))
        part.learn(2)
    assert part.history == whole.history
    for one, other in ((part.policy, whole.policy), (part._improvement.first, first)):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_run_that_stays_put_first_says_nothing_of_it(world: TaxiMDP, tiny: Config, tmp_path: Path) -> None:
    """Checkpoints from before there was a first policy to hand in, and those of today without one, are alike."""
    tensors, _ = load_checkpoint(SafeM3UCRL(world, tiny).save(tmp_path) / CHECKPOINT_FILE, world.device)
    assert not any(name.startswith("first.") for name in tensors)


def test_an_unsafe_first_policy_is_warned_of(world: TaxiMDP, tiny: Config) -> None:
    """Where staying put breaks the floor the remedy is named, once; a safe policy handed in is no warning, an unsafe one is."""
    with torch.no_grad():
        shares = [float(entropy_fraction(world.rollout(drifting(world, share)).mu[1:]).min()) for share in (0.0, -0.1, 0.5)]
    stays, spreads, crowds = shares
    assert crowds < stays < spreads
    narrow = TaxiMDP(
        world.scenario, horizon=3, noise_std=0.1, reward_timing="next", constraints=[EntropyFloor((stays + spreads) / 2)]
    )
    agent = SafeM3UCRL(narrow, tiny)
    with pytest.warns(UserWarning, match=r"staying put, the first policy in use, violates .*first=policy") as caught:
        agent.learn(1)
    assert caught[0].filename == __file__
    assert SafeM3UCRL(narrow, tiny, first=drifting(narrow, -0.1)).learn(2).violations == 0
    with pytest.warns(UserWarning, match=r"first, the first policy in use, violates a constraint \(margin -0"):
        SafeM3UCRL(narrow, tiny, first=drifting(narrow, 0.5)).learn(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.learn(1)  # it was said


def test_what_a_fleet_needs_is_needed_from_the_start(make_world: Callable[..., TaxiMDP], tiny: Config) -> None:
    """Staying put may be safe in the mean field and not for the fleet that plans are for: that is said, too."""
    with torch.no_grad():
        stays = float(entropy_fraction(make_world().rollout(FieldPolicy(make_world())).mu[1:]).min())
        world = make_world(floor=stays - 0.01)
        start = world.rollout(FieldPolicy(world))
        deviations = scatter(world.constraints, start.mu[1:])
    least = FLEET_DEVIATIONS**2 * float((deviations / start.margins).square().max())  # taxis that just keep it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SafeM3UCRL(world, replace(tiny, fleet=math.ceil(1.01 * least))).learn(1)
    few = math.floor(0.99 * least)
    with pytest.warns(UserWarning, match=rf"staying put, .* violates a constraint as {few:,} taxis are to keep it \(margin -"):
        SafeM3UCRL(world, replace(tiny, fleet=few)).learn(1)


def test_a_first_policy_of_another_kind_is_refused(world: TaxiMDP, town: TaxiMDP, tiny: Config) -> None:
    """Another grid, another kind, other steps, or parameters that are no numbers: the message says what is wanted."""
    broken = drifting(world, 0.1)
    with torch.no_grad():
        broken.logits[0, 0, 0] = math.nan
    network = SafeM3UCRL(world, replace(tiny, policy=PolicyConfig("network", hidden=(6,)))).policy
    for wrong in (FieldPolicy(town), network, FieldPolicy(world, steps=3)):
        with pytest.raises(
            ValueError, match=rf"first must be as config.policy says, a FieldPolicy .*got a {type(wrong).__name__}"
        ):
            SafeM3UCRL(world, tiny, first=wrong)
    with pytest.raises(ValueError, match="first must have finite parameters"):
        SafeM3UCRL(world, tiny, first=broken)


# -- interface ------------------------------------------------------------------------------------------------------------


def test_learn_calls_back_after_every_episode(world: TaxiMDP, tiny: Config) -> None:
    """The callback sees the agent with the episode already in its history; numbers go on over calls."""
    agent = SafeM3UCRL(world, tiny)
    seen: list[tuple[int, int]] = []

    def look(given: SafeM3UCRL, episode: Episode) -> None:
        assert given is agent and given.history[-1] is episode
        seen.append((episode.episode, len(given.history)))

    agent.learn(2, callback=look)
    history = agent.learn(1, callback=look)
    assert seen == [(0, 1), (1, 2), (2, 3)] and isinstance(history, History)


def test_progress_bar_shows_the_figures(world: TaxiMDP, tiny: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """A bar with reward, worst margin and score."""
    pytest.importorskip("tqdm")
    SafeM3UCRL(world, tiny).learn(1, progress_bar=True)
    shown = capsys.readouterr().err
    assert "1/1" in shown and "reward=" in shown and "worst margin=" in shown and "score=" in shown


@pytest.mark.parametrize("episodes", [0, -1])
def test_learning_nothing_is_refused(world: TaxiMDP, tiny: Config, episodes: int) -> None:
    """At least one episode."""
    with pytest.raises(ValueError, match=f"episodes must be an integer >= 1, got {episodes}"):
        SafeM3UCRL(world, tiny).learn(episodes)


def test_devices_have_to_agree(world: TaxiMDP) -> None:
    """The device is the world's; another one is refused where it enters."""
    SafeM3UCRL(world, device="cpu")
    with pytest.raises(ValueError, match="device must be the world's, cpu, got 'meta'"):
        SafeM3UCRL(world, device="meta")


def test_settings_that_do_not_fit_the_world_are_refused_at_once(make_world: Callable[..., TaxiMDP], tiny: Config) -> None:
    """Not after an episode: a fleet whose scatter is not known, and convolutions on a ring."""
    city = make_world(constraints=[DistanceCap([0.04] * 25, 0.9, "tv")])
    with pytest.raises(ValueError, match=r"fleet must be 0 in this world, got 100: .*DistanceCap.* has no scatter"):
        SafeM3UCRL(city, replace(tiny, fleet=100))
    SafeM3UCRL(make_world(), replace(tiny, fleet=100))
    ring = SwarmMDP(cells=20, constraints=[])
    grid = replace(tiny, planner="ddpg", ddpg=DDPGConfig("grid"))
    with pytest.raises(ValueError, match=r"ddpg.critic='grid' needs a world of two dimensions, got .*; choose 'plain'"):
        SafeM3UCRL(ring, grid)
    SafeM3UCRL(ring, replace(grid, planner="bptt"))


def test_the_policy_in_use_answers_plain_numbers(safe: SafeM3UCRL, town: TaxiMDP) -> None:
    """An operator needs no gradients: actions become arrays as they are, and episodes drag no graph along."""
    actions = safe.policy(torch.rand(7, 2), town.initial(), 0)
    assert actions.numpy().shape == (7, 2) and not town.rollout(safe.policy).returns.requires_grad


def test_fleets_follow_the_policy(safe: SafeM3UCRL, town: TaxiMDP) -> None:
    """The policy steers a finite fleet, whose distribution comes near the mean field's."""
    rollout = FleetSimulator(town, 20_000, seed=1).rollout(safe.policy)
    with torch.no_grad():
        mu = town.rollout(safe.policy).mu
    assert float((rollout.distributions - mu).abs().sum(-1).max()) / 2 < 0.03


def test_certificates_carry_over_to_the_fleet_they_are_made_for(town: TaxiMDP) -> None:
    """With the motion known plans go to the very edge: one made for a fleet keeps the floor there, another does not."""
    config = Config(model="known", barrier=BarrierConfig(fall=0.5), bptt=BPTTConfig(learning_rate=0.02))
    kept = []
    for fleet in (0, 1000):
        agent = SafeM3UCRL(town, replace(config, fleet=fleet), seed=0)
        agent.learn(6)
        paths = [FleetSimulator(town, 1000, seed=seed).rollout(agent.policy).distributions[1:] for seed in range(20)]
        margins = [float(corrected_margins(town.margins(path), town, 1000).min()) for path in paths]
        kept.append(sum(margin >= 0 for margin in margins))
    assert kept[0] <= 15 and kept[1] == 20


@pytest.mark.parametrize("kind", ["field", "network"])
def test_predict_gives_the_policys_field(world: TaxiMDP, tiny: Config, kind: Any) -> None:
    """In the manner of Stable-Baselines3: the field in the distribution after trips, for one observation or a batch."""
    agent = SafeM3UCRL(world, replace(tiny, model="known", policy=PolicyConfig(kind, hidden=(6,))))
    agent.learn(2)
    rng = np.random.default_rng(0)
    observations = rng.dirichlet(np.ones(25), (3, 2)).astype(np.float32)
    actions, state = agent.predict(observations, deterministic=True)
    assert actions.shape == (3, 2, 50) and actions.dtype == np.float32 and state is None
    assert (np.abs(actions) <= 1).all() and np.abs(actions).max() > 0.01
    for i in range(3):
        for j in range(2):
            mu = torch.from_numpy(observations[i, j])
            with torch.no_grad():
                expected = agent.policy.field(world.shift(mu, 0), 0).flatten().numpy()
            np.testing.assert_allclose(actions[i, j], expected, atol=1e-6)
            alone, _ = agent.predict(observations[i, j])
            assert alone.shape == (50,)
            np.testing.assert_allclose(alone, expected, atol=1e-6)


@pytest.mark.parametrize("per_step", [False, True])
def test_predict_drives_the_gymnasium_env(tiny: Config, per_step: bool) -> None:
    """A whole episode of MFTaxi-v0 under ``predict`` is the agent's own executed trajectory."""
    shared: dict[str, Any] = {"horizon": 4, "noise_std": 0.1, "reward_timing": "next", "constraints": [EntropyFloor(0.8)]}
    world = TaxiMDP(load_scenario("shenzhen", cells=5), **shared)
    agent = SafeM3UCRL(world, replace(tiny, model="known", policy=PolicyConfig(per_step=per_step)))
    agent.learn(2)
    with torch.no_grad():
        executed = world.rollout(agent.policy)
    env = gym.make("MFTaxi-v0", cells=5, parameterization="cells", observe_time=per_step, **shared)
    observation, _ = env.reset(seed=0)
    rewards, truncated = [], False
    while not truncated:
        np.testing.assert_allclose(observation[:25], executed.mu[len(rewards)], atol=1e-6)
        observation, reward, _, truncated, _ = env.step(agent.predict(observation)[0])
        rewards.append(float(reward))
    assert rewards == pytest.approx(executed.rewards.tolist(), abs=1e-5)
    np.testing.assert_allclose(observation[:25], executed.mu[-1], atol=1e-6)
    assert any(parameter.any() for parameter in parameters(agent))  # it did move


def test_predict_knows_the_time_of_each_observation(world: TaxiMDP, tiny: Config) -> None:
    """With the time appended, every observation of a batch is answered for its own step, the last one after the episode too."""
    agent = SafeM3UCRL(world, replace(tiny, model="known", policy=PolicyConfig(per_step=True)))
    agent.learn(1)
    horizon = world.horizon
    times = np.arange(horizon + 1, dtype=np.float32) / np.float32(horizon)
    observations = np.concatenate([np.full((horizon + 1, 25), 0.04, np.float32), times[:, None]], -1)
    actions, _ = agent.predict(observations)
    fields = [agent.policy.field(world.initial(), t).detach().flatten().numpy() for t in range(horizon)]
    for t, action in enumerate(actions):
        np.testing.assert_allclose(action, fields[min(t, horizon - 1)], atol=1e-6)
    assert not np.allclose(actions[0], actions[1], atol=1e-4)


def test_predict_refuses_what_it_cannot_answer(world: TaxiMDP, tiny: Config) -> None:
    """An observation of another length, or one without the time that a per-step policy needs."""
    agent = SafeM3UCRL(world, tiny)
    for wrong in (np.zeros(24), np.zeros((2, 27)), np.float32(1.0)):
        with pytest.raises(ValueError, match=re.escape(f"length 25 (or 26 with time), got shape {wrong.shape}")):
            agent.predict(wrong)
    sums = [np.full(25, 0.04), np.full(25, 0.06)]
    with pytest.raises(ValueError, match=r"masses that sum to 1, or densities that sum to 25, got a sum of 1.5"):
        agent.predict(sums)
    stepwise = SafeM3UCRL(world, replace(tiny, policy=PolicyConfig(per_step=True)))
    with pytest.raises(ValueError, match="observe_time=True"):
        stepwise.predict(np.full(25, 0.04))


@pytest.mark.parametrize("changing", ["demand", "trips"])
def test_predict_asks_for_the_time_where_the_city_changes(
    tiny: Config, random_city: Callable[..., Scenario], changing: str
) -> None:
    """A network sees the distribution after the trips of the step: without the time it would be shown those of step 0."""
    one, other = random_city(0), random_city(1)
    demand = np.stack([one.demand, other.demand]) if changing == "demand" else one.demand
    trips = np.stack([one.trips, other.trips]) if changing == "trips" else one.trips
    world = TaxiMDP(replace(one, demand=demand, trips=trips), horizon=2, noise_std=0.1)
    network = SafeM3UCRL(world, replace(tiny, model="known", policy=PolicyConfig("network", hidden=(6,))))
    network.learn(1)
    uniform = np.full(25, 0.04, np.float32)
    with pytest.raises(ValueError, match=r"must hold the time, got length 25: .* trips differ from step to step"):
        network.predict(uniform)
    for t in range(2):
        action, _ = network.predict(np.append(uniform, t / 2))
        with torch.no_grad():
            expected = network.policy.field(world.shift(world.initial(), t), t).flatten().numpy()
        np.testing.assert_allclose(action, expected, atol=1e-6)
    SafeM3UCRL(world, tiny).predict(uniform)  # a field is blind to the distribution
    still = TaxiMDP(replace(one, demand=demand, trips=trips), horizon=1, noise_std=0.1)
    SafeM3UCRL(still, network.config).predict(uniform)


def test_learns_inside_no_grad(world: TaxiMDP, tiny: Config) -> None:
    """A caller who evaluates around it changes nothing."""
    with torch.no_grad():
        inside = SafeM3UCRL(world, tiny, seed=3).learn(2)
    assert inside == SafeM3UCRL(world, tiny, seed=3).learn(2)


def test_a_world_in_which_nothing_depends_on_the_policy_is_refused(make_world: Callable[..., TaxiMDP], tiny: Config) -> None:
    """One step, rewarded for where it starts, and nothing to keep: no gradient, and said so before an episode."""
    for settings, config in (({"constraints": []}, tiny), ({}, replace(tiny, constrained=False))):
        with pytest.raises(ValueError, match="reward_timing='next'"):
            SafeM3UCRL(make_world(horizon=1, reward_timing="current", **settings), config)
    assert len(SafeM3UCRL(make_world(horizon=1, reward_timing="current"), tiny).learn(1)) == 1


def test_a_solver_that_is_stuck_costs_no_episode(
    make_world: Callable[..., TaxiMDP], tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is possible is then not known, and the score none; constraints that nothing meets are told before an episode."""

    def stuck(*arguments: object, **named: object) -> None:
        raise bound.NoBoundError("the solver finds no bound")

    monkeypatch.setattr(scoring, "certified_bound", stuck)
    history = SafeM3UCRL(make_world(), tiny).learn(1)
    assert math.isnan(history[0].score)
    monkeypatch.undo()
    everybody = make_world(constraints=[EntropyFloor(0.95), RegionCoverage([0], 0.9)])
    agent = SafeM3UCRL(everybody, tiny)
    with pytest.warns(UserWarning, match="staying put"), pytest.raises(ValueError, match="no distribution meets"):
        agent.learn(1)
    assert len(agent.history) == 0
