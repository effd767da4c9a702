"""Real clients learn in the envs, or at least run in them: Gymnasium's vector envs, SB3, and, where installed, others."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import mf_taxi_env  # noqa: F401 - registers the ids

#: A small city whose reward an agent can improve in seconds: move a little, in eight by eight cells.
SMALL: dict[str, Any] = {"cells": 8, "parameterization": "bilinear:3", "observation": "density", "reward_timing": "next"}


def episode(env: gym.Env[Any, Any], choose: Callable[[Any], Any]) -> float:
    """Return of one episode."""
    observation, _ = env.reset(seed=0)
    total, truncated = 0.0, False
    while not truncated:
        observation, reward, _, truncated, _ = env.step(choose(observation))
        total += float(reward)
    return total


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_gymnasiums_vector_envs(mode: str) -> None:
    """The single env in Gymnasium's own vector envs gives what the native one gives."""
    theirs = gym.make_vec("mf_taxi_env:MFTaxi-v0", num_envs=2, vectorization_mode=mode, horizon=2, **SMALL)
    ours = gym.make_vec("MFTaxi-v0", num_envs=2, horizon=2, **SMALL)
    try:
        np.testing.assert_allclose(theirs.reset(seed=0)[0], ours.reset(seed=0)[0])
        for t in range(4):
            actions = np.random.default_rng(t).uniform(-0.2, 0.2, ours.action_space.shape).astype(np.float32)
            for mine, other in zip(ours.step(actions)[:4], theirs.step(actions)[:4], strict=True):
                np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)
    finally:
        theirs.close()


def test_forked_workers_do_not_wait_for_threads_that_are_gone() -> None:
    """After torch has worked with several threads here, AsyncVectorEnv's forked workers still step."""
    program = """
import warnings
import gymnasium as gym, numpy as np, torch, mf_taxi_env
torch.set_num_threads(2)
torch.ones(512, 512) @ torch.ones(512, 512)  # starts the threads
warnings.simplefilter("ignore")  # newer Pythons warn of forking with threads at all
envs = gym.make_vec("MFTaxi-v0", num_envs=2, vectorization_mode="async", vector_kwargs={"context": "fork"})
envs.reset(seed=0)
print(envs.step(np.zeros(envs.action_space.shape, np.float32))[1].shape)
envs.close()
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "2"}
    )
    assert finished.stdout.strip() == "(2,)", finished.stderr


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_workers_started_by_any_method(context: str) -> None:
    """A fresh process knows nothing of this one's registrations: "module:id" brings them along."""
    envs = gym.make_vec(
        "mf_taxi_env:MFTaxi-v0",
        num_envs=1,
        vectorization_mode="async",
        vector_kwargs={"context": context},
        **SMALL,
    )
    try:
        assert envs.reset(seed=0)[0].shape == (1, 64)
    finally:
        envs.close()


@pytest.mark.parametrize("algorithm", ["PPO", "TD3"])
def test_stable_baselines_learns(algorithm: str) -> None:
    """PPO and TD3 earn far more than random actions after a few thousand steps; both trade single envs, no adapter needed."""
    sb3 = pytest.importorskip("stable_baselines3")
    env: gym.Env[Any, Any] = gym.make("MFTaxi-v0", **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SB3 warns of its own doings, such as float64 actions and CPU policies
        if algorithm == "PPO":
            model = sb3.PPO(
                "MlpPolicy", env, n_steps=480, batch_size=120, gamma=0.9, learning_rate=1e-3, seed=0, device="cpu",
                policy_kwargs={"log_std_init": -1.5},
            )  # fmt: skip
            model.learn(6_000)
        else:
            # Free to send a taxi across the whole city, TD3's actions saturate at once; a fifth of it is far enough.
            env = gym.wrappers.TransformAction(env, lambda action: 0.2 * action, env.action_space)
            noise = sb3.common.noise.NormalActionNoise(np.zeros(18), 0.3 * np.ones(18))
            model = sb3.TD3(
                "MlpPolicy", env, gamma=0.3, learning_rate=1e-3, batch_size=256, learning_starts=1_200, seed=0, device="cpu",
                action_noise=noise, policy_kwargs={"net_arch": [64, 64]},
            )  # fmt: skip
            model.learn(3_600)
    total = episode(env, lambda observation: model.predict(observation, deterministic=True)[0])
    env.action_space.seed(0)
    chance = sum(episode(env, lambda _: env.action_space.sample()) for _ in range(10)) / 10
    print(f"{algorithm}: {total:.2f}, random actions {chance:.2f}")
    assert total > 0.6 * chance
