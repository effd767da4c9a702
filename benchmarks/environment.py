"""Steps per second of the env, single and batched, seconds of its certified bound, and memory of the push-forward, here.

Run: python benchmarks/environment.py [--threads 2] [--device cpu]

Quote ratios from one run; machines differ.
"""

from __future__ import annotations

import itertools
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro

from mf_taxi_env import Grid, TaxiMDP, certified_bound, load_scenario
from mf_taxi_env.noise import TruncatedGaussian

#: Weights of the log-barrier that the bound is timed with; 0 is none.
BARRIERS = (0.0, 0.1)
#: Noise of the city, in sides of the square.
STD = 0.0175


def main(
    cells: int = 25,
    threads: int = 2,
    device: str = "cpu",
    batches: tuple[int, ...] = (1, 16, 256),
    seconds: float = 1.0,
    repeats: int = 7,
    memory: bool = True,
) -> None:
    """Print the tables.

    Args:
        cells: Cells per axis, k, of the env.
        threads: Threads of torch.
        device: torch device of the env.
        batches: Episodes of the vector env.
        seconds: Length of one measurement.
        repeats: Measurements; the median and the range are printed.
        memory: Measure the memory of the push-forward, too.
    """
    torch.set_num_threads(threads)
    processor = platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, {threads} threads, {processor}, device {device}, k = {cells}, parameterization cells")
    print(f"{'lifted steps per second':44} {'median':>10} {'min':>10} {'max':>10}")
    settings = {"cells": cells, "parameterization": "cells", "device": device}
    env = gym.make("MFTaxi-v0", **settings)
    env.reset(seed=0)
    action = 0.05 * np.random.default_rng(0).uniform(-1, 1, env.action_space.shape).astype(np.float32)

    def single() -> int:
        if env.step(action)[3]:
            env.reset()
        return 1

    _report("gym.make, one step at a time", single, seconds, repeats)
    for batch in batches:
        for backend in ("numpy", "torch"):
            envs = gym.make_vec("MFTaxi-v0", num_envs=batch, backend=backend, **settings)
            envs.reset(seed=0)
            actions = np.broadcast_to(action, envs.action_space.shape).copy()
            given = torch.from_numpy(actions).to(device) if backend == "torch" else actions

            horizon, calls = TaxiMDP(load_scenario("shenzhen", cells)).horizon, itertools.count(1)

            def step(
                envs: gym.vector.VectorEnv = envs, given: object = given, calls: Iterator[int] = calls, last: int = horizon
            ) -> int:
                envs.step(given)
                if device != "cpu":
                    torch.cuda.synchronize()
                return envs.num_envs if next(calls) % (last + 1) else 0  # the call after an episode's last resets all envs

            _report(f"gym.make_vec, {batch} envs, {backend}", step, seconds, repeats)
    _bounds(cells, repeats)
    if memory and device == "cpu" and Path("/proc/self/clear_refs").exists():
        _memory()


def _report(name: str, work: Callable[[], int], seconds: float, repeats: int) -> None:
    """Print the steps per second of ``work``, which tells how many it has made."""
    rates = []
    for _ in range(repeats + 1):  # the first warms up
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            count += work()
        rates.append(count / (time.perf_counter() - start))
    rates = rates[1:]
    print(f"{name:44} {statistics.median(rates):10,.0f} {min(rates):10,.0f} {max(rates):10,.0f}", flush=True)


def _bounds(cells: int, repeats: int) -> None:
    """Seconds of the certified bound of a city, solved anew each time: one program, or one per step where demand changes."""
    print(f"\n{'seconds of the certified bound':44} {'median':>10} {'min':>10} {'max':>10}")
    city = load_scenario("shenzhen", cells)
    shares = np.linspace(0.0, 0.5, TaxiMDP(city).horizon)[:, None]
    changing = replace(city, demand=(1 - shares) * city.demand + shares * city.demand[::-1])
    for barrier in BARRIERS:
        for demand, one in (("static demand", city), (f"demand of {len(shares)} steps", changing)):
            times = []
            for _ in range(repeats + 1):  # the first loads the solver
                mdp, start = TaxiMDP(one), time.perf_counter()
                certified_bound(mdp, barrier)
                times.append(time.perf_counter() - start)
            times = times[1:]
            name = f"{demand}, lambda = {barrier:g}"
            print(f"{name:44} {statistics.median(times):10.3f} {min(times):10.3f} {max(times):10.3f}", flush=True)


def _memory() -> None:
    """Peak memory of one push-forward with its gradient, beyond what the process had before."""
    print(f"\n{'push-forward and its gradient: peak MiB':44} {'k = 25':>10} {'k = 50':>10} {'k = 100':>10}")
    context = multiprocessing.get_context("spawn")  # a fresh process: a peak never falls
    for batch in (1, 16, 64, 256):
        with context.Pool(1, maxtasksperchild=1) as pool:
            peaks = [pool.apply(_peak, (batch, cells)) for cells in (25, 50, 100)]
        print(f"{f'batch {batch}':44} " + " ".join(f"{peak:10.1f}" for peak in peaks), flush=True)
    print("inputs, result and gradients alone are 32 bytes per cell: 5 MiB at k = 25 and batch 256, 78 MiB at k = 100")


def _peak(batch: int, cells: int) -> float:
    noise, size = TruncatedGaussian(Grid(cells), STD), cells * cells
    small = TruncatedGaussian(Grid(5), STD)
    small.push_forward(torch.ones(1, 25), torch.rand(1, 25, 2, requires_grad=True)).sum().backward()  # libraries load
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = _resident("VmRSS")
    mass = torch.full((batch, size), 1.0 / size, requires_grad=True)
    destinations = torch.rand(batch, size, 2, requires_grad=True)
    noise.push_forward(mass, destinations).square().sum().backward()
    return _resident("VmHWM") - before


def _resident(key: str) -> float:
    """Resident memory of this process in MB: ``VmRSS`` now, ``VmHWM`` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


if __name__ == "__main__":
    tyro.cli(main)
