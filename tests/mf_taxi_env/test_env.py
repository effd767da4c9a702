"""The Gymnasium envs: both checkers without a warning, and the lifted MDP underneath, step by step."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import scipy.stats
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from mf_taxi_env import (
    CongestedMotion,
    CostWrapper,
    EntropyFloor,
    FreeMotion,
    Grid,
    RegionCoverage,
    Scenario,
    TaxiMDP,
)
from mf_taxi_env.parameterization import make_parameterization

Make = Callable[..., Scenario]

#: Every id that this package registers: a new one is tested without anyone remembering.
IDS = [
    name
    for name, spec in gym.registry.items()
    if isinstance(spec.entry_point, str) and spec.entry_point.split(".")[0].split(":")[0] == "mf_taxi_env"
]
PARAMETERIZATIONS = ["cells", "bilinear:8", "fourier:3", "network:4,3"]
#: Smaller than the default, where an id knows how.
SMALL: dict[str, dict[str, Any]] = {"MFTaxi-v0": {"cells": 6}, "MFSwarm1D-v0": {"cells": 20}}

worlds = pytest.mark.parametrize(("name", "parameterization"), [(i, p) for i in IDS for p in PARAMETERIZATIONS])


def make(name: str, **settings: Any) -> gym.Env[Any, Any]:
    """The env behind its wrappers."""
    return gym.make(name, **{**SMALL.get(name, {}), **settings}).unwrapped


def taxi(**settings: Any) -> gym.Env[Any, Any]:
    """A small taxi env behind its wrappers."""
    return make("MFTaxi-v0", **settings)


def action(env: gym.Env[Any, Any], seed: int = 0, size: float = 0.2) -> np.ndarray:
    """A legal action, repeatable."""
    return np.random.default_rng(seed).uniform(-size, size, env.action_space.shape).astype(np.float32)


class Frozen:
    """A policy that repeats fields."""

    def __init__(self, fields: list[Tensor]) -> None:
        self.fields = fields

    def field(self, mu: Tensor, t: int) -> Tensor:
        return self.fields[t]


def test_the_taxi_env_is_registered() -> None:
    """The public id is among those that the tests below run over."""
    assert "MFTaxi-v0" in IDS


@worlds
def test_gymnasiums_checker_has_nothing_to_say(name: str, parameterization: str) -> None:
    """check_env with every warning an error; there is no list of exceptions."""
    env = make(name, parameterization=parameterization)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)


@worlds
def test_stable_baselines_checker_has_nothing_to_say(name: str, parameterization: str) -> None:
    """SB3's check_env with every warning an error."""
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker.check_env(make(name, parameterization=parameterization), warn=True, skip_render_check=True)


@worlds
def test_spaces_are_flat_float32_boxes(name: str, parameterization: str) -> None:
    """Actions in [-1, 1] of the parameterization's length, observations of K masses."""
    env = make(name, parameterization=parameterization)
    world = env.mdp  # type: ignore[attr-defined]
    length = make_parameterization(parameterization, world.grid, world.action_dim).n_parameters
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (length,), np.float32)
    assert env.observation_space == gym.spaces.Box(0.0, 1.0, (world.grid.size,), np.float32)


@worlds
def test_reset_and_step_keep_the_contract(name: str, parameterization: str) -> None:
    """Types and shapes of the five values, the keys of info, and a cost that is the violation of the margin."""
    env = make(name, parameterization=parameterization)
    observation, info = env.reset(seed=3)
    values = [(observation, info)]
    observation, reward, terminated, truncated, info = env.step(action(env))
    values.append((observation, info))
    assert type(reward) is float
    assert terminated is False
    assert truncated is False
    for observation, info in values:
        assert isinstance(observation, np.ndarray)
        assert observation.dtype == np.float32
        assert observation in env.observation_space
        assert observation.sum() == pytest.approx(1.0, abs=1e-5)
        assert {"cost", "margin", "margins", "entropy", "kl"} <= info.keys()
        assert all(type(info[key]) is float for key in ("cost", "margin", "entropy", "kl"))
        assert all(type(value) is float for value in info["margins"].values())
        assert info["cost"] == max(0.0, -info["margin"])
        assert info["margin"] == min(info["margins"].values(), default=math.inf)
        assert info["entropy"] == pytest.approx(scipy.stats.entropy(observation) / math.log(observation.size), abs=1e-5)


