"""How far the taxis of a fleet drive, as the crow flies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mf_taxi_env.scenarios.city import box_km

#: Tells the sum of the lengths of ways, float64 ``[]``, when it is asked.
Reading = Callable[[], Tensor]


class Kilometres(NamedTuple):
    """What a taxi drives in one step, as the crow flies, mean of the fleet ``[]`` (or ``[T]``); NaN where there is no map."""

    repositioning: Tensor  #: from where it departs to where its motion takes it
    empty: Tensor  #: from where it departs to where it lands: repositioning and noise
    carried: Tensor  #: with a passenger; zero for a taxi without one


class Odometer:
    """Reads the ways of a fleet.

    Args:
        box: The city's limits, see :class:`~mf_taxi_env.Scenario`; None where there is no map.
        keeps: Whether ways are kept, and measured only where somebody asks: time for small fleets, whose env does not ask, but
            the ways of a large one would take memory.
    """

    def __init__(self, box: tuple[float, float, float, float] | None, *, keeps: bool) -> None:
        self._width, self._height = (math.nan, math.nan) if box is None else box_km(box)
        self._keeps = keeps

    def read(self, way: Tensor) -> Reading:
        """The reading of ways ``[n, d]``, which the caller leaves as they are from now on."""
        return partial(self._length, way) if self._keeps else partial(torch.clone, self._length(way))

    def mean(self, readings: Sequence[Reading], taxis: int) -> Tensor:
        """Kilometres per taxi of a fleet, float64 ``[]``."""
        return torch.stack([reading() for reading in readings]).sum() * (self._width / taxis)

    def _length(self, way: Tensor) -> Tensor:
        """In widths of the city; summed in float64, for fleets are large."""
        if math.isnan(self._width):
            return way.new_zeros((), dtype=torch.float64)
        x, y = way.unbind(-1)
        # No way is longer than the city is: plain squares do what torch.hypot takes twice as long for, lest they overflow.
        squares = torch.addcmul(x.square(), y, y, value=(self._height / self._width) ** 2)
        return squares.sqrt_().sum(dtype=torch.float64)
