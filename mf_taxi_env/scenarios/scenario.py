"""The data of a city: demand, trips and where it lies. Frozen and validated, so that whoever holds one can trust it."""

from __future__ import annotations

import functools
import hashlib
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
from numpy.typing import NDArray
from scipy import sparse

from mf_taxi_env.atomic import replacing
from mf_taxi_env.checks import whole_number
from mf_taxi_env.scenarios.trip_probabilities import (
    TripMatrix,
    Trips,
    cell_overlap,
    distributions,
    pack,
    resampled,
    unpack,
    validated_trips,
)

FORMAT = "mf-taxi-scenario"
#: Version 2 may hold sparse trips. A dense scenario is still written as version 1, which older readers know.
FORMAT_VERSION = 2

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Scenario:
    """Demand and trips of a city on ``k x k`` cells.

    Arrays are kept as read-only float64; those that can be written to are copied. Cell ``(i, j)``, ``i`` along longitude and
    ``j`` along latitude, has index ``i * k + j``.

    Args:
        name: Short name, for tables and figures.
        demand: Share of trip requests per cell, ``[K]``, or per step ``[T, K]``; sums to one.
        trips: ``trips[c, d]`` is the probability that a trip from cell ``c`` ends in ``d``: ``[K, K]`` or ``[T, K, K]``,
            every row sums to one. On fine grids better sparse: a ``scipy.sparse.csr_array`` or a tuple of ``T``. A cell
            without trips has the identity row: its taxis stay.
        box: Study area ``(west, east, south, north)`` in degrees.
        entropy_floor: Default safety constraint: the fleet's entropy is at least this share of ``log K``.
        provenance: Where the data comes from: text and numbers, kept with the scenario as JSON would keep them.

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
    trips: Trips
    box: Box
    entropy_floor: float = 0.95
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name must be a non-empty string, got {self.name!r}")
        demand = distributions("demand", self.demand, (1, 2))
        size = demand.shape[-1]
        if math.isqrt(size) ** 2 != size:
            raise ValueError(f"demand must have k * k cells, got {size}, which is not a square")
        trips = validated_trips(self.trips, size)
        if demand.ndim == 2 and _varies(trips) and len(demand) != len(trips):
            raise ValueError(f"demand has {len(demand)} steps and trips {len(trips)}: they must be equal")
        # The dataclass is frozen for its users; validation is the one place that may still write.
        object.__setattr__(self, "demand", demand)
        object.__setattr__(self, "trips", trips)
        object.__setattr__(self, "box", validated_box(self.box))
        object.__setattr__(self, "entropy_floor", validated_floor(self.entropy_floor))
        object.__setattr__(self, "provenance", MappingProxyType(_plain(self.provenance)))

    @property
    def cells(self) -> int:
        """Cells per axis, ``k``."""
        return math.isqrt(self.demand.shape[-1])

    @property
    def trip_steps(self) -> tuple[TripMatrix, ...]:
        """Trips ``[K, K]`` of each step, a single one where they do not change."""
        return tuple(self.trips) if _varies(self.trips) else (self.trips,)

    @property
    def steps(self) -> int:
        """Steps that the data tell apart, 1 where neither demand nor trips change; in a longer episode the last one repeats."""
        return max(len(np.atleast_2d(self.demand)), len(self.trip_steps))

    @property
    def demand_entropy(self) -> float:
        """Entropy of the demand, of its mean where it changes by step, as a share of ``log K``."""
        if self.demand.shape[-1] == 1:
            return 1.0
        mean = self.demand.reshape(-1, self.demand.shape[-1]).mean(0)
        positive = mean[mean > 0]
        return float(-(positive * np.log(positive)).sum() / math.log(mean.size))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of demand and trips: whether two cities are the same, on whatever machine they were made."""
        arrays = (self.demand, *pack(self.trips).values())
        return hashlib.sha256(b"".join(_told_apart(array).tobytes() for array in arrays)).hexdigest()

    def resample(self, cells: int) -> Scenario:
        """The same city on another grid, mass spread by overlapping area.

        Args:
            cells: Cells per axis of the new grid, at least 1.
        """
        cells = whole_number("cells", cells, least=1)
        if cells == self.cells:
            return self
        overlap = cell_overlap(self.cells, cells)
        # Trips are weighted by demand on the way. A vanishing uniform weight lets cells without demand keep their own row.
        weights = np.atleast_2d(self.demand / self.demand.shape[-1] + 1e-12)
        of_steps = self.trip_steps
        trips = [resampled(of_steps[t % len(of_steps)], weights[t % len(weights)], overlap) for t in range(self.steps)]
        constant = self.demand.ndim == 1 and not _varies(self.trips)
        return replace(
            self,
            demand=self.demand @ overlap,
            trips=trips[0] if constant else tuple(trips) if sparse.issparse(trips[0]) else np.stack(trips),
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
            "version": 1 if isinstance(self.trips, np.ndarray) else FORMAT_VERSION,
            "name": self.name,
            "box": list(self.box),
            "entropy_floor": self.entropy_floor,
            "provenance": dict(self.provenance),
        }
        with replacing(target) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, header=np.array(json.dumps(header)), demand=self.demand, **pack(self.trips))
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
                demand = file["demand"]
                trips = unpack(file, demand.shape[-1])
        except (
            OSError,
            ValueError,
            TypeError,
            LookupError,
            EOFError,
            zipfile.BadZipFile,
            zlib.error,
            NotImplementedError,
        ) as error:
            raise ValueError(f"{path} is not a readable scenario file: {error}") from error
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise ValueError(f"{path} is not a scenario file (no {FORMAT!r} header)")
        if header.get("version") not in range(1, FORMAT_VERSION + 1):
            raise ValueError(f"{path} has format version {header.get('version')!r}; this library reads 1 to {FORMAT_VERSION}")
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


def _told_apart(array: NDArray[Any]) -> NDArray[Any]:
    """An array as far as it tells cities apart: processors differ in the last digits of a number, and where it vanishes."""
    if not np.issubdtype(array.dtype, np.floating):
        return array.astype(np.int64)
    mantissa, exponent = np.frexp(np.where(array < 1e-18, 0.0, array))
    return np.asarray(np.ldexp(np.round(np.ldexp(mantissa, 20)), exponent - 20))  # twenty binary digits


def validated_floor(floor: Any) -> float:
    """An entropy floor as a Python float.

    Raises:
        ValueError: If it is no number in [0, 1].
    """
    number = isinstance(floor, int | float | np.integer | np.floating) and not isinstance(floor, bool)
    if not number or not 0.0 <= floor <= 1.0:
        raise ValueError(f"entropy_floor must lie in [0, 1] (a share of log K), got {floor!r}")
    return float(floor)


def _plain(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance as a file holds it, NumPy's scalars as Python's: said here, or saving would fail long after."""

    def python(value: object) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"{value!r} is neither")

    try:
        if not isinstance(provenance, Mapping):
            raise TypeError("it is no mapping")
        plain: dict[str, Any] = json.loads(json.dumps(dict(provenance), default=python))
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance must be a mapping of names to text and numbers, got {provenance!r}: {error}") from error
    return plain


def _varies(trips: Trips) -> bool:
    return isinstance(trips, tuple) or trips.ndim == 3