@worlds
def test_the_env_is_the_rollout_of_its_mdp(name: str, parameterization: str) -> None:
    """Observations, rewards and margins are those of mdp.rollout under the same fields, and truncation ends the episode."""
    env = make(name, parameterization=parameterization, horizon=4)
    world = env.mdp  # type: ignore[attr-defined]
    actions = [action(env, seed) for seed in range(4)]
    shape = make_parameterization(parameterization, world.grid, world.action_dim)
    path = world.rollout(Frozen([shape.field(torch.from_numpy(a)) for a in actions]))
    observation, _ = env.reset(seed=0)
    np.testing.assert_allclose(observation, path.mu[0].numpy(), atol=1e-6)
    for t, a in enumerate(actions):
        observation, reward, terminated, truncated, info = env.step(a)
        np.testing.assert_allclose(observation, path.mu[t + 1].numpy(), atol=1e-6)
        assert reward == pytest.approx(float(path.rewards[t]), rel=1e-4, abs=1e-5)
        assert list(info["margins"].values()) == pytest.approx(path.margins[t].tolist(), abs=1e-5)
        assert (terminated, truncated) == (False, t == 3)


@worlds
def test_steps_without_a_running_episode_raise(name: str, parameterization: str) -> None:
    """ResetNeeded before the first reset and after the last step; reset starts again."""
    env = make(name, parameterization=parameterization, horizon=2)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(action(env))
    for _ in range(2):
        env.reset(seed=0)
        assert [env.step(action(env))[3] for _ in range(2)] == [False, True]
        with pytest.raises(gym.error.ResetNeeded):
            env.step(action(env))


@worlds
def test_episodes_repeat(name: str, parameterization: str) -> None:
    """The same seed and actions give the same episode, in the same env and in another."""
    runs = []
    env = make(name, parameterization=parameterization)
    for world in (env, env, make(name, parameterization=parameterization)):
        trace = [world.reset(seed=11)[0]]
        for t in range(3):
            observation, reward, *_ = world.step(action(world, t))
            trace += [observation, np.float64(reward)]
        runs.append(trace)
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@worlds
@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
def test_copies_go_on_where_the_original_is(name: str, parameterization: str, way: str) -> None:
    """A copy made in the middle of an episode takes the same next step, and is independent."""
    env = make(name, parameterization=parameterization)
    env.reset(seed=0)
    env.step(action(env, 1))
    other = pickle.loads(pickle.dumps(env)) if way == "pickle" else copy.deepcopy(env)
    first = env.step(action(env, 2))
    second = other.step(action(env, 2))
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1:4] == second[1:4]


@worlds
@pytest.mark.parametrize("kind", ["short", "matrix", "scalar", "nan", "infinite", "large", "small"])
def test_bad_actions_raise_and_change_nothing(name: str, parameterization: str, kind: str) -> None:
    """ValueError naming what is wrong, and an episode that goes on as if nothing had been asked."""
    env, twin = (make(name, parameterization=parameterization) for _ in range(2))
    good = action(env)
    bad: Any = good.copy()
    if kind == "short":
        bad = bad[:-1]
    elif kind == "matrix":
        bad = bad[None]
    elif kind == "scalar":
        bad = 0.0
    else:
        bad[1] = {"nan": math.nan, "infinite": math.inf, "large": 1.001, "small": -1.001}[kind]
    env.reset(seed=0)
    twin.reset(seed=0)
    message = r"action must have shape \(\d+,\), got" if kind in ("short", "matrix", "scalar") else r"\[-1, 1\]; 1 of \d+"
    with pytest.raises(ValueError, match=message):
        env.step(bad)
    for a in (good, good):
        first, second = env.step(a), twin.step(a)
        np.testing.assert_array_equal(first[0], second[0])
        assert first[1:4] == second[1:4]


@worlds
def test_any_array_of_legal_numbers_is_an_action(name: str, parameterization: str) -> None:
    """Read-only, reversed, double-precision and listed actions are the same action, without a warning."""
    env = make(name, parameterization=parameterization)
    a = action(env)
    frozen = a.copy()
    frozen.flags.writeable = False
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for form in (a, frozen, a[::-1].copy()[::-1], a.astype(np.float64), a.tolist()):
            env.reset(seed=0)
            results.append(env.step(form)[0])
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


