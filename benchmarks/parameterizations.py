"""How close to the certified bound the best action sequence of each parameterization comes, with known dynamics.

Run: python benchmarks/parameterizations.py [--scenario shenzhen] [--cells 25] [--epochs 500]

The action of every step is optimised directly, by gradients through the rollout, with a log-barrier whose weight falls, once
per learning rate; the best sequence that keeps the constraint in every step is scored. What is missing to 1 is what the
parameterization cannot express, and what the optimisation leaves.
"""

from __future__ import annotations

import math
import time

import torch
import tyro
from torch import Tensor

from mf_taxi_env import TaxiMDP, load_scenario, score
from mf_taxi_env.parameterization import Parameterization, make_parameterization
from safe_m3_agent.barrier import relaxed_log_barrier

KINDS = (
    "cells",
    "bilinear:3",
    "bilinear:5",
    "bilinear:8",
    "bilinear:12",
    "fourier:3",
    "fourier:5",
    "fourier:8",
    "network:16,16",
    "network:32,32",
)


class Sequence:
    """One action per step, whatever the distribution."""

    def __init__(self, parameterization: Parameterization, parameters: Tensor) -> None:
        self.fields = parameterization.field(parameters)

    def field(self, mu: Tensor, t: int) -> Tensor:
        """The field of step ``t``."""
        return self.fields[t]


def main(
    scenario: str = "shenzhen",
    cells: int = 25,
    epochs: int = 500,
    kinds: tuple[str, ...] = KINDS,
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03),
    threads: int = 2,
    seed: int = 0,
) -> None:
    """Print the table.

    Args:
        scenario: Name or path of a scenario.
        cells: Cells per axis, k.
        epochs: Gradient steps per kind and learning rate.
        kinds: Parameterizations.
        learning_rates: Of Adam, falling to a hundredth along a cosine; the best is told.
        threads: Threads of torch.
        seed: Seed of the small random start.
    """
    torch.set_num_threads(threads)
    world = TaxiMDP(load_scenario(scenario, cells=cells), reward_timing="next")
    print(f"{scenario}, k = {cells}, floor {world.scenario.entropy_floor:.0%}, {epochs} epochs, torch {torch.__version__}")
    print(f"{'parameterization':20} {'parameters':>10} {'score':>7} {'smallest margin':>16} {'rate':>6} {'seconds':>8}")
    for kind in kinds:
        parameterization = make_parameterization(kind, world.grid, world.action_dim)
        start = time.perf_counter()
        found = [(*_optimise(world, parameterization, epochs, rate, seed), rate) for rate in learning_rates]
        reached, margin, rate = max(found)
        seconds = time.perf_counter() - start
        print(
            f"{kind:20} {parameterization.n_parameters:10} {reached:7.3f} {margin:16.5f} {rate:6.3f} {seconds:8.1f}", flush=True
        )


def _optimise(
    world: TaxiMDP, parameterization: Parameterization, epochs: int, learning_rate: float, seed: int
) -> tuple[float, float]:
    """Score and smallest margin of the best safe sequence found."""
    generator = torch.Generator().manual_seed(seed)
    # Near zero everybody stays, which is safe; exactly zero is a saddle of the network's weights.
    raw = (0.03 * torch.randn(world.horizon, parameterization.n_parameters, generator=generator)).requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=learning_rate)
    best_return, best_path = -math.inf, world.rollout(Sequence(parameterization, torch.zeros_like(raw)))
    for epoch in range(epochs):
        progress = epoch / epochs
        weight = 1.0 * (0.001 / 1.0) ** min(1.0, progress / 0.8)
        optimizer.param_groups[0]["lr"] = learning_rate * (0.01 + 0.495 * (1.0 + math.cos(math.pi * progress)))
        path = world.rollout(Sequence(parameterization, raw.tanh()))
        earned, margin = float(path.returns.detach()), float(path.worst_margin.detach())
        if margin >= 0 and earned > best_return:
            best_return, best_path = earned, path
        objective = path.returns + weight * relaxed_log_barrier(path.margins, 0.003).sum()
        optimizer.zero_grad()
        (-objective).backward()
        torch.nn.utils.clip_grad_norm_([raw], 1.0)
        optimizer.step()
    return score(best_path.mu[1:].detach(), world), float(best_path.worst_margin.detach())


if __name__ == "__main__":
    tyro.cli(main)
