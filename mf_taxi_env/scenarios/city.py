"""A city in a page of numbers: demand and trips from a few dozen parameters, on a grid of any size. NumPy only.

Demand and attraction are mixtures of Gaussians over the study area. Where a trip that starts in cell ``c`` ends is given by the
singly constrained gravity model (Wilson 1971, *A family of spatial interaction models*)

    P(d | c)  proportional to  attraction(d) * decay(kilometres between c and d).

Real trips are fitted once (``scripts/fit_city.py``); only the parameters travel with the package.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.polynomial.legendre import leggauss
from numpy.typing import NDArray

from mf_taxi_env.checks import whole_number
from mf_taxi_env.scenarios.scenario import Box, Scenario, validated_box, validated_floor
from mf_taxi_env.scenarios.trip_probabilities import rows_or_identity

#: Mean radius of the Earth in kilometres (IUGG).
EARTH_RADIUS = 6371.0088
#: Narrowest component, in sides of the unit square: a tenth of the usual cell. It bounds the number of quadrature nodes.
SMALLEST_STD = 0.004
#: Quadrature nodes per axis for the decay, shared among the cells.
DECAY_NODES = 100


class Component(NamedTuple):
    """One Gaussian of a mixture over the unit square."""

    weight: float
    """Relative weight, above zero; weights need not sum to one."""
    x: float
    """Mean along longitude, in [0, 1]."""
    y: float
    """Mean along latitude, in [0, 1]."""
    std_along: float
    """Standard deviation along the component's own axis, in sides of the unit square."""
    std_across: float
    """Standard deviation across that axis, in sides of the unit square."""
    angle: float
    """Direction of that axis in degrees, counter-clockwise from east."""


@dataclass(frozen=True)
class Mixture:
    """A density over the unit square: Gaussians, cut off at the square's edge, on a uniform ground.

    Args:
        components: At least one Gaussian.
        uniform: Share of the mass that is spread uniformly, in [0, 1). A tiny share keeps every cell above zero.

    Raises:
        ValueError: If a number is not finite or out of its range; the message names it, its value and the range.
    """

    components: tuple[Component, ...]
    uniform: float = 0.0

    def __post_init__(self) -> None:
        if not self.components:
            raise ValueError("components must hold at least one Gaussian, got none")
        if not 0.0 <= self.uniform < 1.0:
            raise ValueError(f"uniform must lie in [0, 1), got {self.uniform!r}")
        limits = {"weight": (0.0, math.inf), "x": (0.0, 1.0), "y": (0.0, 1.0), "angle": (-360.0, 360.0)}
        limits |= dict.fromkeys(("std_along", "std_across"), (SMALLEST_STD, math.inf))
        for index, component in enumerate(self.components):
            for key, value in component._asdict().items():
                low, high = limits[key]
                if not (math.isfinite(value) and low <= value <= high and (key != "weight" or value > 0)):
                    allowed = "above 0" if key == "weight" else f"in [{low:g}, {high:g}]"
                    raise ValueError(f"components[{index}]: {key} must be finite and {allowed}, got {value!r}")

    def cell_masses(self, cells: int) -> NDArray[np.float64]:
        """Mass per cell of the ``k x k`` grid, ``[K]``, sums to one; by Gauss-Legendre quadrature inside each cell."""
        # Two nodes per standard deviation of the narrowest component, and never fewer than two in a cell.
        narrowest = min(min(component.std_along, component.std_across) for component in self.components)
        nodes, weights = leggauss(max(2, math.ceil(2.0 / (narrowest * cells))))
        position = ((np.arange(cells)[:, None] + 0.5 + 0.5 * nodes) / cells).ravel()
        density = np.zeros((position.size, position.size))
        for weight, x, y, along, across, angle in self.components:
            cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            dx, dy = (position - x)[:, None], (position - y)[None, :]
            # Half of the precision matrix; one component at a time bounds the memory on fine grids.
            a, b = 0.5 / along**2, 0.5 / across**2
            xx, yy, xy = a * cos**2 + b * sin**2, a * sin**2 + b * cos**2, 2.0 * (a - b) * sin * cos
            exponent = (xy * dx) * dy
            exponent += xx * dx**2
            exponent += yy * dy**2
            density += weight / (along * across) * np.exp(-exponent)
        blocks = density.reshape(cells, len(nodes), cells, len(nodes))
        mass: NDArray[np.float64] = np.einsum("iajb,a,b->ij", blocks, weights, weights, optimize=True).ravel()
        mass *= (1.0 - self.uniform) / mass.sum()
        return mass + self.uniform / mass.size


