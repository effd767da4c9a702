"""Fixtures shared by the tests of the environment package."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mf_taxi_env import Scenario


def _random_scenario(
    cells: int, seed: int = 0, *, steps: int | None = None, empty: float = 0.2, entropy_floor: float = 0.5
) -> Scenario:
    rng = np.random.default_rng(seed)
    size = cells * cells
    lead = () if steps is None else (steps,)
    demand = rng.gamma(0.7, size=(*lead, size))
    demand[..., rng.random(size) < empty] = 0.0
    demand[..., 0] += 0.01
    trips = rng.gamma(0.5, size=(*lead, size, size)) + 1e-9
    stays = rng.random(size) < empty
    trips[..., stays, :] = np.eye(size)[stays]
    return Scenario(
        f"random-{cells}-{seed}",
        demand / demand.sum(-1, keepdims=True),
        trips / trips.sum(-1, keepdims=True),
        (0.0, 1.0, 0.0, 1.0),
        entropy_floor,
    )


@pytest.fixture(scope="session")
def make_scenario() -> Callable[..., Scenario]:
    """A random city of ``cells x cells``; a share ``empty`` of its cells has no demand, another no trips (identity rows)."""
    return _random_scenario


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real trips, or a visible skip."""
    folder = Path(os.environ.get("MF_TAXI_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    if not (folder / "shenzhen_od_500m.csv.gz").is_file():
        pytest.skip(f"no real trips: {folder} lacks shenzhen_od_500m.csv.gz (set MF_TAXI_DATA)")
    return folder