@worlds
def test_results_are_not_overwritten_by_later_steps(name: str, parameterization: str) -> None:
    """A replay buffer may keep what it got: observations are fresh arrays, and writing to them does not move the fleet."""
    env = make(name, parameterization=parameterization)
    first = env.reset(seed=0)[0]
    kept = first.copy()
    second = env.step(action(env, 1))[0]
    np.testing.assert_array_equal(first, kept)
    untouched = make(name, parameterization=parameterization)
    untouched.reset(seed=0)
    untouched.step(action(env, 1))
    second[:] = 0.0
    np.testing.assert_array_equal(env.step(action(env, 2))[0], untouched.step(action(env, 2))[0])


@worlds
def test_closing_twice_is_fine(name: str, parameterization: str) -> None:
    """As Gymnasium asks."""
    env = make(name, parameterization=parameterization)
    env.close()
    env.close()


@pytest.mark.parametrize("name", IDS)
def test_frames_show_the_episode(name: str) -> None:
    """rgb_array gives a frame at any time of an episode, without a display; a step changes it."""
    pygame = pytest.importorskip("pygame")
    env = make(name, render_mode="rgb_array")
    with pytest.raises(gym.error.ResetNeeded):
        env.render()
    env.reset(seed=0)
    first = env.render()
    env.step(action(env, size=1.0))
    second = env.render()
    for frame in (first, second):
        assert isinstance(frame, np.ndarray)
        assert (frame.dtype, frame.shape) == (np.uint8, (540, 960, 3))
    assert (first != second).any()
    assert not pygame.display.get_init()
    copied = pickle.loads(pickle.dumps(env))
    np.testing.assert_array_equal(copied.render(), second)
    env.close()
    env.close()


@pytest.mark.parametrize("name", IDS)
def test_a_window_follows_the_episode(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """human draws on reset and on every step by itself, here into SDL's dummy display, and returns nothing."""
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = make(name, render_mode="human")
    env.metadata = {**env.metadata, "render_fps": 1000}
    env.reset(seed=0)
    env.step(action(env))
    assert env.render() is None
    env.close()


def test_videos_can_be_recorded(tmp_path: Path) -> None:
    """Gymnasium's RecordVideo writes an episode."""
    pytest.importorskip("moviepy")
    env = gym.wrappers.RecordVideo(
        gym.make("MFTaxi-v0", cells=5, horizon=3, render_mode="rgb_array"), str(tmp_path / "videos"), disable_logger=True
    )
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros(128, np.float32))
    env.close()
    (video,) = (tmp_path / "videos").glob("*.mp4")
    assert video.stat().st_size > 1000


def test_rendering_without_a_mode_says_how() -> None:
    """A hint, not a crash, as in Gymnasium's own envs."""
    env = gym.make("MFTaxi-v0", cells=5).unwrapped
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode='rgb_array'"):
        assert env.render() is None


def test_seeding_reaches_np_random() -> None:
    """reset(seed) seeds the generator that Gymnasium promises."""
    env = taxi()
    env.reset(seed=5)
    first = env.np_random.random()
    env.reset(seed=5)
    assert env.np_random.random() == first


def test_module_and_id_make_the_env() -> None:
    """gym.make("mf_taxi_env:MFTaxi-v0") imports what it needs; wrappers pass everything through."""
    env = gym.make("mf_taxi_env:MFTaxi-v0", cells=5, horizon=2)
    env.reset(seed=0)
    assert [env.step(np.zeros(128, np.float32))[3] for _ in range(2)] == [False, True]


def test_density_is_mass_times_cells() -> None:
    """Observations of order one, with the bounds to match."""
    mass, density = taxi(), taxi(observation="density")
    assert density.observation_space == gym.spaces.Box(0.0, 36.0, (36,), np.float32)
    np.testing.assert_allclose(density.reset(seed=0)[0], 36 * mass.reset(seed=0)[0], rtol=1e-6)
    first, second = density.step(action(density))[0], mass.step(action(mass))[0]
    np.testing.assert_allclose(first, 36 * second, rtol=1e-6)
    assert first in density.observation_space


