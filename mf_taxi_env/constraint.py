"""What a safety constraint is, and what all of them check and share."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mf_taxi_env.checks import is_number, whole_number

#: Lipschitz constant of margins that have none: what the experiments of arXiv 2306.17052 (Section 5) use for the entropy.
MODELLING_LIPSCHITZ = 0.1
#: Cells of the largest grid for which a constraint that is not told its size claims a proven constant: 25 x 25 in a square.
LARGEST_SIZE = 625


@runtime_checkable
class Constraint(Protocol):
    """A safety constraint ``h(mu) >= C``.

    Lipschitz constants are with respect to the Wasserstein-1 distance in sides of the unit square, interval or ring, as arXiv
    2306.17052 (Section 3.3) assumes: ``|h(mu) - h(nu)| <= L_h W1(mu, nu)``. With ``k`` cells per axis, mass that changes its
    cell goes at least ``1/k`` far, so ``TV(mu, nu) <= k W1(mu, nu)``: a constant ``L`` in total variation is ``k L`` here.

    How many cells an axis has, ``k = K^(1 / dimension)``, does not show in a distribution ``[K]``: 100 cells may be a ring or
    10 x 10. A constraint whose margin or constant depends on it therefore has a field ``dimension``, 1 for an interval or a
    ring and 2, the default of those here, for a square; one that does not, such as an entropy floor, need not have it. On a
    ring Wasserstein-1 itself must also know that the ends meet, see ``periodic`` of :class:`mf_taxi_env.DistanceCap`.

    A constraint may also have what makes the certificate of :func:`mf_taxi_env.certified_bound` tight:

    - ``concave_margin(mu)``, where ``margin`` is not concave although the safe set is convex: a concave function in torch that
      is at least zero exactly there, and equal to ``convex_margin``;
    - ``tangent(mu, slope)``, where ``margin`` is a minimum of linear functions ``offset + slope . mu`` and so has kinks: of
      those that touch it at ``mu``, the ``(offset, slope)`` whose slope ``[K]`` is nearest to the given one.

    And ``scatter(mu)``, by how much the margins of finite fleets differ, which :func:`mf_taxi_env.safety.scatter` explains.
    """

    @property
    def name(self) -> str:
        """Key of this constraint in ``info["margins"]``."""
        ...

    @property
    def lipschitz(self) -> float:
        """``L_h``: by how much the margin may fall per unit of ``W1`` that the distribution is off."""
        ...

    def margin(self, mu: Tensor) -> Tensor:
        """``h(mu) - C``.

        Args:
            mu: Distributions ``[..., K]``.

        Returns:
            ``[...]``; safe where at least zero.
        """
        ...

    def convex_margin(self, mu: Any) -> Any:
        """The margin as a concave CVXPY expression of another ``[K]``, for :func:`mf_taxi_env.certified_bound`.

        Raises:
            TypeError: If the safe set is not convex, or has no convex program of moderate size.
        """
        ...


def deviation(mu: Tensor, slope: Tensor) -> Tensor:
    """Standard deviation ``[...]`` of ``slope`` ``[..., K]`` in a cell drawn from ``mu`` ``[..., K]``: of a margin with this
    slope, to first order, times the root of the number of taxis that are drawn."""
    centred = slope - (mu * slope).sum(-1, keepdim=True)
    variance: Tensor = (mu * centred.square()).sum(-1)
    return variance.clamp_min(1e-12).sqrt()  # the root has no slope at zero


def store(constraint: object, **fields: Any) -> None:
    """Set the checked fields of a frozen dataclass, as only its constructor may."""
    for name, value in fields.items():
        object.__setattr__(constraint, name, value)


def share(name: str, value: float) -> float:
    """``value`` if it is a number in ``[0, 1]``; ValueError otherwise."""
    if not (is_number(value) and 0.0 <= value <= 1.0):
        raise ValueError(f"{name} must lie in [0, 1], got {value!r}")
    return float(value)


def checked_dimension(value: int) -> int:
    """``value`` if it is 1 (interval or ring) or 2 (square); ValueError otherwise."""
    return whole_number("dimension", value, least=1, most=2)


def checked_size(value: int | None) -> int | None:
    """``value`` if it is a number of cells, or None where that is unknown; ValueError otherwise."""
    return None if value is None else whole_number("size", value, least=1)


def from_total_variation(slope: float, size: int | None, dimension: int) -> float:
    """``L_h`` of a margin with Lipschitz constant ``slope`` in total variation: ``k slope``, see :class:`Constraint`."""
    return slope * cells_per_axis(LARGEST_SIZE if size is None else size, dimension)


def cells_per_axis(size: int, dimension: int) -> int:
    """``k`` of a grid of ``size = k ** dimension`` cells; ValueError for another number."""
    k = size if dimension == 1 else math.isqrt(size)
    if k**dimension != size:
        raise ValueError(f"the number of cells must be k * k on a square grid (pass dimension=1 on a line or ring), got {size}")
    return k


def check_size(mu: Any, size: int | None) -> None:
    """ValueError where ``mu``, a tensor or a CVXPY variable ``[..., K]``, has other cells than the constraint is for."""
    given = mu.shape[-1]
    if size is None and given > LARGEST_SIZE:
        raise ValueError(f"size must be given for grids of more than {LARGEST_SIZE} cells: mu has {given}, pass size={given}")
    if size is not None and given != size:
        raise ValueError(f"mu must have the {size} cells that the constraint is for, got {given}")


def array(values: ArrayLike | Tensor) -> NDArray[Any]:
    """NumPy's view of what a user handed in, from whatever device."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def nonnegative(name: str, values: ArrayLike | Tensor) -> NDArray[np.float64]:
    """``values`` as ``[K]`` in float64; ValueError where they are not finite numbers of at least 0."""
    checked = array(values).astype(np.float64)
    if checked.ndim != 1 or checked.size == 0 or not (np.isfinite(checked).all() and (checked >= 0).all()):
        raise ValueError(f"{name} must be finite numbers >= 0, one per cell [K], got {values!r}")
    return checked


@lru_cache(maxsize=64)
def tensor(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``values`` as a constant tensor, moved to a device once; usable with gradients even if first asked for in inference."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
