"""The native vector envs: episode i is what the single env does with seed i, on any backend, and no bad action spreads."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from mf_taxi_env import EntropyFloor, Scenario
from mf_taxi_env.parameterization import make_parameterization

IDS = [
    name
    for name, spec in gym.registry.items()
    if isinstance(spec.entry_point, str) and spec.entry_point.split(".")[0].split(":")[0] == "mf_taxi_env"
]
#: Smaller than the default, where an id knows how.
SMALL: dict[str, dict[str, Any]] = {"MFTaxi-v0": {"cells": 5}, "MFSwarm1D-v0": {"cells": 20}}

ids = pytest.mark.parametrize("name", IDS)


def batch(name: str = "MFTaxi-v0", num_envs: int = 3, **settings: Any) -> Any:
    """A native vector env, as gym.make_vec gives it."""
    return gym.make_vec(name, num_envs=num_envs, **{**SMALL.get(name, {}), "horizon": 3, **settings})


def single(name: str = "MFTaxi-v0", **settings: Any) -> Any:
    """The single env behind its wrappers."""
    return gym.make(name, **{**SMALL.get(name, {}), "horizon": 3, **settings}).unwrapped


def actions(envs: Any, seed: int, size: float = 0.3) -> np.ndarray:
    """Legal actions, one row per env, repeatable."""
    return np.random.default_rng(seed).uniform(-size, size, envs.action_space.shape).astype(np.float32)


@ids
def test_make_vec_gives_the_native_env(name: str) -> None:
    """No process and no loop per env; the autoreset mode is declared."""
    envs = batch(name)
    assert type(envs.unwrapped).__module__.startswith("mf_taxi_env.")
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert envs.num_envs == 3
    assert envs.single_observation_space == single(name).observation_space
    assert envs.single_action_space == single(name).action_space
    assert envs.observation_space.shape == (3, *envs.single_observation_space.shape)
    envs.close()
    envs.close()


@ids
@pytest.mark.parametrize("num_envs", [1, 3, 16])
@pytest.mark.parametrize("initial", ["uniform", "gaussian"])
def test_a_batch_is_its_single_envs(name: str, num_envs: int, initial: str) -> None:
    """Step by step: observations, rewards, ends and every info, through the end of the episode."""
    options = {"initial": initial}
    envs, singles = batch(name, num_envs, observe_time=True), [single(name, observe_time=True) for _ in range(num_envs)]
    observations, infos = envs.reset(seed=7, options=options)
    expected = [env.reset(seed=7 + i, options=options) for i, env in enumerate(singles)]
    for t in range(3):
        for i, (observation, info) in enumerate(expected):
            np.testing.assert_allclose(observations[i], observation, atol=1e-6)
            assert observations[i] in envs.single_observation_space
            for key in ("cost", "margin", "entropy", "kl"):
                assert infos[key][i] == pytest.approx(info[key], rel=1e-4, abs=1e-5)
                assert infos[f"_{key}"][i]
            assert {k for k in infos["margins"] if k[0] != "_"} == set(info["margins"])
            for key, value in info["margins"].items():
                assert infos["margins"][key][i] == pytest.approx(value, abs=1e-5)
        a = actions(envs, t)
        observations, rewards, terminated, truncated, infos = envs.step(a)
        steps = [env.step(a[i]) for i, env in enumerate(singles)]
        expected = [(step[0], step[4]) for step in steps]
        np.testing.assert_allclose(rewards, [step[1] for step in steps], rtol=1e-4, atol=1e-5)
        assert terminated.tolist() == [step[2] for step in steps]
        assert truncated.tolist() == [step[3] for step in steps]


@ids
def test_autoreset_as_gymnasiums_own_vector_env(name: str) -> None:
    """The step after the last: no reward, no end, the first observation; against SyncVectorEnv over two episodes and more."""
    envs = batch(name)
    reference = gym.make_vec(name, num_envs=3, vectorization_mode="sync", **{**SMALL.get(name, {}), "horizon": 3})
    np.testing.assert_allclose(envs.reset(seed=0)[0], reference.reset(seed=0)[0])
    for t in range(9):
        a = actions(envs, t)
        mine, theirs = envs.step(a), reference.step(a)
        np.testing.assert_allclose(mine[0], theirs[0], atol=1e-6)
        np.testing.assert_allclose(mine[1], theirs[1], rtol=1e-4, atol=1e-5)
        for flag in (2, 3):
            np.testing.assert_array_equal(mine[flag], theirs[flag])
            assert mine[flag].dtype == theirs[flag].dtype
        assert mine[1].dtype == theirs[1].dtype
        assert mine[0].dtype == theirs[0].dtype
        assert set(mine[4]) == set(theirs[4])
        for key in ("cost", "_cost"):
            np.testing.assert_allclose(mine[4][key], theirs[4][key], atol=1e-6)
            assert mine[4][key].dtype == theirs[4][key].dtype


@ids
def test_torch_clients_get_tensors(name: str) -> None:
    """The same numbers, as tensors that stay on the env's device; actions may be tensors or arrays."""
    arrays, tensors = batch(name), batch(name, backend="torch")
    first, second = arrays.reset(seed=0), tensors.reset(seed=0)
    assert isinstance(second[0], torch.Tensor)
    np.testing.assert_array_equal(first[0], second[0].numpy())
    for t in range(4):
        a = actions(arrays, t)
        first, second = arrays.step(a), tensors.step(torch.from_numpy(a) if t % 2 else a)
        for x, y in zip(first[:4], second[:4], strict=True):
            assert isinstance(y, torch.Tensor)
            np.testing.assert_allclose(x, y.numpy(), atol=1e-6)
        np.testing.assert_allclose(first[4]["margin"], second[4]["margin"].numpy(), atol=1e-6)