@pytest.mark.parametrize("observation", ["mass", "density"])
def test_time_is_observed_when_asked(observation: str) -> None:
    """t / T is the last entry, from 0 to 1; the rest is unchanged."""
    env = taxi(observe_time=True, observation=observation, horizon=4)
    plain = taxi(observation=observation, horizon=4)
    assert env.observation_space.shape == (37,)
    seen = [env.reset(seed=0)[0]]
    expected = [plain.reset(seed=0)[0]]
    for _ in range(4):
        seen.append(env.step(action(env))[0])
        expected.append(plain.step(action(plain))[0])
    assert [float(x[-1]) for x in seen] == [0.0, 0.25, 0.5, 0.75, 1.0]
    for a, b in zip(seen, expected, strict=True):
        assert a in env.observation_space
        np.testing.assert_array_equal(a[:-1], b)


def test_a_crowded_cell_stays_within_the_bounds() -> None:
    """Everybody in one corner: rounding does not leave the observation space."""
    for observation in ("mass", "density"):
        env = taxi(observation=observation, parameterization="cells")
        env.reset(seed=0)
        for _ in range(12):
            assert env.step(np.ones(72, np.float32))[0] in env.observation_space


def test_an_episode_may_start_anywhere() -> None:
    """A given distribution is the first observation, on its mass as on any other type, and holds for one episode."""
    env = taxi()
    given = np.arange(36.0) / np.arange(36).sum()
    observation, info = env.reset(options={"initial": given})
    np.testing.assert_allclose(observation, given, atol=1e-7)
    assert info["entropy"] == pytest.approx(scipy.stats.entropy(given) / math.log(36), abs=1e-5)
    np.testing.assert_array_equal(env.reset(options={"initial": given.tolist()})[0], observation)
    np.testing.assert_allclose(env.reset()[0], 1 / 36)


def test_gaussian_starts_are_random_safe_and_repeatable() -> None:
    """Each draw differs, keeps the floor however high it is, and comes back with the seed."""
    env = taxi(constraints=(EntropyFloor(0.97),))
    starts = [env.reset(seed=seed, options={"initial": "gaussian"}) for seed in (1, 2, 1)]
    np.testing.assert_array_equal(starts[0][0], starts[2][0])
    assert np.abs(starts[0][0] - starts[1][0]).max() > 1e-3
    for observation, info in starts:
        assert info["margin"] >= 0
        assert info["entropy"] < 0.9999
        assert observation in env.observation_space
    free = taxi(constraints=())
    assert free.reset(seed=1, options={"initial": "gaussian"})[1]["entropy"] < starts[0][1]["entropy"]


def test_gaussian_starts_on_a_ring_have_no_seam() -> None:
    """The first and the last cell of the swarm's ring are neighbours: no start jumps between them more than elsewhere."""
    env = make("MFSwarm1D-v0")
    for seed in range(20):
        mass = env.reset(seed=seed, options={"initial": "gaussian"})[0]
        jumps = np.abs(np.diff(mass))
        assert abs(mass[0] - mass[-1]) <= 1.5 * jumps.max()


def test_the_scenario_of_the_day(make_scenario: Make) -> None:
    """A reset may bring another city, on the env's grid, with its demand and trips; the next reset is at home again."""
    env, day = taxi(cells=5), make_scenario(5)
    env.reset(options={"scenario": day})
    visitor = taxi(cells=5, scenario=day)
    visitor.reset()
    np.testing.assert_array_equal(env.step(action(env))[0], visitor.step(action(visitor))[0])
    assert env.mdp.scenario is day  # type: ignore[attr-defined]
    env.reset()
    assert env.mdp.scenario.name == "shenzhen"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "uniform"}, r"unknown reset options \['start'\]; allowed are"),
        ({"initial": "nowhere"}, r"must be one of \('uniform', 'gaussian'\) or a distribution, got 'nowhere'"),
        ({"initial": np.ones(5) / 5}, r"must have shape \(36,\), got \(5,\)"),
        ({"initial": np.ones(36)}, "sum to one"),
        ({"initial": np.full(36, np.nan)}, "sum to one"),
        ({"initial": np.concatenate([[-0.5, 1.5], np.zeros(34)])}, "non-negative"),
        ({"scenario": "atlantis"}, "unknown scenario 'atlantis'"),
        ({"scenario": 3}, "scenario must be a name, a path or a Scenario, got 3"),
        ({"initial": None}, "or a distribution, got None"),
        ({"scenario": "synthetic", "initial": b"abc"}, "or a distribution, got b'abc'"),
        ({1: 2, "start": 3}, r"unknown reset options \['1', 'start'\]"),
    ],
)
def test_bad_reset_options_raise_and_change_nothing(options: dict[str, Any], message: str) -> None:
    """The running episode goes on as if nothing had been asked."""
    env, twin = taxi(), taxi()
    for one in (env, twin):
        one.reset(seed=0)
        one.step(action(one))
    with pytest.raises(ValueError, match=message):
        env.reset(seed=99, options=options)
    assert env.mdp.scenario.name == "shenzhen"  # type: ignore[attr-defined]
    assert env.np_random.random() == twin.np_random.random()
    np.testing.assert_array_equal(env.step(action(env))[0], twin.step(action(twin))[0])


