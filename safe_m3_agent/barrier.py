"""The relaxed logarithmic barrier and how its weight falls along the central path."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mf_taxi_env.checks import finite_number, plain_numbers


@dataclass(frozen=True)
class BarrierConfig:
    """Weight and width of the log-barrier (arXiv 2306.17052, Eq. 8a; the published experiments hold the weight at 1).

    The weight follows the central path of an interior-point method (Boyd and Vandenberghe, *Convex Optimization*, Section
    11.3). What passes the certificate's screen, not the clock, drives it: the path is followed only as far as the model
    supports it.

    Attributes:
        initial: Weight ``lambda`` of the first plan, and the largest one, positive.
        final: Smallest weight, positive.
        fall: What the weight is multiplied by after a plan that passes the screen, in ``(0, 1)``.
        rise: What it is multiplied by where all candidates of an episode were refused, at least 1.
        width: ``delta``, in the constraint's unit: below it the logarithm continues as a quadratic. See :func:`width_at`.
    """

    initial: float = 0.3
    final: float = 0.0005
    fall: float = 0.8
    rise: float = 1.3
    width: float = 0.01

    def __post_init__(self) -> None:
        plain_numbers(self)
        if not 0 < self.final <= self.initial < math.inf:
            raise ValueError(
                f"barrier.final and barrier.initial must satisfy 0 < final <= initial, got final={self.final!r}, "
                f"initial={self.initial!r}"
            )
        if not 0 < self.fall < 1 <= self.rise < math.inf:
            raise ValueError(
                f"barrier.fall must lie in (0, 1) and barrier.rise be at least 1, got fall={self.fall!r}, rise={self.rise!r}"
            )
        finite_number("barrier.width", self.width, positive=True)

    def after(self, weight: float, *, certified: bool) -> float:
        """The weight that follows ``weight``, when plans made with it were certified or not."""
        return max(self.final, weight * self.fall) if certified else min(self.initial, weight * self.rise)


def width_at(weight: float, width: float) -> float:
    """The width for a barrier of weight ``lambda``: no more than ``lambda``, or ``width`` itself for no barrier at all.

    Where a unit of margin is worth ``m`` of reward, reward and barrier balance at the margin ``lambda / m`` if the logarithm
    reaches so far, and at ``delta (2 - m delta / lambda)`` in its quadratic continuation: beyond the constraint if ``delta`` is
    more than ``2 lambda / m``. With ``delta <= lambda`` plans settle inside as long as ``m < 2``.
    """
    return min(width, weight) if weight else width


def relaxed_log_barrier(margin: Tensor, width: float) -> Tensor:
    """``log(x)`` for ``x >= width``; below, its quadratic continuation ``log d - 3/2 + 2 x/d - x^2 / (2 d^2)``.

    Value and first two derivatives agree at ``width``. The barrier is finite everywhere and its gradient grows with the
    violation, so an unsafe policy finds its way back; a constant in place of the logarithm of a negative margin has none.

    Args:
        margin: Any shape.
        width: ``delta > 0``.
    """
    # The clamp keeps the unused branch, and so its gradient, finite.
    logarithm = margin.clamp_min(width).log()
    scaled = margin / width
    quadratic = math.log(width) - 1.5 + 2.0 * scaled - 0.5 * scaled.square()
    return torch.where(margin >= width, logarithm, quadratic)
