"""One policy for every taxi of a finite fleet, learned by PPO of Stable-Baselines3 through the fleet's multi-agent env.

Run: pip install '.[baselines,multiagent]' && python examples/shared_policy.py

Taxis that share a policy are, to PPO, as many copies of one env: ``SharedPolicyEnv`` shows a fleet as an SB3 ``VecEnv`` whose
``n``-th env is the ``n``-th taxi, and steps all of them by one call of ``step_array``, without a dictionary entry per taxi.
Each sees its position and the fleet's distribution, and all earn the fleet's reward.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from mf_taxi_env import fleet_parallel_env
from mf_taxi_env.envs.fleet_env import FleetParallelEnv, Observation


class SharedPolicyEnv(VecEnv):
    """A fleet as independent copies of one env, a taxi each.

    Args:
        fleet: The multi-agent env.
        seed: Seed of the first episode; the next ones go on drawing.
    """

    def __init__(self, fleet: FleetParallelEnv, seed: int = 0) -> None:
        self.fleet = fleet
        self.first_seed: int | None = seed
        self.returns: list[float] = []
        self.render_mode = None
        super().__init__(fleet.n_taxis, fleet.observation_space("taxi_0"), fleet.action_space("taxi_0"))

    def reset(self) -> dict[str, np.ndarray]:
        seen, _ = self.fleet.reset_array(self.first_seed)
        self.first_seed, self._return = None, 0.0
        return self._each(seen)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        seen, reward, _, truncated, _ = self.fleet.step_array(self._actions)
        self._return += reward
        observations = self._each(seen)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if truncated:
            self.returns.append(self._return)
            for i, info in enumerate(infos):
                info["terminal_observation"] = {name: values[i] for name, values in observations.items()}
                info["TimeLimit.truncated"] = True
            observations = self.reset()
        return observations, np.full(self.num_envs, reward, np.float32), np.full(self.num_envs, truncated), infos

    def _each(self, seen: Observation) -> dict[str, np.ndarray]:
        mu = np.broadcast_to(seen["mu"] * len(seen["mu"]), (self.num_envs, len(seen["mu"])))  # densities, of order one
        return {"position": seen["position"].copy(), "mu": mu.copy()}  # torch wants arrays that it could write to

    def close(self) -> None:
        self.fleet.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.fleet, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("taxis share one env, whose attributes are set there")

    def env_method(self, method_name: str, *arguments: Any, indices: Any = None, **named: Any) -> list[Any]:
        raise NotImplementedError("taxis share one env, whose methods are called there")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def main(taxis: int = 100, cells: int = 3, episodes: int = 480, per_update: int = 40, judged: int = 20, seed: int = 0) -> None:
    """Train, and compare with staying put and with the policy before training.

    One reward for all says little of what one taxi did, so updates are rare and large. Keep many taxis per cell: an empty cell
    costs more than anything else that they could do wrong.

    Args:
        taxis: Taxis in the fleet.
        cells: Cells per axis.
        episodes: Episodes of training, a multiple of those of an update.
        per_update: Episodes that make an update, a multiple of four.
        judged: Episodes that a policy is judged by.
        seed: Seed of everything random.
    """
    # The reward of the fleet that a move leads to: it answers within the step.
    env = SharedPolicyEnv(fleet_parallel_env(taxis, cells=cells, reward_timing="next", noise_std=0.05), seed)
    horizon = env.fleet.mdp.horizon
    model = PPO(
        "MultiInputPolicy",
        env,
        n_steps=per_update * horizon,
        batch_size=per_update // 4 * horizon * taxis,
        n_epochs=8,
        gamma=0.5,
        learning_rate=1e-3,
        policy_kwargs={"log_std_init": -1.5, "net_arch": [64, 64]},
        seed=seed,
        device="cpu",
    )
    results = {
        "staying put": judge(env, lambda seen: np.zeros((taxis, 2), np.float32), seed + 1, judged),
        "the shared policy, untrained": judge(env, lambda seen: model.predict(seen)[0], seed + 1, judged),
    }
    start = time.perf_counter()
    model.learn(episodes * horizon * taxis)
    print(f"{episodes} episodes of {taxis} taxis in {time.perf_counter() - start:.0f} s; mean return of {judged} others:")
    results["the shared policy, trained"] = judge(env, lambda seen: model.predict(seen)[0], seed + 1, judged)
    for name, result in results.items():
        print(f"  {name:30} {result:8.2f}")


def judge(env: SharedPolicyEnv, act: Callable[[dict[str, np.ndarray]], np.ndarray], seed: int, episodes: int) -> float:
    """Mean return of a policy, by its observations of all taxis."""
    env.first_seed, env.returns = seed, []
    seen = env.reset()
    while len(env.returns) < episodes:
        seen = env.step(act(seen))[0]
    return float(np.mean(env.returns))


if __name__ == "__main__":
    tyro.cli(main)