def test_the_cost_as_a_value_of_its_own() -> None:
    """The six-tuple of safe RL libraries: info's cost between reward and termination, the rest unchanged."""
    plain, wrapped = taxi(parameterization="cells"), CostWrapper(taxi(parameterization="cells"))
    plain.reset(seed=0)
    wrapped.reset(seed=0)
    crowd = np.ones(72, np.float32)
    observation, reward, terminated, truncated, info = plain.step(crowd)
    six = wrapped.step(crowd)
    np.testing.assert_array_equal(six[0], observation)
    assert six[1:] == (reward, info["cost"], terminated, truncated, info)
    assert six[2] > 0
    costless = CostWrapper(gym.make("CartPole-v1"))
    costless.reset()
    with pytest.raises(KeyError, match="cost"):
        costless.step(0)  # type: ignore[arg-type]


def test_info_after_reset_describes_the_start() -> None:
    """The uniform distribution: entropy one, the largest margin, no cost."""
    env = taxi(constraints=(EntropyFloor(0.9),))
    _, info = env.reset(seed=0)
    assert info["entropy"] == pytest.approx(1.0, abs=1e-6)
    assert info["margin"] == pytest.approx(0.1 * math.log(36), abs=1e-5)
    assert info["cost"] == 0.0


def test_kl_and_reward_share_their_distribution(make_scenario: Make) -> None:
    """kl is that of the observed distribution: minus the reward at timing "next", minus the next reward at "current"."""
    city = make_scenario(5)
    following = taxi(scenario=city, cells=5, reward_timing="next")
    current = taxi(scenario=city, cells=5, reward_timing="current")
    following.reset(seed=0)
    expected = current.reset(seed=0)[1]["kl"]
    for t in range(3):
        observation, reward, _, _, info = following.step(action(following, t))
        assert reward == pytest.approx(-info["kl"], rel=1e-5)
        assert info["kl"] == pytest.approx(scipy.stats.entropy(city.demand, observation), rel=1e-3)
        _, reward, _, _, info = current.step(action(current, t))
        assert reward == pytest.approx(-expected, rel=1e-5)
        expected = info["kl"]


def test_a_violation_costs() -> None:
    """Crowding into one corner breaks the floor: the cost is the violation in nats."""
    env = taxi(constraints=(EntropyFloor(0.9),), parameterization="cells")
    env.reset(seed=0)
    observation, _, terminated, _, info = env.step(np.ones(72, np.float32))
    assert info["cost"] == pytest.approx(0.9 * math.log(36) - scipy.stats.entropy(observation), abs=1e-4)
    assert info["cost"] > 1.0
    assert not terminated


def test_without_constraints_nothing_costs() -> None:
    """An empty sequence of constraints: no margins, an infinite margin, no cost."""
    env = taxi(constraints=())
    env.reset(seed=0)
    info = env.step(action(env))[4]
    assert (info["margins"], info["margin"], info["cost"]) == ({}, math.inf, 0.0)


def test_a_city_of_one_cell_works() -> None:
    """The smallest grid: entropy has no scale there, and nothing divides by it."""
    env = taxi(cells=1, parameterization="cells")
    _, info = env.reset(seed=0)
    assert math.isfinite(info["entropy"])
    assert env.step(np.zeros(2, np.float32))[0].tolist() == [1.0]


def test_scenarios_come_as_object_name_or_path(make_scenario: Make, tmp_path: Path) -> None:
    """A scenario, its file, and a built-in; each on the grid that was asked for."""
    city = make_scenario(4)
    path = city.save(tmp_path / "city.npz")
    for scenario in (city, path, str(path)):
        world = taxi(scenario=scenario, cells=8).mdp  # type: ignore[attr-defined]
        assert world.grid == Grid(8)
        np.testing.assert_allclose(world.scenario.demand, city.resample(8).demand)
    assert taxi(scenario="shenzhen").mdp.scenario.name == "shenzhen"  # type: ignore[attr-defined]


