"""Seconds and memory of a finite fleet, and of its multi-agent env, on this machine.

Run: python benchmarks/fleet.py [--taxis 10000 100000 1000000 10000000] [--threads 2] [--device cpu]

A fleet's episode has 12 steps under a 2 x 256 network that is asked at every taxi's own position. Every size has a process of
its own, whose peak memory is that of the whole process, libraries included. Quote ratios from one run; machines differ.
"""

from __future__ import annotations

import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import tyro

from mf_taxi_env import FleetSimulator, TaxiMDP, fleet_parallel_env, load_scenario
from safe_m3_agent.policy import NetworkPolicy

#: Hidden widths of the policy.
HIDDEN = (256, 256)


def main(
    taxis: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000),
    agents: tuple[int, ...] = (1_000, 10_000),
    cells: int = 25,
    threads: int = 2,
    device: str = "cpu",
    repeats: int = 3,
) -> None:
    """Print the tables.

    Args:
        taxis: Fleet sizes; none for no such table.
        agents: Fleet sizes of the multi-agent env; none for no such table.
        cells: Cells per axis, k.
        threads: Threads of torch.
        device: torch device.
        repeats: Episodes that are timed, after one that warms up; the median is printed.
    """
    processor = platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, {threads} threads, {processor}, device {device}, k = {cells}, policy {HIDDEN}")
    context = multiprocessing.get_context("spawn")  # a fresh process: a peak never falls
    if taxis:
        print(f"{'taxis':>12} {'s/episode':>10} {'ns/taxi and step':>17} {'peak MB':>9} {'on the GPU':>11}")
    for m in taxis:
        with context.Pool(1) as pool:
            seconds, steps, peak, on_device = pool.apply(_episode, (m, cells, threads, device, repeats))
        row = f"{m:12,} {seconds:10.3f} {seconds / m / steps * 1e9:17.1f} {peak:9.0f}"
        print(row + (f" {on_device:11.0f}" if device != "cpu" else ""), flush=True)
    if agents:
        print(f"\n{'agents':>12} {'dict ms/step':>13} {'array ms/step':>14} {'ratio':>6}")
    for m in agents:
        with context.Pool(1) as pool:
            by_name, as_array = pool.apply(_doors, (m, cells, threads, device, 10 * repeats))
        print(f"{m:12,} {by_name * 1e3:13.2f} {as_array * 1e3:14.2f} {by_name / as_array:6.1f}", flush=True)


def _episode(m: int, cells: int, threads: int, device: str, repeats: int) -> tuple[float, int, float, float]:
    """Seconds of an episode, its steps, and peak memory in MB, of the process and on the device."""
    torch.set_num_threads(threads)
    city = TaxiMDP(load_scenario("shenzhen", cells=cells), device=device)
    generator = torch.Generator(city.device).manual_seed(0)
    policy = NetworkPolicy(city, HIDDEN, generator)
    torch.nn.init.normal_(policy.network(0).out.weight, std=0.01, generator=generator)  # a new policy stays put
    fleet = FleetSimulator(city, m, resolution="continuous")

    def run() -> None:
        fleet.rollout(policy)
        if device != "cpu":
            torch.cuda.synchronize()

    seconds = _median(run, repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
    return seconds, city.horizon, peak, 0.0 if device == "cpu" else torch.cuda.max_memory_allocated() / 2**20


def _doors(m: int, cells: int, threads: int, device: str, repeats: int) -> tuple[float, float]:
    """Seconds of a step by names and by arrays, without a policy."""
    torch.set_num_threads(threads)
    env = fleet_parallel_env(m, cells=cells, device=device, horizon=10**9)
    moves = np.random.default_rng(0).uniform(-0.05, 0.05, (m, 2)).astype(np.float32)
    env.reset(seed=0)
    named = dict(zip(env.agents, moves, strict=True))
    return _median(lambda: env.step(named), repeats), _median(lambda: env.step_array(moves), repeats)


def _median(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):  # the first warms up
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


if __name__ == "__main__":
    tyro.cli(main)