@dataclass(frozen=True)
class DistanceDecay:
    """How willingly people ride a distance: ``r ** power * exp(-r ** shape)`` with ``r = km / scale_km``.

    ``power > 0`` lets the very short trips, which people walk, be rare; ``shape`` sets how heavy the tail of long trips is.

    Args:
        power: At least 0.
        scale_km: Length scale in kilometres, above 0.
        shape: Above 0; 1 gives a gamma-like decay, 2 a Gaussian-like one.

    Raises:
        ValueError: If a number is out of its range.
    """

    power: float
    scale_km: float
    shape: float

    def __post_init__(self) -> None:
        for key, value, positive in (
            ("power", self.power, False),
            ("scale_km", self.scale_km, True),
            ("shape", self.shape, True),
        ):
            if not (math.isfinite(value) and (value > 0 if positive else value >= 0)):
                raise ValueError(f"{key} must be finite and {'above 0' if positive else 'at least 0'}, got {value!r}")

    def cell_averages(self, cells: int, box: Box) -> NDArray[np.float64]:
        """Mean decay between two cells that lie ``(i, j)`` cells apart, ``[k, k]``.

        The mean is over all pairs of points, one in either cell, so that a coarse grid, whose cells are kilometres wide, keeps
        the trips within a cell that the distance of the centres would forbid.
        """
        width, height = (side / cells for side in box_km(box))
        nodes, weights = leggauss(max(2, math.ceil(DECAY_NODES / (2 * cells))))
        nodes, weights = 0.5 + 0.5 * nodes, 0.5 * weights
        # The difference of two uniform points has the triangular density 1 - |u| on [-1, 1].
        offset = np.concatenate([-nodes[::-1], nodes])
        density = np.concatenate([(weights * (1 - nodes))[::-1], weights * (1 - nodes)])
        steps = (np.arange(cells)[:, None] + offset).ravel()
        ratio = np.hypot((steps * width)[:, None], (steps * height)[None, :]) / self.scale_km
        blocks = (ratio**self.power * np.exp(-(ratio**self.shape))).reshape(cells, len(offset), cells, len(offset))
        averages: NDArray[np.float64] = np.einsum("iajb,a,b->ij", blocks, density, density, optimize=True)
        return averages


