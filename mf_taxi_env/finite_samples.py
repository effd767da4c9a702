"""What finitely many taxis make of a margin of the mean field: the entropy they fall short by, and how many are enough."""

from __future__ import annotations

import math

from torch import Tensor

from mf_taxi_env.mdp import MeanFieldMDP
from mf_taxi_env.safety import EntropyFloor


def entropy_bias(cells: int, taxis: float) -> float:
    """By how much, in nats, the entropy of ``taxis`` samples falls short of that of what they are drawn from, on average.

    The first term ``(K - 1) / (2 m)`` of an expansion for many samples per cell, all of which have mass (Miller 1955). With
    fewer taxis than cells it says nothing: it would exceed what the entropy can be off by, and call every fleet safe.

    Args:
        cells: Number of cells ``K``.
        taxis: Fleet size ``m``; infinite for the mean field.

    Returns:
        The shortfall; NaN for ``m < K``.

    Example:
        >>> entropy_bias(625, 10_000)
        0.0312
    """
    return (cells - 1) / (2.0 * taxis) if taxis >= cells else math.nan


def fleet_size_for(margin: float, cells: int, scatter: float = 0.0) -> float:
    """The smallest ``m`` with ``(K - 1) / (2 m) + scatter / sqrt(m)`` at most an entropy margin of the mean field.

    Without a scatter it is the size from which the mean entropy of fleets is above the floor: about half of them are not.

    Args:
        margin: Margin of an entropy floor in the mean field, nats.
        cells: Number of cells ``K``.
        scatter: What of the scatter of single fleets is to be borne, for one taxi: some multiple of
            :func:`mf_taxi_env.safety.scatter`, nats, at least 0.

    Returns:
        The fleet size, at least ``K`` (see :func:`entropy_bias`); infinite for a margin of 0 and below.

    Example:
        >>> fleet_size_for(0.1, 625), fleet_size_for(0.1, 625, scatter=3.5)
        (3120, 5782)
    """
    if not margin > 0:
        return math.inf
    # The positive root, in 1 / sqrt(m), of a quadratic equation; rounded lest a size that is exact becomes the next one.
    root = (scatter + math.sqrt(scatter**2 + 2.0 * (cells - 1) * margin)) / (2.0 * margin)
    return max(cells, math.ceil(round(root**2, 6)))


def corrected_margins(margins: Tensor, world: MeanFieldMDP, taxis: float) -> Tensor:
    """Margins ``[..., n_constraints]`` of a finite fleet, those of entropy floors raised by its :func:`entropy_bias`.

    The result estimates the margin of the distribution that the taxis are drawn from; NaN, for entropy floors, where there are
    fewer taxis than cells. Margins of other constraints, for which no correction is known, are left as they are.
    """
    bias = entropy_bias(world.grid.size, taxis)
    return margins + margins.new_tensor([bias if isinstance(one, EntropyFloor) else 0.0 for one in world.constraints])
