"""Recorded runs, and groups of them that differ in nothing but their seed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from mf_taxi_env import EntropyFloor, TaxiMDP, Trajectory
from safe_m3_agent.agent import SafeM3UCRL
from safe_m3_agent.checkpoint import CHECKPOINT_FILE, read_run_files
from safe_m3_agent.config import Config, ModelName
from safe_m3_agent.fleet_evaluation import Subject, recorded_fleets
from safe_m3_agent.fleet_table import FleetEpisode
from safe_m3_agent.history import History
from safe_m3_agent.run import HISTORY_FILE
from safe_m3_agent.worlds import world_facts

#: Settings that mean nothing to an agent that is given the motion.
OF_LEARNING = {
    *(
        "model",
        "beta",
        "calibrate",
        "delta",
        "tightening",
        "lipschitz",
        "optimistic",
        "representative_agents",
        "exploration",
        "exploration_candidates",
        "adversaries",
        "growth",
        "anew",
    ),
    *get_args(ModelName),
}


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """A run as its folder tells it: settings, history, and what its last policy does.

    Attributes:
        folder: The run's folder.
        world: The true world.
        config: Settings of the agent.
        seed: Seed.
        first: Fingerprint of the policy that it was handed at the start; None where it began by staying put.
        history: The executed episodes, at least one.
    """

    folder: Path
    world: TaxiMDP
    config: Config
    seed: int
    first: str | None
    history: History

    @classmethod
    def read(cls, folder: Path) -> RecordedRun:
        """Read ``run.json``, ``history.csv`` and, later and only where needed, the checkpoint.

        Raises:
            FileNotFoundError: If there is no run, or no checkpoint.
            ValueError: If a file is not readable, or no episode is recorded.
        """
        world, config, seed, first = read_run_files(folder, None, "cpu")
        if not isinstance(world, TaxiMDP):
            raise ValueError(f"{folder} is no run in a city, which these figures are of: its world is a {type(world).__name__}")
        for name in (HISTORY_FILE, CHECKPOINT_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} holds no whole run: it has no {name}")
        history = History.from_csv(folder / HISTORY_FILE)
        if not len(history):
            raise ValueError(f"{folder / HISTORY_FILE} holds no episode")
        return cls(folder, world, config, seed, first, history)

    @cached_property
    def agent(self) -> SafeM3UCRL:
        """The agent as it was saved."""
        return SafeM3UCRL.load(self.folder, mdp=self.world)

    @cached_property
    def subject(self) -> Subject:
        """The last policy in its world, with its episode in the mean field."""
        return Subject.of(self.world, self.agent.policy)

    @property
    def executed(self) -> Trajectory:
        """The last policy's episode in the true mean field."""
        return self.subject.executed

    @cached_property
    def fleets(self) -> list[FleetEpisode]:
        """The last policy's recorded episodes with finite fleets whose taxis act at the centres of cells."""
        return recorded_fleets(self.folder, self.subject, "cell")


class Group:
    """Runs that differ in nothing but their seed.

    Args:
        runs: At least one, of equal settings.
    """

    def __init__(self, runs: Sequence[RecordedRun]) -> None:
        self.runs = sorted(runs, key=lambda run: run.seed)
        self.world, self.config, self.first = runs[0].world, runs[0].config, runs[0].first

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs, ascending."""
        return [run.seed for run in self.runs]

    @property
    def known(self) -> bool:
        """Whether the agent was given the motion."""
        return self.config.model == "known"

    @property
    def floor(self) -> float | None:
        """The entropy floor, a share of ``log K``; None where the constraints are others."""
        return single_floor(self.world)

    @property
    def episodes(self) -> int:
        """Episodes that all runs have."""
        return min(len(run.history) for run in self.runs)

    def column(self, name: str) -> NDArray[np.float64]:
        """One number of every episode that all runs have, ``[runs, episodes]``."""
        return np.array([run.history.column(name)[: self.episodes] for run in self.runs], dtype=np.float64)

    @property
    def middle(self) -> RecordedRun:
        """The run of the (lower) median last return: one that stands for all."""
        ranked = sorted(self.runs, key=lambda run: run.history[-1].reward)
        return ranked[(len(ranked) - 1) // 2]

    def settings(self, *without: str) -> str:
        """All settings but the seed and those named, as text: equal for groups that differ in nothing else.

        Args:
            without: Names of settings of the agent; ``"entropy_floor"``; or ``"learning"`` for all that means nothing to an
                agent that is given the motion.
        """
        config, world = dataclasses.asdict(self.config), world_facts(self.world)
        if "entropy_floor" in without and self.floor is not None:
            world["constraints"] = "an entropy floor"
        # With the motion given but trips to learn, there is learning all the same.
        dropped = {*without, *(OF_LEARNING if "learning" in without and not self.config.learn_trips else ())}
        config = {name: value for name, value in config.items() if name not in dropped}
        return json.dumps([world, config, self.first], sort_keys=True)

    @property
    def city(self) -> str:
        """The world apart from its constraints, as text."""
        facts = world_facts(self.world)
        del facts["constraints"]
        return json.dumps(facts, sort_keys=True)

    def __repr__(self) -> str:
        return f"Group({', '.join(str(run.folder) for run in self.runs)})"


def read_groups(folders: Iterable[Path]) -> list[Group]:
    """Read runs and group them by their settings, those with most runs first, then those with fewest representative agents.

    Raises:
        FileNotFoundError: If a folder holds no run.
        ValueError: If a file is not readable, or two folders hold the same run: it would count as two seeds.
    """
    found: dict[str, dict[int, RecordedRun]] = {}
    for folder in folders:
        run = RecordedRun.read(folder)
        same = found.setdefault(Group([run]).settings(), {})
        if run.seed in same:
            raise ValueError(f"{same[run.seed].folder} and {folder} hold the same run, seed {run.seed}: name one of them")
        same[run.seed] = run
    groups = [Group(list(runs.values())) for runs in found.values()]
    return sorted(groups, key=lambda group: (-len(group.runs), group.config.representative_agents, str(group.runs[0].folder)))


def single_floor(world: TaxiMDP) -> float | None:
    """The entropy floor of a world that has no other constraint, a share of ``log K``; else None."""
    if len(world.constraints) == 1 and isinstance(world.constraints[0], EntropyFloor):
        return world.constraints[0].fraction
    return None


def with_floor(world: TaxiMDP, floor: float) -> TaxiMDP:
    """The same world under one entropy floor, a share of ``log K``, that is tightened as the world's own."""
    tightened = world.constraints[0].lipschitz if single_floor(world) is not None else EntropyFloor(floor).lipschitz
    return TaxiMDP(
        world.scenario,
        horizon=world.horizon,
        noise_std=world.noise.std,
        motion=world.motion,
        constraints=[EntropyFloor(floor, tightened)],
        reward_timing=world.reward_timing,
        device=world.device,
        dtype=world.dtype,
    )
