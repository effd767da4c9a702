"""Which world a run of the console script happens in, and what it is told about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from mf_taxi_env import EntropyFloor, Scenario, SwarmMDP, TaxiMDP, certified_bound, load_scenario
from mf_taxi_env.bound import NoBoundError
from mf_taxi_env.scoring import analytic_return, stay_return


@dataclass(frozen=True)
class WorldOptions:
    """The world to learn in.

    Attributes:
        world: A city's taxis, or the swarm on a ring.
        scenario: Name of a built-in scenario, or path of a .npz scenario made by `mf-taxi build`; default `shenzhen`. Cities
            only.
        cells: Cells per axis, k; default the file's own, 25 for a built-in scenario, 100 for the swarm.
        horizon: Steps per episode; default 12 in a city and 100 in the swarm.
        noise_std: Standard deviation of the noise, in sides of the unit square; default 0.0175. Cities only.
        motion: The true motion, which the agent does not see; default `free`. Cities only.
        dt: Length of a step, and the variance of its noise; default 0.01. The swarm only.
        entropy_floor: Safety constraint, a share of log K; default the scenario's, and none in the swarm, whose reward then
            has the density term.
    """

    world: Literal["taxi", "swarm"] = "taxi"
    scenario: str | None = None
    cells: int | None = None
    horizon: int | None = None
    noise_std: float | None = None
    motion: Literal["free", "congested"] | None = None
    dt: float | None = None
    entropy_floor: float | None = None

    def build(self, device: torch.device | str) -> TaxiMDP | SwarmMDP:
        """The world on a device.

        Raises:
            ValueError: If an option is out of range or belongs to the other world.
        """
        for name in ("dt",) if self.world == "taxi" else ("scenario", "noise_std", "motion"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"--{name.replace('_', '-')} is no option of --world {self.world}, got {getattr(self, name)!r}"
                )
        return self._city(device) if self.world == "taxi" else self._swarm(device)

    def _city(self, device: torch.device | str) -> TaxiMDP:
        name = self.scenario or "shenzhen"
        # A file keeps its own grid unless another one is asked for.
        file = name.endswith(".npz")
        data = Scenario.load(name) if file else load_scenario(name, cells=25 if self.cells is None else self.cells)
        data = data if self.cells is None else data.resample(self.cells)
        return TaxiMDP(
            data,
            horizon=12 if self.horizon is None else self.horizon,
            noise_std=0.0175 if self.noise_std is None else self.noise_std,
            motion=self.motion or "free",
            constraints=[EntropyFloor(data.entropy_floor if self.entropy_floor is None else self.entropy_floor)],
            reward_timing="next",
            device=device,
        )

    def _swarm(self, device: torch.device | str) -> SwarmMDP:
        return SwarmMDP(
            cells=100 if self.cells is None else self.cells,
            horizon=100 if self.horizon is None else self.horizon,
            dt=0.01 if self.dt is None else self.dt,
            constraints=[] if self.entropy_floor is None else [EntropyFloor(self.entropy_floor)],
            device=device,
        )


def headline(world: TaxiMDP | SwarmMDP) -> str:
    """Two lines: what the world is and has to keep, and what is known to be possible in it; a third where city and episode
    differ in length."""
    floors = [floor for floor in world.constraints if isinstance(floor, EntropyFloor)]
    keeps = f", entropy of the fleet at least {100 * floors[0].fraction:g} % of its maximum" if floors else ""
    if isinstance(world, TaxiMDP):
        lines = [f"{world.scenario.name}, {world.grid.cells} x {world.grid.cells} cells{keeps}", _possible(world)]
        steps = world.scenario.steps
        if steps not in (1, world.horizon):
            rest = "the last one repeats" if steps < world.horizon else f"those after step {world.horizon} are not used"
            lines.append(f"The city has {steps} steps, an episode {world.horizon}: {rest}; --horizon {steps} uses each once")
        return "\n".join(lines)
    safe = ", which need not be safe" if floors else ""
    return (
        f"swarm, {world.grid.size} cells of a ring{keeps}\n"
        f"Staying put earns {stay_return(world):.3f} in {world.horizon} steps, "
        f"the analytic control {analytic_return(world):.3f}{safe}"
    )


def _possible(world: TaxiMDP) -> str:
    try:
        bound = certified_bound(world)
    except NoBoundError as error:
        return f"What is possible is not known: {error}"
    return f"No safe policy earns more than {bound.upper:.3f} nats in {world.horizon} steps (KL {bound.kl:.4f} per step)"