@ids
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1.01])
def test_one_bad_action_corrupts_nobody(name: str, bad: float) -> None:
    """The error names the env, and all episodes go on as if nothing had been asked."""
    envs, twin = batch(name), batch(name)
    envs.reset(seed=0)
    twin.reset(seed=0)
    a = actions(envs, 0)
    spoilt = a.copy()
    spoilt[1, 0] = bad
    with pytest.raises(ValueError, match=r"finite and lie in \[-1, 1\]; 1 of \d+ entries do not, in the envs \[1\]"):
        envs.step(spoilt)
    np.testing.assert_array_equal(envs.step(a)[0], twin.step(a)[0])
    with pytest.raises(ValueError, match="action must have shape"):
        envs.step(a[:, :-1])


def test_each_episode_may_have_its_own_start() -> None:
    """A row per env, kept over autoresets until the next reset."""
    envs = batch()
    starts = np.random.default_rng(0).dirichlet(np.ones(25), 3)
    np.testing.assert_allclose(envs.reset(options={"initial": starts})[0], starts, atol=1e-7)
    for t in range(4):
        observations = envs.step(actions(envs, t))[0]
    np.testing.assert_allclose(observations, starts, atol=1e-7)
    np.testing.assert_allclose(envs.reset()[0], 1 / 25)


def test_a_start_is_the_envs_own() -> None:
    """The client's array may change after the reset: an autoreset starts where it was asked to."""
    envs, start = batch(), np.full(25, 1 / 25)
    envs.reset(options={"initial": start})
    start[:] = -1.0
    for t in range(4):
        observations = envs.step(actions(envs, t))[0]
    np.testing.assert_allclose(observations, 1 / 25, atol=1e-7)


def test_the_step_that_starts_anew_takes_any_action() -> None:
    """It ignores them, as Gymnasium's own vector envs do: padding after the end is no error."""
    envs = batch()
    envs.reset(seed=0)
    for t in range(3):
        envs.step(actions(envs, t))
    assert envs.step(np.full(envs.action_space.shape, np.nan))[1].tolist() == [0.0, 0.0, 0.0]


def test_seeds_of_any_integer_kind() -> None:
    """NumPy integers and arrays of them; None leaves an episode's generator alone; the env's own seed is the first."""
    envs = batch()
    options = {"initial": "gaussian"}
    first = envs.reset(seed=5, options=options)[0]
    np.testing.assert_array_equal(envs.reset(seed=np.int64(5), options=options)[0], first)
    np.testing.assert_array_equal(envs.reset(seed=np.arange(5, 8), options=options)[0], first)
    assert envs.unwrapped.np_random_seed == 5
    partly = envs.reset(seed=[5, None, 7], options=options)[0]
    np.testing.assert_array_equal(partly[[0, 2]], first[[0, 2]])
    assert np.abs(partly[1] - first[1]).max() > 1e-3


def test_a_failed_reset_changes_nothing() -> None:
    """Not the episode, not the world, not the randomness."""
    envs, twin = batch(), batch()
    for one in (envs, twin):
        one.reset(seed=0, options={"initial": "gaussian"})
    for bad in ({"seed": 9, "options": {"foo": 1}}, {"seed": [1]}, {"options": {"scenario": "synthetic", "initial": object()}}):
        with pytest.raises(ValueError, match=r"unknown reset|seed must|or a distribution"):
            envs.reset(**bad)
    a = actions(envs, 0)
    np.testing.assert_array_equal(envs.step(a)[0], twin.step(a)[0])
    again = [one.reset(options={"initial": "gaussian"})[0] for one in (envs, twin)]
    np.testing.assert_array_equal(*again)