def test_arguments_reach_the_mdp(make_scenario: Make) -> None:
    """Every setting of the world is the one that was asked for."""
    motion = FreeMotion()
    env = taxi(motion=motion, noise_std=0.05, horizon=7, reward_timing="next", constraints=(EntropyFloor(0.3),))
    world = env.mdp  # type: ignore[attr-defined]
    assert isinstance(world, TaxiMDP)
    assert world.motion is motion
    assert (world.noise.std, world.horizon, world.reward_timing) == (0.05, 7, "next")
    assert world.constraints == (EntropyFloor(0.3),)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("scenario", "atlantis"),
        ("cells", 0),
        ("cells", 2.5),
        ("horizon", 0),
        ("observation", "image"),
        ("parameterization", "spline:3"),
        ("parameterization", 5),
        ("parameterization", make_parameterization("cells", Grid(3), 2)),
        ("motion", "warp"),
        ("noise_std", -1.0),
        ("reward_timing", "later"),
    ],
)
def test_bad_arguments_raise(argument: str, value: object) -> None:
    """ValueError that names the argument when the env is made, not when it is stepped."""
    with pytest.raises(ValueError, match=f"{argument}"):
        taxi(**{argument: value})


def test_an_unknown_render_mode_raises() -> None:
    """Gymnasium warns of it, and the env refuses."""
    with pytest.warns(UserWarning, match="render_mode='ansi'"), pytest.raises(ValueError, match="render_mode must be None or"):
        taxi(render_mode="ansi")


def test_unknown_arguments_raise() -> None:
    """No silent keyword arguments, and the message says whose they are and what there is."""
    with pytest.raises(
        TypeError, match=r"MFTaxi-v0 got an unexpected keyword argument 'paramterization'; it has scenario, cells,"
    ):
        taxi(paramterization="cells")
    with pytest.raises(
        TypeError, match=r"MFSwarm1D-v0 got an unexpected keyword argument 'scenario'; it has .*, render_mode\b"
    ):
        make("MFSwarm1D-v0", scenario="shenzhen")
    for name in ("MFTaxi-v0", "MFSwarm1D-v0"):
        with pytest.raises(TypeError, match=r"argument 'backnd'; it has .*, num_envs, backend, max_episode_steps\b"):
            gym.make_vec(name, num_envs=2, backnd="torch")


@pytest.mark.parametrize("constraints", [EntropyFloor(0.9), "entropy", ["entropy"], (EntropyFloor,), 3])
def test_what_is_no_sequence_of_constraints_raises(constraints: object) -> None:
    """When the env is made."""
    with pytest.raises(ValueError, match="constraints must be a sequence of constraints"):
        taxi(constraints=constraints)


def test_constraints_may_come_from_a_generator(make_scenario: Make) -> None:
    """They serve the scenario of the day as they served the env's own."""
    env = taxi(constraints=(EntropyFloor(fraction) for fraction in (0.5, 0.6)))
    env.reset(options={"scenario": make_scenario(6)})
    assert len(env.mdp.constraints) == 2  # type: ignore[attr-defined]


def test_a_constraint_of_another_grid_raises() -> None:
    """When the env is made, not in an episode."""
    with pytest.raises(ValueError, match=r"16|36"):
        taxi(constraints=(RegionCoverage([True] * 16, 0.1),))


@pytest.mark.parametrize(
    ("motion", "message"),
    [
        (lambda s, mu, a: s + a, r"destinations in \[0, 1\]; under actions of -1 some are not"),
        (lambda s, mu, a: (s + a).clamp(0, 1).double(), "of torch.float32, got"),
        (lambda s, mu, a: (s + a).numpy(), "of torch.float32, got"),
        (lambda s, mu, a: s[:1], r"destinations \(36, 2\)"),
        (lambda s, mu, a: s * torch.nan, r"destinations in \[0, 1\]"),
        (CongestedMotion(Grid(4)), r"motion is made for Grid\(cells=4"),
    ],
)
def test_motions_that_do_not_fit_the_city_raise(motion: Any, message: str) -> None:
    """A taxi that leaves the city would turn the fleet into no number, and a NaN would pass for safe."""
    with pytest.raises(ValueError, match=message):
        taxi(motion=motion)


