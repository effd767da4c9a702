"""Time of an MF-BPTT epoch, of a certificate and of a fit, on this machine.

Run: python benchmarks/planning.py [--threads 2] [--cells 25]

Quote ratios from one run; machines differ. The published implementation (github.com/mjusup1501/safe-m3-ucrl) takes 165 ms per
epoch with known dynamics and 386 ms with learned ones on a two-core machine without accelerator at k = 25, policy 2 x 256. The
first row times an epoch in its formulation, as a yardstick for this machine: a ``K x K`` kernel in every step, and a network
that is fed the distribution once per cell.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import tyro
from torch import nn

from mf_taxi_env import TaxiMDP, load_scenario
from safe_m3_agent import Config, SafeM3UCRL
from safe_m3_agent.certificate import Certifier
from safe_m3_agent.config import ModelName
from safe_m3_agent.hallucination import HallucinatedMDP
from safe_m3_agent.planners.bptt import BPTTConfig, BPTTPlanner
from safe_m3_agent.policy import PolicyConfig, PolicyKind
from safe_m3_agent.representatives import observe


def main(cells: int = 25, threads: int = 2, epochs: int = 10, repeats: int = 5) -> None:
    """Print the table.

    Args:
        cells: Cells per axis, k.
        threads: Threads of torch.
        epochs: Epochs per measurement.
        repeats: Measurements; the median and the range are printed.
    """
    torch.set_num_threads(threads)
    world = TaxiMDP(load_scenario("shenzhen", cells=cells), reward_timing="next")
    processor = platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, {threads} threads, {processor}, k = {cells}, T = {world.horizon}")
    print(f"{'one MF-BPTT epoch':58} {'median':>8} {'min':>8} {'max':>8}   ms")
    _report("network 2 x 256, known dynamics, published formulation", PublishedFormulation(world).epoch, repeats, 1)
    most = Config().adversaries
    cases: list[tuple[PolicyKind, ModelName, int]] = [
        ("field", "known", 0),
        ("field", "ensemble", 0),
        ("field", "ensemble", most),
        ("network", "known", 0),
        ("network", "ensemble", 0),
        ("network", "ensemble", most),
    ]
    for kind, model, adversaries in cases:
        agent = SafeM3UCRL(world, Config(model=model, policy=PolicyConfig(kind=kind)))
        plan = partial(
            BPTTPlanner(replace(BPTTConfig(), epochs=epochs), agent.config.barrier.width).plan,
            HallucinatedMDP(world, agent.model, agent.config.beta),
            agent.policy,
            weight=0.1,
            adversaries=torch.zeros(adversaries, agent.model.members),
            optimistic=model != "known",
            generator=torch.Generator(),
        )
        name = "field of actions" if kind == "field" else "network 2 x 256"
        _report(f"{name}, {model} dynamics, {adversaries} adversaries", plan, repeats, epochs)
    agent = SafeM3UCRL(world)
    learned = HallucinatedMDP(world, agent.model, agent.config.beta)
    generator = torch.Generator().manual_seed(0)
    certifier, known = Certifier(agent.config.certificate), torch.randn(most, agent.model.members, generator=generator)
    searches = 1 + agent.config.certificate.restarts + most
    certify = partial(certifier.certify, learned, agent.policy, known, generator)
    _report(f"one certificate, {searches} searches side by side", certify, repeats, 1)
    models: tuple[ModelName, ...] = ("ensemble", "gp")
    for model in models:
        learner = SafeM3UCRL(world, Config(model=model, representative_agents=80))
        with torch.no_grad():
            executed = world.rollout(learner.policy)
            seen = observe(executed, world, learner.model, learner.policy, learner.config, generator, radius=1.0).transitions
        _report(f"a fit to {seen.size} transitions, {model}", partial(learner.model.fit, seen, generator), repeats, 1)


class PublishedFormulation:
    """MF-BPTT as the published code formulates it, with the same network, horizon, noise and optimiser."""

    def __init__(self, world: TaxiMDP) -> None:
        self.world = world
        size = world.grid.size
        self.network = nn.Sequential(
            nn.Linear(size + 2, 256), nn.LeakyReLU(), nn.Linear(256, 256), nn.LeakyReLU(), nn.Linear(256, 2), nn.Tanh()
        )
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)
        self.noise = torch.distributions.Normal(0.0, world.noise.std)

    def epoch(self) -> None:
        """One gradient step through a whole rollout."""
        world, mu = self.world, self.world.initial().unsqueeze(0)
        total = torch.zeros(())
        for t in range(world.horizon):
            shifted = world.shift(mu, t)
            inputs = torch.cat([world.centers, shifted.expand(world.grid.size, -1)], 1)
            destinations = (world.centers + self.network(inputs)).clamp(0.0, 1.0)
            x, y = (self._cells(destinations[:, axis, None]) for axis in range(2))
            kernel = torch.zeros(world.grid.size, world.grid.size)
            for i in range(world.grid.cells):
                kernel[:, i * world.grid.cells : (i + 1) * world.grid.cells] = x[:, i : i + 1] * y
            total = total + world.reward(mu, destinations, mu, t).sum() + world.margins(mu).clamp_min(1e-6).log().sum()
            mu = (kernel.T * shifted).sum(-1).unsqueeze(0)
        self.optimizer.zero_grad()
        (-total).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()

    def _cells(self, destinations: torch.Tensor) -> torch.Tensor:
        edges = self.world.grid.edges()
        inside = self.noise.cdf(edges[1:] - destinations) - self.noise.cdf(edges[:-1] - destinations)
        return inside / inside.sum(1, keepdim=True)


def _report(name: str, work: Callable[[], object], repeats: int, parts: int) -> None:
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append((time.perf_counter() - start) / parts * 1000)
    print(f"{name:58} {statistics.median(seconds):8.1f} {min(seconds):8.1f} {max(seconds):8.1f}")


if __name__ == "__main__":
    tyro.cli(main)