def test_gaussian_starts_differ_between_envs_and_episodes() -> None:
    """Every episode draws its own, from the generator of its env, and the seed brings them all back."""
    envs = batch()

    def episodes() -> list[np.ndarray]:
        seen = [envs.reset(seed=[3, 4, 5], options={"initial": "gaussian"})[0]]
        for t in range(4):
            last = envs.step(actions(envs, t))[0]
        return [*seen, last]

    first, again = episodes(), episodes()
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(first[0][0] - first[0][1]).max() > 1e-3
    assert np.abs(first[0][0] - first[1][0]).max() > 1e-3


def test_the_scenario_of_the_day(make_scenario: Any) -> None:
    """One city for all episodes until the next reset."""
    envs, day = batch(), make_scenario(5)
    assert isinstance(day, Scenario)
    envs.reset(options={"scenario": day})
    visitors = batch(scenario=day)
    visitors.reset()
    a = actions(envs, 0)
    np.testing.assert_array_equal(envs.step(a)[0], visitors.step(a)[0])


def test_episodes_may_be_cut_short() -> None:
    """make_vec hands max_episode_steps to the env, which has no TimeLimit around it."""
    envs = batch(max_episode_steps=2)
    envs.reset(seed=0)
    assert [bool(envs.step(actions(envs, t))[3].all()) for t in range(4)] == [False, True, False, False]


@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
def test_copies_go_on_where_the_original_is(way: str) -> None:
    """A copy in the middle of an episode takes the same next step."""
    envs = batch().unwrapped
    envs.reset(seed=0)
    envs.step(actions(envs, 0))
    other = pickle.loads(pickle.dumps(envs)) if way == "pickle" else copy.deepcopy(envs)
    np.testing.assert_array_equal(envs.step(actions(envs, 1))[0], other.step(actions(envs, 1))[0])


def test_no_gradient_is_kept() -> None:
    """A torch client's action with a gradient does not make the env hold a graph."""
    envs = batch(backend="torch")
    envs.reset(seed=0)
    a = torch.zeros(envs.action_space.shape, requires_grad=True)
    observation, reward, *_ = envs.step(a)
    assert not observation.requires_grad
    assert not reward.requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_envs": 0}, "num_envs must be an integer >= 1, got 0"),
        ({"num_envs": True}, "num_envs must be an integer >= 1, got True"),
        ({"max_episode_steps": 2.5}, "max_episode_steps must be an integer >= 1, got 2.5"),
        ({"backend": "jax"}, r"backend must be one of .*, got 'jax'"),
        ({"max_episode_steps": 0}, "max_episode_steps must be an integer >= 1, got 0"),
        ({"cells": 0}, "cells"),
    ],
)
def test_bad_arguments_raise(settings: dict[str, Any], message: str) -> None:
    """When the env is made, naming the argument."""
    with pytest.raises(ValueError, match=message):
        batch(**settings)


def test_steps_before_a_reset_and_bad_seeds_raise() -> None:
    """ResetNeeded, and a count of seeds that fits."""
    envs = batch()
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(actions(envs, 0))
    with pytest.raises(ValueError, match="seed must be one number or 3"):
        envs.reset(seed=[1, 2])


def test_tensors_of_a_batch_can_be_learned_from() -> None:
    """Observations on the device enter a network's gradient, which tensors of inference mode must not."""
    envs = batch(backend="torch")
    seen, _ = envs.reset(seed=0)
    for observation in (seen, envs.step(torch.zeros(envs.action_space.shape))[0]):
        weight = torch.ones(observation.shape[-1], requires_grad=True)
        (observation @ weight).sum().backward()
        assert weight.grad is not None and torch.allclose(weight.grad, observation.sum(0))


def test_names_of_constraints_and_parameterizations_carry_over() -> None:
    """The batch is the same world with the same spaces."""
    envs = batch(constraints=(EntropyFloor(0.5), EntropyFloor(0.6)), parameterization="fourier:2")
    assert {name for name in envs.reset()[1]["margins"] if name[0] != "_"} == {"entropy:0", "entropy:1"}
    assert envs.single_action_space.shape == (make_parameterization("fourier:2", envs.unwrapped.mdp.grid, 2).n_parameters,)
