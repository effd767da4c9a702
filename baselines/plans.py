"""What the benchmark is asked for, as the runs that it takes."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from baselines.algorithm import Algorithm, Budget, find_algorithm
from baselines.run_folder import RESULT_FILE, RUN_FILE, Settings, check_settings
from mf_taxi_env import Scenario, TaxiMDP, load_scenario
from mf_taxi_env.checks import used_device, whole_number
from safe_m3_agent.worlds import world_facts


@dataclass(frozen=True)
class Plan:
    """One run to be.

    Attributes:
        algorithm: What :func:`~baselines.algorithm.find_algorithm` finds it by, in any working directory.
        scenario: Which of the benchmark's cities it is in.
        settings: What the run is of.
        folder: Where it is recorded, an absolute path.
        label: What tables call the algorithm.
        oracle: Whether it is given the true motion.
        asked: What was asked for at the shell: ``algorithm``, ``scenario``, ``cells``.
    """

    algorithm: str
    scenario: str
    settings: Settings
    folder: Path
    label: str
    oracle: bool
    asked: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.folder / RESULT_FILE).exists()

    @property
    def begun(self) -> bool:
        """Whether it was started before and is not finished."""
        return (self.folder / RUN_FILE).exists() and not self.finished

    @property
    def name(self) -> str:
        """The last three parts of its folder: city, algorithm, seed."""
        return "/".join(self.folder.parts[-3:])


@dataclass(frozen=True)
class Benchmark:
    """What is asked for: every algorithm in every scenario with every seed.

    Attributes:
        algorithms: Names, or ``path/to/script.py:NAME``.
        scenarios: Names or files of cities, see :func:`~mf_taxi_env.load_scenario`.
        seeds: Seeds of the runs.
        cells: Cells per axis that cities are brought to.
        budget: How long each run may learn.
        out: Folder of all runs.
        taxis: Size of the fleets that final policies are judged with; 0 for none.
        fleet_runs: How many of them; 0 for none.
        device: torch device.
    """

    algorithms: Sequence[str]
    scenarios: Sequence[str]
    seeds: Sequence[int]
    cells: int
    budget: Budget
    out: Path
    taxis: int
    fleet_runs: int
    device: str

    def __post_init__(self) -> None:
        for name in ("algorithms", "scenarios", "seeds"):
            given = list(getattr(self, name))
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name} must name at least one, and none twice, got {given}")
        for name in ("taxis", "fleet_runs"):
            whole_number(name, getattr(self, name), least=0)
        if math.isinf(self.budget.seconds):
            raise ValueError("seconds must be finite, got inf")
        used_device(self.device, torch.float64)  # the judge's precision, which not every device has

    def cities(self) -> dict[str, Scenario]:
        """The cities by what they were asked for as.

        Raises:
            ValueError: If one is unknown, or a file is malformed.
            FileNotFoundError: If there is no such file.
        """
        return {name: load_scenario(name, self.cells) for name in self.scenarios}

    def plans(self, cities: dict[str, Scenario]) -> list[Plan]:
        """All runs, the first seed of everything before the second of anything: a table can be made early.

        Args:
            cities: From :meth:`cities`.

        Raises:
            ValueError: If an algorithm is unknown, two runs would share a folder, or a folder holds a run of other settings.
        """
        algorithms = {name: _found(name) for name in self.algorithms}
        worlds = {name: world_facts(city_world(city, "cpu")) for name, city in cities.items()}
        fleets = (self.taxis, self.fleet_runs) if self.taxis and self.fleet_runs else (0, 0)
        plans: dict[Path, Plan] = {}
        for seed in self.seeds:
            for scenario, city in cities.items():
                for asked, (spec, algorithm) in algorithms.items():
                    settings = Settings(
                        algorithm.name, digest(spec, algorithm), city.name, worlds[scenario], seed, self.budget.env_steps,
                        float(self.budget.seconds), torch.device(self.device).type, *fleets,
                    )  # fmt: skip
                    folder = self.out.absolute() / f"{_slug(city.name)}-k{self.cells}" / _slug(algorithm.name) / f"seed-{seed}"
                    shown = {"algorithm": portable(asked), "scenario": portable(scenario), "cells": self.cells}
                    if folder in plans:
                        raise ValueError(
                            f"two of these runs would be recorded in {folder}: give algorithms and cities other names"
                        )
                    plans[folder] = Plan(spec, scenario, settings, folder, algorithm.label, algorithm.oracle, shown)
        for folder, plan in plans.items():
            check_settings(folder, plan.settings)
        return list(plans.values())


def city_world(city: Scenario, device: str | torch.device) -> TaxiMDP:
    """The benchmark's world of a city: all defaults, and rewards of the distribution that an action causes."""
    return TaxiMDP(city, reward_timing="next", device=device)


def _found(name: str) -> tuple[str, Algorithm]:
    """An algorithm, and a name that finds it from any working directory."""
    algorithm = find_algorithm(name)
    source, _, short = name.rpartition(":")
    return (f"{Path(source).absolute()}:{short}" if source.endswith(".py") else name), algorithm


def digest(spec: str, algorithm: Algorithm) -> str | None:
    """What versions of an algorithm are told apart by: a result is of script and settings as they were.

    Args:
        spec: What it is found by, ``/path/to/script.py:NAME`` where it is from a script.
        algorithm: The algorithm, found.

    Returns:
        SHA-256 of the script and of the settings' ``repr``; None without both.
    """
    source = spec.rpartition(":")[0]
    parts = [Path(source).read_bytes()] if source.endswith(".py") else []
    if algorithm.settings is not None:
        parts.append(repr(algorithm.settings).encode())
    return hashlib.sha256(b"\n".join(parts)).hexdigest() if parts else None


def portable(name: str) -> str:
    """A name or file as it is shown in commands: of a file elsewhere on this machine, its name alone."""
    return Path(name).name if Path(name).is_absolute() else name


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name)
