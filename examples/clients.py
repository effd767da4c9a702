"""MFTaxi-v0 under the RL libraries that people use: each runs it for a moment, and says so.

Run: pip install '.[clients]' && python examples/clients.py

A library that is not installed is skipped, visibly.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
import warnings
from collections.abc import Callable

import gymnasium as gym
import numpy as np

import mf_taxi_env

SETTINGS = {"cells": 8, "parameterization": "bilinear:3", "observation": "density"}


def stable_baselines3() -> str:
    """Both checkers' favourite: PPO learns, with costs in its infos."""
    from stable_baselines3 import PPO

    model = PPO("MlpPolicy", gym.make("MFTaxi-v0", **SETTINGS), n_steps=480, batch_size=120, gamma=0.9, seed=0, device="cpu")
    model.learn(4_800)
    return f"PPO: mean return {np.mean([episode['r'] for episode in model.ep_info_buffer]):.2f} after 4,800 steps"


def torchrl() -> str:
    """GymEnv passes TorchRL's own specification check, and rolls out."""
    from torchrl.envs import GymEnv
    from torchrl.envs.utils import check_env_specs

    env = GymEnv("MFTaxi-v0", **SETTINGS)
    check_env_specs(env)
    return f"check_env_specs passed; rollout of batch size {tuple(env.rollout(12).batch_size)}"


def tianshou() -> str:
    """A collector of a stochastic policy fills a replay buffer from two envs."""
    import torch
    from tianshou.algorithm import Reinforce
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousActorProbabilistic

    envs = DummyVectorEnv([lambda: gym.make("MFTaxi-v0", **SETTINGS)] * 2)
    space = gym.make("MFTaxi-v0", **SETTINGS)
    actor = ContinuousActorProbabilistic(
        preprocess_net=Net(state_shape=space.observation_space.shape, hidden_sizes=[32]), action_shape=space.action_space.shape
    )
    policy = ProbabilisticActorPolicy(
        actor=actor,
        dist_fn=lambda parameters: torch.distributions.Independent(torch.distributions.Normal(*parameters), 1),
        action_space=space.action_space,
        action_bound_method="clip",
    )
    algorithm = Reinforce(policy=policy, optim=AdamOptimizerFactory(lr=1e-3))
    collector = Collector(algorithm, envs, VectorReplayBuffer(240, 2))
    collector.reset()
    collected = collector.collect(n_episode=4)
    return f"collected {collected.n_collected_steps} steps in {collected.n_collected_episodes} episodes"


def rllib() -> str:
    """PPO of RLlib trains for one iteration."""
    import ray
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.tune.registry import register_env

    register_env("MFTaxi-v0", lambda settings: gym.make("mf_taxi_env:MFTaxi-v0", **settings))
    config = (
        PPOConfig()
        .environment("MFTaxi-v0", env_config=SETTINGS)
        .env_runners(num_env_runners=0)
        .training(train_batch_size_per_learner=480, minibatch_size=120, num_epochs=2)
    )
    try:
        algorithm = config.build_algo()
        result = algorithm.train()
        algorithm.stop()
    finally:
        ray.shutdown()
    return f"one iteration of PPO, mean return {result['env_runners']['episode_return_mean']:.2f}"


def gymnasium() -> str:
    """Native, sync and async vector envs."""
    rewards = []
    for mode in (None, "sync", "async"):
        envs = gym.make_vec("mf_taxi_env:MFTaxi-v0", num_envs=2, vectorization_mode=mode, **SETTINGS)
        envs.reset(seed=0)
        rewards.append(envs.step(np.zeros(envs.action_space.shape, np.float32))[1])
        envs.close()
    np.testing.assert_allclose(rewards[0], rewards[1], rtol=1e-5)
    np.testing.assert_allclose(rewards[0], rewards[2], rtol=1e-5)
    return "native, sync and async vector envs give the same rewards"


CLIENTS: dict[str, tuple[str, Callable[[], str]]] = {
    "gymnasium": ("gymnasium", gymnasium),
    "stable_baselines3": ("stable-baselines3", stable_baselines3),
    "torchrl": ("torchrl", torchrl),
    "tianshou": ("tianshou", tianshou),
    "ray": ("ray", rllib),
}


def main() -> None:
    """Run all clients."""
    print(f"mf_taxi_env {mf_taxi_env.__version__}")
    for module, (distribution, client) in CLIENTS.items():
        if importlib.util.find_spec(module) is None:
            print(f"{distribution:20} skipped: not installed")
            continue
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs, not ours
            try:
                outcome = client()
            except ImportError as error:  # of something that this part of the library needs
                print(f"{distribution:20} skipped: {error}")
                continue
        print(
            f"{distribution:20} {importlib.metadata.version(distribution):10} {outcome} ({time.perf_counter() - start:.0f} s)"
        )


if __name__ == "__main__":
    main()
