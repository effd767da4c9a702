"""Env steps per second that Stable-Baselines3 collects: through the adapter, and through a process per env.

Run: python benchmarks/sb3_adapter.py [--cells 25 10] [--batches 8 64] [--threads 1]

First the envs alone, under actions drawn beforehand; then rollouts of PPO, whose policy and bookkeeping cost the same on both
sides. Workers of ``SubprocVecEnv`` have one thread of torch each, the fastest they can be where there are as many as cores or
more. Quote ratios from one run; machines differ.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from baselines.sb3.adapter import LiftedVecEnv
from mf_taxi_env import TaxiMDP, load_scenario

#: Steps of an episode, and of a rollout.
HORIZON = 12


def main(
    cells: tuple[int, ...] = (25, 10),
    batches: tuple[int, ...] = (8, 64),
    processes: int = 8,
    parameterization: str = "bilinear:8",
    threads: int = 1,
    seconds: float = 1.0,
    repeats: int = 7,
) -> None:
    """Print the tables.

    Args:
        cells: Cells per axis, k.
        batches: Episodes of the adapter.
        processes: Envs of ``SubprocVecEnv``.
        parameterization: What an action means.
        threads: Threads of torch in this process.
        seconds: Length of one measurement.
        repeats: Measurements; the median and the range are printed.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, which begin as fresh processes
    torch.set_num_threads(threads)
    processor = platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, {threads} threads, {os.cpu_count()} cores, {processor}, {parameterization}")
    for k in cells:
        print(f"\n{f'env steps per second, k = {k}':40} {'median':>10} {'min':>10} {'max':>10} {'ratio':>7}")
        for title, prepare in (("envs alone", _stepping), ("rollouts of PPO", _collecting)):
            reference = 0.0
            for name, envs in _kinds(k, parameterization, processes, batches):
                rates = _rates(prepare(envs), envs.num_envs * HORIZON, seconds, repeats)
                envs.close()
                median = statistics.median(rates)
                reference = reference or median
                row = f"{median:10,.0f} {min(rates):10,.0f} {max(rates):10,.0f} {median / reference:7.1f}"
                print(f"{f'{title}: {name}':40} {row}", flush=True)


def _kinds(k: int, parameterization: str, processes: int, batches: tuple[int, ...]) -> Iterator[tuple[str, VecEnv]]:
    """The envs one after the other, so that no idle worker is around while others are timed."""

    def make() -> gym.Env[Any, Any]:
        settings = {"cells": k, "parameterization": parameterization, "observation": "density", "reward_timing": "next"}
        return gym.make("mf_taxi_env:MFTaxi-v0", **settings)

    yield f"SubprocVecEnv, {processes} envs", SubprocVecEnv([make] * processes)
    world = TaxiMDP(load_scenario("shenzhen", cells=k), reward_timing="next", horizon=HORIZON)
    for batch in batches:
        yield f"adapter, {batch} envs", LiftedVecEnv(world, batch, parameterization=parameterization)


def _stepping(envs: VecEnv) -> Callable[[], None]:
    """An episode under small actions."""
    shape = (HORIZON, envs.num_envs, *(envs.action_space.shape or ()))
    actions = np.random.default_rng(0).uniform(-0.05, 0.05, shape).astype(np.float32)
    envs.reset()

    def episode() -> None:
        for step in actions:
            envs.step(step)

    return episode


def _collecting(envs: VecEnv) -> Callable[[], None]:
    """An episode under a policy of PPO, into its buffer."""
    model = PPO("MlpPolicy", envs, n_steps=HORIZON, batch_size=HORIZON * envs.num_envs, device="cpu", seed=0)
    _, callback = model._setup_learn(HORIZON)

    def rollout() -> None:
        model.collect_rollouts(envs, callback, model.rollout_buffer, HORIZON)

    return rollout


def _rates(work: Callable[[], None], steps: int, seconds: float, repeats: int) -> list[float]:
    rates = []
    for _ in range(repeats + 1):  # the first warms up
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            work()
            count += steps
        rates.append(count / (time.perf_counter() - start))
    return rates[1:]


if __name__ == "__main__":
    tyro.cli(main)