def test_spawned_workers_can_make_the_env() -> None:
    """A fresh process knows nothing of this one's registrations: "module:id" brings them along."""
    factory = partial(gym.make, "mf_taxi_env:MFTaxi-v0", cells=5, horizon=3)
    workers = gym.vector.AsyncVectorEnv([factory], context="spawn")
    try:
        observations, _ = workers.reset(seed=0)
        steps = [workers.step(np.zeros((1, 128), np.float32)) for _ in range(3)]
    finally:
        workers.close()
    local = gym.make("MFTaxi-v0", cells=5, horizon=3)
    np.testing.assert_array_equal(observations[0], local.reset(seed=0)[0])
    for step in steps:
        np.testing.assert_array_equal(step[0][0], local.step(np.zeros(128, np.float32))[0])
    assert [bool(step[3][0]) for step in steps] == [False, False, True]


def test_two_constraints_of_one_kind_are_told_apart() -> None:
    """Margins of two entropy floors both reach ``info``."""
    env = gym.make("MFTaxi-v0", cells=5, constraints=(EntropyFloor(0.5), EntropyFloor(0.6)))
    _, info = env.reset()
    assert sorted(info["margins"]) == ["entropy:0", "entropy:1"]
    assert info["margins"]["entropy:0"] > info["margins"]["entropy:1"] == info["margin"]


