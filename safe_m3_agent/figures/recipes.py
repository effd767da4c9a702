"""The command that makes a run which a figure lacks."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mf_taxi_env import CongestedMotion, EntropyFloor, FreeMotion, Scenario, load_scenario
from safe_m3_agent.config import Config
from safe_m3_agent.figures.recorded import Group, RecordedRun
from safe_m3_agent.worlds import SCENARIO_FILE


def train_command(group: Group, entropy_floor: float | None = None, **changes: Any) -> str:
    """The ``safe-m3 train`` command of the first run of a group, with some settings changed.

    Args:
        group: The runs to change.
        entropy_floor: Another entropy floor.
        changes: Other settings of the agent, by the names of :class:`~safe_m3_agent.Config`.

    Returns:
        A line for a shell; or, where the command line cannot make such a world, a sentence that says so.
    """
    run, world = group.runs[0], group.world
    alpha = CongestedMotion(world.grid).alpha
    motion = world.motion
    plain = (
        group.floor is not None
        and world.constraints == (EntropyFloor(group.floor),)
        and group.first is None
        and world.reward_timing == "next"
        and world.dtype == torch.float32
        and (isinstance(motion, FreeMotion) or (isinstance(motion, CongestedMotion) and motion.alpha == alpha))
    )
    config = dataclasses.replace(run.config, **changes)
    floor = group.floor if entropy_floor is None else entropy_floor
    wanted = {**({} if entropy_floor is None else {"entropy_floor": entropy_floor}), **changes}
    if not plain:
        settings = ", ".join(f"{name}={value!r}" for name, value in wanted.items())
        return f"no command makes such a run, only the library: the one in {run.folder} with {settings}"
    options = [
        *("--scenario", _scenario_argument(run), "--cells", str(world.grid.cells), "--horizon", str(world.horizon)),
        *("--noise-std", repr(world.noise.std), "--motion", "free" if isinstance(motion, FreeMotion) else "congested"),
        *("--entropy-floor", repr(floor), "--episodes", str(len(run.history)), "--seed", str(run.seed)),
        *_flags(config, Config()),
        *("--out", str(_unused_folder(run.folder, wanted))),
    ]
    return shlex.join(["safe-m3", "train", *options])


def _scenario_argument(run: RecordedRun) -> str:
    """The name of a built-in scenario, or the file that every run keeps."""
    scenario: Scenario = run.world.scenario
    try:
        if load_scenario(scenario.name, cells=scenario.cells).digest == scenario.digest:
            return scenario.name
    except (ValueError, OSError):  # the name is nobody's
        pass
    return str(run.folder / SCENARIO_FILE)


def _flags(settings: Any, defaults: Any, prefix: str = "") -> Iterator[str]:
    """Options for everything that is not at its default."""
    for field in dataclasses.fields(settings):
        value, default = getattr(settings, field.name), getattr(defaults, field.name)
        name = field.name.replace("_", "-")
        if value == default:
            continue
        if dataclasses.is_dataclass(value):
            yield from _flags(value, default, f"{prefix}{name}.")
        elif isinstance(value, bool):
            yield f"--{prefix}{'' if value else 'no-'}{name}"
        else:
            yield f"--{prefix}{name}"
            yield from map(str, value if isinstance(value, tuple) else (value,))


def _unused_folder(folder: Path, wanted: dict[str, Any]) -> Path:
    words = []
    for name, value in wanted.items():
        if name == "model":
            words.append(str(value))
        elif name == "constrained":
            words.append("constrained" if value else "unconstrained")
        else:
            words.append(f"{name.replace('_', '-')}-{value}")
    target = folder.with_name("-".join([folder.name, *words]))
    number = 2
    while target.exists():
        target = folder.with_name("-".join([folder.name, *words, str(number)]))
        number += 1
    return target
