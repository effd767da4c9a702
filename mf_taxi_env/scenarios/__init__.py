"""Cities: built in, generated, read from a file, or made from trip records."""

from __future__ import annotations

import os
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

from mf_taxi_env.checks import whole_number
from mf_taxi_env.scenarios.city import ParametricCity
from mf_taxi_env.scenarios.scenario import Scenario
from mf_taxi_env.scenarios.synthetic import scenario_family, synthetic_scenario
from mf_taxi_env.scenarios.traces import trips_from_traces
from mf_taxi_env.scenarios.trips import scenario_from_trips

__all__ = [
    "ParametricCity",
    "Scenario",
    "list_scenarios",
    "load_scenario",
    "scenario_family",
    "scenario_from_trips",
    "synthetic_scenario",
    "trips_from_traces",
]

SYNTHETIC = "synthetic"


def list_scenarios() -> list[str]:
    """Names of the built-in scenarios, sorted."""
    return sorted([SYNTHETIC, *(Path(entry.name).stem for entry in files(__name__).iterdir() if entry.name.endswith(".toml"))])


def load_scenario(name: str | os.PathLike[str], cells: int = 25) -> Scenario:
    """A scenario by its name or from a file.

    Args:
        name: A built-in (see :func:`list_scenarios`), where ``"synthetic:7"`` is the generated city of seed 7; or the path of a
            ``.npz`` scenario (see :meth:`Scenario.save`), or of a ``.toml`` file of city parameters (see
            :class:`ParametricCity`).
        cells: Cells per axis, ``k``. Built-ins and parameters are made for that grid; a ``.npz`` of another is resampled.

    Returns:
        The scenario on ``k x k`` cells.

    Raises:
        FileNotFoundError: If ``name`` is a path and there is no such file.
        ValueError: If the name is unknown, the file is malformed, or ``cells`` is no integer of at least 1.

    Example:
        >>> load_scenario("shenzhen", cells=10).demand.shape
        (100,)
    """
    cells = whole_number("cells", cells, least=1)
    path = Path(name)
    if path.suffix == ".npz":
        return Scenario.load(path).resample(cells)
    if path.suffix == ".toml":
        return ParametricCity.load(path).scenario(cells)
    name = os.fspath(name)
    family, _, seed = name.partition(":")
    if family == SYNTHETIC and (name == SYNTHETIC or seed.isdecimal()):
        return synthetic_scenario(cells, int(seed or 0))
    known = list_scenarios()
    if name not in known:
        raise ValueError(f"unknown scenario {name!r}; known are {known}, 'synthetic:SEED', or the path of a .npz or .toml file")
    return _built_in(name).scenario(cells)


@cache
def _built_in(name: str) -> ParametricCity:
    # Frozen, so that one copy serves everybody.
    with as_file(files(__name__) / f"{name}.toml") as path:
        return ParametricCity.load(path)