def test_a_motion_may_differentiate_inside() -> None:
    """Such as one that follows a potential: a step computes no gradients of its own, and forbids none."""

    class Downhill:
        def __call__(self, positions: torch.Tensor, mu: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                place = positions.detach().clone().requires_grad_()
                (slope,) = torch.autograd.grad((place - 0.5).square().sum(), place)
            return (positions + actions - 0.1 * slope).clamp(0.0, 1.0)

    for env in (taxi(motion=Downhill()), gym.make_vec("MFTaxi-v0", num_envs=2, cells=5, motion=Downhill())):
        env.reset(seed=0)
        assert np.isfinite(env.step(np.zeros(env.action_space.shape, np.float32))[0]).all()


@pytest.mark.parametrize("parameterization", ["bilinear:3", "fourier:2", "network:4"])
def test_constants_made_in_a_step_serve_gradients(parameterization: str) -> None:
    """What a step keeps for the next one can be used by a planner in the same process."""
    env = taxi(cells=7, noise_std=0.031, parameterization=parameterization)  # numbers that no other test has asked for
    env.reset(seed=0)
    # A planner in float64 has come before: what is kept has to be made anew in the step.
    env.unwrapped.parameterization.field(torch.zeros(env.action_space.shape, dtype=torch.float64))
    env.step(np.zeros(env.action_space.shape, np.float32))
    mdp, action = env.unwrapped.mdp, torch.zeros(env.action_space.shape, requires_grad=True)
    field = env.unwrapped.parameterization.field(action)
    mdp.transition(mdp.initial(), field).square().sum().backward()
    assert action.grad is not None and action.grad.isfinite().all()


@pytest.mark.parametrize("timing", ["current", "next"])
def test_every_step_has_its_own_demand_and_trips(make_scenario: Make, timing: str) -> None:
    """In a city that changes by step, single and batch: distributions, rewards and KL are those of the world at that step."""
    city = make_scenario(5, steps=3)
    given: dict[str, Any] = {"scenario": city, "cells": 5, "horizon": 4, "reward_timing": timing, "parameterization": "cells"}
    env, envs = make("MFTaxi-v0", **given), gym.make_vec("MFTaxi-v0", num_envs=2, **given)
    mdp = TaxiMDP(city, horizon=4, reward_timing=timing)  # type: ignore[arg-type]
    env.reset(seed=0)
    envs.reset(seed=0)
    mu = mdp.initial()
    for t in range(4):
        taken = action(env, t)
        field = torch.from_numpy(taken).view(25, 2)
        after = mdp.transition(mu, field, t)
        seen, reward, *_, info = env.step(taken)
        several, rewards, *_, infos = envs.step(np.stack([taken, taken]))
        for state, earned, kl in ((seen, reward, info["kl"]), (several[1], rewards[1], infos["kl"][1])):
            np.testing.assert_allclose(state, after, atol=1e-6)
            assert earned == pytest.approx(float(mdp.reward(mu, field, after, t)), rel=1e-4)
            assert kl == pytest.approx(float(mdp.target_kl(after, t)), rel=1e-4)
        mu = after


class NoNumber:
    """A constraint whose margin is NaN, as that of a state which is no distribution."""

    name, lipschitz = "none", 1.0

    def margin(self, mu: Tensor) -> Tensor:
        return mu[..., 0] * math.nan

    def convex_margin(self, mu: Any) -> Any:
        raise TypeError


def test_a_margin_that_is_no_number_costs_no_number() -> None:
    """A client that adds up costs must not take a broken state for a safe one."""
    assert math.isnan(taxi(constraints=(NoNumber(),)).reset(seed=0)[1]["cost"])
    envs = gym.make_vec("MFTaxi-v0", num_envs=2, cells=5, constraints=(NoNumber(),))
    assert np.isnan(envs.reset(seed=0)[1]["cost"]).all()


def test_defaults_are_the_documented_ones() -> None:
    """Papers say ``gym.make`` and an id: what that stands for does not change unnoticed."""
    env: Any = gym.make("MFTaxi-v0").unwrapped
    world = env.mdp
    found = (world.scenario.name, world.grid, world.horizon, world.noise.std, world.reward_timing)
    assert found == ("shenzhen", Grid(25), 12, 0.0175, "current")
    assert world.motion == FreeMotion() and world.constraints == (EntropyFloor(world.scenario.entropy_floor),)
    assert env.action_space.shape == (128,)
    assert env.observation_space == gym.spaces.Box(0.0, 1.0, (625,), np.float32)
    swarm: Any = gym.make("MFSwarm1D-v0").unwrapped
    there = swarm.mdp
    found = (there.grid.cells, there.grid.dimension, there.horizon, there.dt, there.max_speed, there.density_term)
    assert found == (100, 1, 100, 0.01, 7.0, True) and there.constraints == ()


@pytest.mark.parametrize("name", IDS)
def test_a_frame_is_of_the_present_state(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """State, actions, target and margin of the step that was made, not those of another."""
    pytest.importorskip("pygame")
    shown: list[Any] = []
    monkeypatch.setattr("mf_taxi_env.envs.mean_field_env.Viewer.draw", lambda self, frame: shown.append(frame))
    env: Any = make(name, render_mode="rgb_array", parameterization="cells")
    start, _ = env.reset(seed=0, options={"initial": "gaussian"})
    env.render()
    taken = action(env)
    after, *_, info = env.step(taken)
    env.render()
    np.testing.assert_allclose(shown[0].mu, start, atol=1e-6)
    np.testing.assert_allclose(shown[1].mu, after, atol=1e-6)
    assert shown[0].actions is None and shown[1].t == 1
    assert shown[1].margin == info["margin"]
    np.testing.assert_allclose(shown[1].actions.ravel(), taken, atol=1e-6)
    target = env.mdp.target(0)
    assert (shown[1].target is None) == (target is None)
    if target is not None:
        np.testing.assert_allclose(shown[1].target, target, atol=1e-7)


@pytest.mark.parametrize("name", IDS)
def test_one_set_of_arguments_makes_one_env_or_many(name: str) -> None:
    """``render_mode=None`` is what ``gym.make`` takes; a batch takes it, too, and refuses all others by name."""
    settings: dict[str, Any] = {**SMALL[name], "render_mode": None}
    assert gym.make(name, **settings).unwrapped.render_mode is None
    assert gym.make_vec(name, num_envs=2, **settings).num_envs == 2
    spec: Any = gym.spec(name)
    with pytest.raises(ValueError, match="render_mode must be None"):
        gym.envs.registration.load_env_creator(spec.vector_entry_point)(2, **{**settings, "render_mode": "human"})


class NightFloor(EntropyFloor):
    """A constraint of the user's own, made from a built-in one."""

    def margin(self, mu: Tensor) -> Tensor:  # type: ignore[override]
        return super().margin(mu) - 0.01


def test_a_subclass_of_a_constraint_is_asked_as_it_is() -> None:
    """Its margin, which takes masses alone, in the world and in the env alike."""
    env: Any = taxi(constraints=(NightFloor(0.5),))
    _, info = env.reset(seed=0)
    assert info["margin"] == pytest.approx(float(env.mdp.margins(env.mdp.initial())), abs=1e-6)
