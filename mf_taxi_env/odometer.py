"""How far the taxis of a fleet drive, as the crow flies."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Kilometres(NamedTuple):
    """What a taxi drives in one step, as the crow flies, mean of the fleet ``[]`` (or ``[T]``); NaN where there is no map."""

    repositioning: Tensor  #: from where it departs to where its motion takes it
    empty: Tensor  #: from where it departs to where it lands: repositioning and noise
    carried: Tensor  #: with a passenger; zero for a taxi without one


class Odometer:
    """Adds up the ways of a fleet, block by block.

    Args:
        sides: Kilometres across the city from west to east and from south to north; NaN where there is no map.
        keeps: Whether ways are kept, and measured only where somebody asks: time for small fleets, whose env does not ask, but
            the ways of a large one would take memory.
    """

    def __init__(self, sides: tuple[float, float], *, keeps: bool) -> None:
        self._width, self._height = sides
        self._keeps = keeps
        self._ways: list[tuple[Tensor, Tensor]] = []
        self._measured: list[Tensor] = []

    def add(self, start: Tensor, end: Tensor) -> None:
        """Ways between places ``[n, d]`` of the unit square, which the caller leaves as they are from now on."""
        if self._keeps:
            self._ways.append((start, end))
        elif not self._measured:
            self._measured.append(self._length(start, end))
        else:
            # In place: small tensors that every block left behind would keep the memory between them from being used again.
            self._measured[0] += self._length(start, end)

    def total(self) -> Tensor:
        """Kilometres of all ways, float64 ``[]``."""
        lengths = [self._length(*way) for way in self._ways] if self._keeps else self._measured
        return torch.stack(lengths).sum() * self._width

    def _length(self, start: Tensor, end: Tensor) -> Tensor:
        """Sum of the lengths of ways, in widths of the city; in float64, for fleets are large."""
        if math.isnan(self._width):
            return start.new_zeros((), dtype=torch.float64)
        x, y = (end - start).unbind(-1)
        # No way is longer than the city is: plain squares do what torch.hypot takes twice as long for, lest they overflow.
        squares = torch.addcmul(x.square(), y, y, value=(self._height / self._width) ** 2)
        return squares.sqrt_().sum(dtype=torch.float64)
