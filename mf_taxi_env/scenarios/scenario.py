"""The data of a city: demand, trips and where it lies. Frozen and validated, so that whoever holds one can trust it."""

from __future__ import annotations

import json
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mf_taxi_env.atomic import replacing

FORMAT = "mf-taxi-scenario"
FORMAT_VERSION = 1

#: Sums may be off by rounding only; the scenario is renormalised within this tolerance and refused beyond it.
SUM_TOLERANCE = 1e-4

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Scenario:
    """Demand and trips of a city on ``k x k`` cells.

    Arrays are copied to read-only float64. Cell ``(i, j)``, ``i`` along longitude and ``j`` along latitude, has index
    ``i * k + j``.

    Args:
        name: Short name, for tables and figures.
        demand: Share of trip requests per cell, ``[K]``, or per step ``[T, K]``; sums to one.
        trips: ``trips[c, d]`` is the probability that a trip from cell ``c`` ends in ``d``: ``[K, K]`` or ``[T, K, K]``,
            every row sums to one. A cell without trips has the identity row: its taxis stay.
        box: Study area ``(west, east, south, north)`` in degrees.
        entropy_floor: Default safety constraint: the fleet's entropy is at least this share of ``log K``.
        provenance: Where the data comes from: text and numbers, kept with the scenario.

    Raises:
        ValueError: If a field is malformed; the message names the field, its value and what is allowed.

    Example:
        >>> import numpy as np
        >>> city = Scenario("toy", np.full(4, 0.25), np.eye(4), box=(0.0, 1.0, 0.0, 1.0))
        >>> city.cells, round(city.demand_entropy, 6)
        (2, 1.0)
    """

    name: str
    demand: NDArray[np.float64]
    trips: NDArray[np.float64]
    box: Box
    entropy_floor: float = 0.95
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name must be a non-empty string, got {self.name!r}")
        demand = _distributions("demand", self.demand, (1, 2))
        size = demand.shape[-1]
        if math.isqrt(size) ** 2 != size:
            raise ValueError(f"demand must have k * k cells, got {size}, which is not a square")
        trips = _distributions("trips", self.trips, (2, 3))
        if trips.shape[-2:] != (size, size):
            raise ValueError(f"trips must end in shape ({size}, {size}) to match demand, got shape {trips.shape}")
        if demand.ndim == 2 and trips.ndim == 3 and len(demand) != len(trips):
            raise ValueError(f"demand has {len(demand)} steps and trips {len(trips)}: they must be equal")
        if not isinstance(self.entropy_floor, (int, float)) or not 0.0 <= self.entropy_floor <= 1.0:
            raise ValueError(f"entropy_floor must lie in [0, 1] (a share of log K), got {self.entropy_floor!r}")
        if not isinstance(self.provenance, Mapping):
            raise ValueError(f"provenance must be a mapping of names to text and numbers, got {self.provenance!r}")
        # The dataclass is frozen for its users; validation is the one place that may still write.
        object.__setattr__(self, "demand", demand)
        object.__setattr__(self, "trips", trips)
        object.__setattr__(self, "box", validated_box(self.box))
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    @property
    def cells(self) -> int:
        """Cells per axis, ``k``."""
        return math.isqrt(self.demand.shape[-1])

    @property
    def demand_entropy(self) -> float:
        """Entropy of the demand (its mean over steps) as a share of ``log K``."""
        if self.demand.shape[-1] == 1:
            return 1.0
        mean = self.demand.reshape(-1, self.demand.shape[-1]).mean(0)
        positive = mean[mean > 0]
        return float(-(positive * np.log(positive)).sum() / math.log(mean.size))

    def resample(self, cells: int) -> Scenario:
        """The same city on another grid, mass spread by overlapping area.

        Args:
            cells: Cells per axis of the new grid, at least 1.
        """
        if cells == self.cells:
            return self
        if not isinstance(cells, int) or cells < 1:
            raise ValueError(f"cells must be an integer >= 1, got {cells!r}")
        overlap = axis_overlap(self.cells, cells)
        demand = _spread(self.demand.reshape(-1, self.cells, self.cells), overlap).reshape(-1, cells * cells)
        # Trips are weighted by demand on the way: a new cell's row is the mix of its old cells' rows. A vanishing uniform
        # weight lets cells without demand keep their own row.
        weight = self.demand / self.demand.shape[-1] + 1e-12
        flow = weight[..., :, None] * self.trips
        old = (self.cells, self.cells)
        by_origin = _spread(np.moveaxis(flow.reshape(-1, *old, self.cells**2), -1, 1), overlap)
        by_both = _spread(
            np.moveaxis(by_origin.reshape(-1, self.cells**2, cells**2), -1, 1).reshape(-1, cells**2, *old), overlap
        )
        trips = rows_or_identity(by_both.reshape(-1, cells**2, cells**2))
        return replace(
            self,
            demand=demand if self.demand.ndim == 2 else demand[0],
            trips=trips if flow.ndim == 3 else trips[0],
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the scenario to a compressed ``.npz`` file, whole or not at all.

        Args:
            path: Target; ``.npz`` is appended where it is missing.

        Returns:
            The path written.
        """
        target = Path(path)
        if target.suffix != ".npz":
            target = target.with_name(target.name + ".npz")
        header = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "name": self.name,
            "box": list(self.box),
            "entropy_floor": self.entropy_floor,
            "provenance": dict(self.provenance),
        }
        with replacing(target) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, header=np.array(json.dumps(header)), demand=self.demand, trips=self.trips)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scenario:
        """Read a scenario written by :meth:`save`. Nothing in the file is executed.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not a scenario, is corrupt, or is of a newer format.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no scenario file at {path}")
        try:
            with zipfile.ZipFile(path):  # anything but an archive, NumPy would try to unpickle, or recommend to
                pass
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(str(file["header"][()]))
                demand, trips = file["demand"], file["trips"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise ValueError(f"{path} is not a readable scenario file: {error}") from error
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise ValueError(f"{path} is not a scenario file (no {FORMAT!r} header)")
        if header.get("version") != FORMAT_VERSION:
            raise ValueError(f"{path} has format version {header.get('version')!r}; this library reads {FORMAT_VERSION}")
        missing = {"name", "box", "entropy_floor", "provenance"} - header.keys()
        if missing:
            raise ValueError(f"{path} is not a whole scenario file: its header lacks {sorted(missing)}")
        try:
            return cls(header["name"], demand, trips, header["box"], header["entropy_floor"], header["provenance"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def __repr__(self) -> str:
        return f"Scenario({self.name!r}, cells={self.cells}, box={self.box}, entropy_floor={self.entropy_floor})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "provenance": dict(self.provenance)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Read-only views do not survive pickling; validation puts them back.
        self.__dict__.update(state)
        self.__post_init__()


def validated_box(box: Box) -> Box:
    """``(west, east, south, north)`` as floats.

    Raises:
        ValueError: If the box is empty, swapped, or not in degrees.
    """
    try:
        west, east, south, north = (float(edge) for edge in box)
    except (TypeError, ValueError) as error:
        raise ValueError(f"box must be four numbers (west, east, south, north) in degrees, got {box!r}") from error
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise ValueError(
            f"box must satisfy -180 <= west < east <= 180 and -90 <= south < north <= 90 degrees, got "
            f"west={west}, east={east}, south={south}, north={north}"
        )
    return west, east, south, north


def axis_overlap(source: int, target: int) -> NDArray[np.float64]:
    """Share of each of ``source`` equal cells of an axis that lies in each of ``target`` cells, ``[source, target]``."""
    low, high = np.arange(source)[:, None] / source, (np.arange(source)[:, None] + 1) / source
    edges = np.arange(target + 1) / target
    overlap: NDArray[np.float64] = np.clip(np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1]), 0.0, None) * source
    return overlap


def rows_or_identity(flow: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normalise the rows of flows ``[..., K, K]``; a row without a trip becomes the identity: the taxi stays."""
    totals = flow.sum(-1, keepdims=True)
    # An all-zero row would lose the mass of its cell, and renormalising afterwards would spread that mass over the city.
    return np.where(totals > 0, flow / np.where(totals > 0, totals, 1.0), np.eye(flow.shape[-1]))


def _spread(mass: NDArray[np.float64], overlap: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move mass ``[..., k, k]`` to the grid of ``overlap`` ``[k, k']``."""
    spread: NDArray[np.float64] = overlap.T @ mass @ overlap
    return spread


def _distributions(name: str, values: ArrayLike, ndims: tuple[int, ...]) -> NDArray[np.float64]:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers: {error}") from error
    if array.ndim not in ndims or array.size == 0:
        raise ValueError(
            f"{name} must have {' or '.join(map(str, ndims))} dimensions and not be empty, got shape {array.shape}"
        )
    bad = int((~np.isfinite(array)).sum() + (array < 0).sum())
    if bad:
        raise ValueError(f"{name} must be finite and non-negative; {bad} of {array.size} entries are not")
    sums = array.sum(-1, keepdims=True)
    off = int((np.abs(sums - 1) > SUM_TOLERANCE).sum())
    if off:
        worst = float(sums.flat[np.abs(sums - 1).argmax()])
        raise ValueError(f"{name} must sum to one along its last axis; {off} of {sums.size} sums do not (worst {worst:.6g})")
    # Left alone where only rounding is off, so that saving and loading changes no bit.
    array /= np.where(np.abs(sums - 1) > 1e-12, sums, 1.0)
    array.flags.writeable = False
    return array