@dataclass(frozen=True)
class ParametricCity:
    """A city given by a few dozen numbers.

    Args:
        name: Short name, for tables and figures.
        box: Study area ``(west, east, south, north)`` in degrees.
        demand: Where trips start.
        attraction: Where trips would end if distance did not matter.
        decay: How the distance matters.
        entropy_floor: Default safety constraint of its scenarios, as a share of ``log K``.
        provenance: Where the numbers come from.

    Raises:
        ValueError: If a field is malformed; the message names the field, its value and what is allowed.

    Example:
        >>> centre = Mixture((Component(1.0, 0.5, 0.5, 0.2, 0.1, 45.0),), uniform=0.01)
        >>> city = ParametricCity("toy", (114.0, 114.1, 22.5, 22.6), centre, centre, DistanceDecay(1.0, 2.0, 1.0))
        >>> city.scenario(cells=5).trips.shape
        (25, 25)
    """

    name: str
    box: Box
    demand: Mixture
    attraction: Mixture
    decay: DistanceDecay
    entropy_floor: float = 0.95
    provenance: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name must be a non-empty string, got {self.name!r}")
        object.__setattr__(self, "entropy_floor", validated_floor(self.entropy_floor))
        object.__setattr__(self, "box", validated_box(self.box))

    def scenario(self, cells: int = 25) -> Scenario:
        """The city on ``k x k`` cells.

        Args:
            cells: Cells per axis, ``k``, at least 1. Trips take ``8 k^4`` bytes.

        Raises:
            ValueError: If ``cells`` is no integer of at least 1.
        """
        cells = whole_number("cells", cells, least=1)
        size = cells * cells
        apart = np.abs(np.arange(cells)[:, None] - np.arange(cells))
        decay = self.decay.cell_averages(cells, self.box)
        trips = np.empty((size, size))
        # Axes: origin i, origin j, destination i', destination j'. Column by column: on fine grids every copy counts.
        for i, column in enumerate(trips.reshape(cells, cells, cells, cells)):
            column[:] = decay[apart[i][None, :, None], apart[:, None, :]]
        trips *= self.attraction.cell_masses(cells)
        return Scenario(
            name=self.name,
            demand=self.demand.cell_masses(cells),
            trips=rows_or_identity(trips),
            box=self.box,
            entropy_floor=self.entropy_floor,
            provenance={"parametric": True, "source": self.provenance},
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ParametricCity:
        """Read the parameters from a TOML file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no TOML, or a key is missing, unknown or has a bad value; file, key and value are named.
        """
        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a TOML file: {error}") from error
        try:
            _only(table, {"name", "box", "entropy_floor", "provenance", "demand", "attraction", "decay"}, "")
            box = _numbers(_get(table, "box", list), 4, "box = [west, east, south, north]")
            return cls(
                name=_get(table, "name", str),
                box=(box[0], box[1], box[2], box[3]),
                demand=_mixture(table, "demand"),
                attraction=_mixture(table, "attraction"),
                decay=_decay(table),
                entropy_floor=_number(table, "entropy_floor"),
                provenance=_get(table, "provenance", str),
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def box_km(box: Box) -> tuple[float, float]:
    """Width and height of a box in kilometres, the width at its middle latitude."""
    west, east, south, north = box
    degree = math.pi / 180 * EARTH_RADIUS
    return (east - west) * degree * math.cos(math.radians((south + north) / 2)), (north - south) * degree


def _mixture(table: Mapping[str, Any], key: str) -> Mixture:
    section = _get(table, key, dict)
    _only(section, {"uniform", "components"}, f"{key}.")
    rows = _get(section, "components", list, f"{key}.")
    shape = f"[{', '.join(Component._fields)}]"
    components = tuple(Component(*_numbers(row, 6, f"{key}.components[{index}] = {shape}")) for index, row in enumerate(rows))
    uniform = _number(section, "uniform", f"{key}.")
    try:
        return Mixture(components, uniform)
    except ValueError as error:
        raise ValueError(f"{key}.{error}") from error


def _decay(table: Mapping[str, Any]) -> DistanceDecay:
    section = _get(table, "decay", dict)
    _only(section, {"power", "scale_km", "shape"}, "decay.")
    power, scale_km, shape = (_number(section, key, "decay.") for key in ("power", "scale_km", "shape"))
    try:
        return DistanceDecay(power, scale_km, shape)
    except ValueError as error:
        raise ValueError(f"decay.{error}") from error


def _get(table: Mapping[str, Any], key: str, kind: type, prefix: str = "") -> Any:
    if key not in table:
        raise ValueError(f"key {prefix}{key} is missing")
    value = table[key]
    if not isinstance(value, kind):
        wanted: dict[type, str] = {str: "a string", list: "an array", dict: "a table"}
        raise ValueError(f"{prefix}{key} must be {wanted[kind]}, got {value!r}")
    return value


def _number(table: Mapping[str, Any], key: str, prefix: str = "") -> float:
    if key not in table:
        raise ValueError(f"key {prefix}{key} is missing")
    if not _is_number(table[key]):
        raise ValueError(f"{prefix}{key} must be a number, got {table[key]!r}")
    return float(table[key])


def _numbers(row: object, count: int, shape: str) -> list[float]:
    values = cast("list[float]", row) if isinstance(row, list) else []
    if len(values) != count or not all(map(_is_number, values)):
        raise ValueError(f"{shape} must be {count} numbers, got {row!r}")
    return [float(value) for value in values]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _only(table: Mapping[str, Any], known: set[str], prefix: str) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise ValueError(f"unknown key {prefix}{unknown[0]} = {table[unknown[0]]!r}; known are {sorted(known)}")
