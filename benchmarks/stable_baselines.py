"""What PPO and TD3 of Stable-Baselines3 reach on the env, given a number of simulated steps: the yardstick for MF-DDPG.

Run: python benchmarks/stable_baselines.py [--scenario shenzhen] [--algorithm ppo] [--steps 300000] [--seed 0]

Both get what is known to help them: few parameters (``bilinear:5``), observations of order one, a penalty of 10 per nat of
violation, a short memory (gamma 0.9), and little noise about staying put, where they start; TD3, which saturates otherwise,
moves a fifth as long. They act in the true world while they learn; how often they violate on the way is counted.
"""

from __future__ import annotations

import time
from typing import Any, Literal, SupportsFloat

import gymnasium as gym
import numpy as np
import torch
import tyro
from stable_baselines3 import PPO, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise

import mf_taxi_env  # noqa: F401 - registers the ids
from mf_taxi_env import certified_bound, score

PENALTY = 10.0


class Penalised(gym.Wrapper[Any, Any, Any, Any]):
    """Subtracts the violation from the reward, counts episodes with one, and shortens moves."""

    episodes = violated = 0

    def __init__(self, env: gym.Env[Any, Any], reach: float) -> None:
        super().__init__(env)
        self.reach = reach
        self._worst = 0.0

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(self.reach * action)
        self._worst = max(self._worst, info["cost"])
        if truncated:
            Penalised.episodes += 1
            Penalised.violated += self._worst > 0
            self._worst = 0.0
        return observation, float(reward) - PENALTY * info["cost"], terminated, truncated, info


def main(
    scenario: str = "shenzhen", algorithm: Literal["ppo", "td3"] = "ppo", steps: int = 300_000, seed: int = 0, threads: int = 1
) -> None:
    """Train, and print the score of the policy that was learned.

    Args:
        scenario: Name or file of a scenario.
        algorithm: Which.
        steps: Simulated steps of the lifted MDP.
        seed: Seed.
        threads: Threads of torch.
    """
    torch.set_num_threads(threads)
    kw: dict[str, Any] = {
        "scenario": scenario, "parameterization": "bilinear:5", "observation": "density", "reward_timing": "next"
    }  # fmt: skip
    reach, n_envs = (1.0, 8) if algorithm == "ppo" else (0.2, 1)
    train = make_vec_env(lambda: Penalised(gym.make("MFTaxi-v0", **kw), reach), n_envs=n_envs, seed=seed)
    model: BaseAlgorithm
    if algorithm == "ppo":
        model = PPO("MlpPolicy", train, gamma=0.9, n_steps=96, batch_size=256, policy_kwargs={"log_std_init": -2.0}, seed=seed)
    else:
        size = train.action_space.shape or (0,)
        noise = NormalActionNoise(np.zeros(size), np.full(size, 0.02))
        model = TD3(
            "MlpPolicy", train, gamma=0.9, learning_rate=1e-4, learning_starts=500, train_freq=4, action_noise=noise, seed=seed
        )
        # The actor's output layer starts near zero: near staying put.
        with torch.no_grad():
            for actor in (model.actor, model.actor_target):
                for parameter in list(actor.mu.children())[-2].parameters():
                    parameter.mul_(0.01)
    start = time.perf_counter()
    model.learn(steps)
    seconds = time.perf_counter() - start
    env = gym.make("MFTaxi-v0", **kw)
    observation, _ = env.reset(seed=seed)
    distributions, kl, violations = [], 0.0, 0
    truncated = False
    while not truncated:
        action, _ = model.predict(observation, deterministic=True)
        observation, _, _, truncated, info = env.step(reach * action)
        distributions.append(np.asarray(observation) / len(observation))
        kl += info["kl"]
        violations += info["cost"] > 0
    world = env.unwrapped.mdp  # type: ignore[attr-defined]
    reached, bound = score(np.stack(distributions), world), -certified_bound(world).per_step * world.horizon
    print(f"{algorithm}, seed {seed}, {steps:,} steps, {seconds:.0f} s: KL {kl:.3f} (bound {bound:.3f}), score {reached:.3f}")
    share = f"{Penalised.violated} of {Penalised.episodes}"
    print(f"violated at {violations} of {world.horizon} steps, and in {share} episodes while learning")


if __name__ == "__main__":
    tyro.cli(main)
