"""The Wasserstein-1 distance: exact by POT (extra ``transport``), its potentials, and as a convex program."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mf_taxi_env.constraint import cells_per_axis, checked_dimension
from mf_taxi_env.grid import Grid

#: Pivots that the transport solver may take; a grid of 50 x 50 cells needs fewer than a tenth of them.
PIVOTS = 10_000_000
#: Flows of the largest transport that the program of a certified bound holds: some seconds of an interior-point solver.
FLOWS = 1 << 16
#: Mass of a cell below which a solver leaves it empty.
SPECK = 1e-5


def wasserstein(mu: Tensor, reference: Tensor, *, dimension: int = 2, periodic: bool = False) -> Tensor:
    """Wasserstein-1 distance in sides of the unit square, interval or ring.

    The ground distance is the Euclidean one between cell centres; on a ring, the shorter way round.

    The value is ``sum f (mu - reference)`` with ``f`` an optimal Kantorovich potential, which is also the gradient along
    directions that keep the mass (envelope theorem; a subgradient where several potentials are optimal). Exact linear programs
    on the CPU, one per distribution of the batch in a Python loop: about 50 ms each at 625 cells.

    Args:
        mu: Distributions ``[..., K]``; anywhere but at finite numbers the distance is NaN.
        reference: A distribution ``[K]``; constant, no gradient flows to it.
        dimension: 1 for cells of an interval or a ring, 2 for those of a square.
        periodic: Whether the ends of the interval meet: a ring of circumference one.

    Returns:
        ``[...]``: in ``[0, sqrt 2]`` on a square, ``[0, 1]`` on an interval, ``[0, 1/2]`` on a ring.

    Raises:
        ImportError: If POT is not installed.
        ValueError: If ``K`` is not a square number where the cells are those of a square, or that is periodic.
    """
    dimension = checked_geometry(dimension, periodic)
    cost = _cost(mu.shape[-1], dimension, periodic)
    nu = reference.detach().cpu().double().numpy()
    rows = mu.detach().reshape(-1, mu.shape[-1]).cpu().double().numpy()
    potentials = np.stack([_potential(row, nu / nu.sum(), cost) for row in rows]) if len(rows) else rows
    f = torch.from_numpy(potentials).to(mu).reshape(mu.shape)
    distance: Tensor = ((mu - reference) * f).sum(-1)
    return distance


def transport_program(mu: Any, reference: NDArray[np.float64], *, dimension: int = 2, periodic: bool = False) -> Any:
    """The Wasserstein-1 distance as a convex CVXPY expression of ``mu``: the cost of the cheapest transport plan.

    Args:
        mu: A variable ``[K]``, of distributions.
        reference: A distribution ``[K]``; the plan has a flow from every cell to each of its cells that has mass.
        dimension: As in :func:`wasserstein`.
        periodic: As in :func:`wasserstein`.

    Raises:
        TypeError: If there are more than :data:`FLOWS` flows.
    """
    import cvxpy as cp
    from cvxpy.transforms.partial_optimize import partial_optimize

    support = reference > 0
    cost = _cost(len(reference), dimension, periodic)[:, support]
    if cost.size > FLOWS:
        raise TypeError(
            f"DistanceCap in 'w1' has no convex program of moderate size on this grid, but one of {cost.size} flows between "
            f"cells (at most {FLOWS}), so no certified bound"
        )
    plan = cp.Variable(cost.shape, nonneg=True)
    couples = [cp.sum(plan, axis=1) == mu, cp.sum(plan, axis=0) == reference[support] / reference.sum()]
    program = cp.Problem(cp.Minimize(cp.sum(cp.multiply(cost, plan))), couples)
    return partial_optimize(program, opt_vars=[plan], solver=cp.CLARABEL)


def potential_near(values: Tensor, mu: Tensor, reference: Tensor, *, dimension: int = 2, periodic: bool = False) -> Tensor:
    """A 1-Lipschitz function on the cells, near to the values that a solver gives for an optimal potential of ``mu``.

    For such ``f`` the distance of any distribution from the reference is at least ``sum f (. - reference)`` (Kantorovich). Of
    the values only those at cells with mass count, for a solver says little about others: the two transforms by the ground
    distance, first to the reference's cells and then to all, make of them what is best elsewhere.

    Args:
        values: ``[K]``.
        mu: A distribution ``[K]``.
        reference: A distribution ``[K]``.
        dimension: As in :func:`wasserstein`.
        periodic: As in :func:`wasserstein`.

    Returns:
        ``[K]``; nowhere below ``values`` where ``mu`` has mass, and there the same if these are of an optimal potential.
    """
    cost = torch.from_numpy(_cost(len(reference), dimension, periodic)).to(values)
    seen, held = mu > SPECK, reference > 0
    there = (values[seen] - cost[held][:, seen]).amax(-1)
    return (cost[:, held] + there).amin(-1)


def checked_geometry(dimension: int, periodic: bool) -> int:
    """``dimension`` if there is such a grid; ValueError otherwise."""
    dimension = checked_dimension(dimension)
    if not isinstance(periodic, bool) or (periodic and dimension != 1):
        raise ValueError(f"periodic must be False, or True with dimension=1 (a ring), got {periodic!r} with {dimension}")
    return dimension


def _potential(mu: NDArray[np.float64], nu: NDArray[np.float64], cost: NDArray[np.float64]) -> NDArray[np.float64]:
    """A function ``f`` ``[K]``, 1-Lipschitz between cell centres, with ``sum f (mu - nu) = W1(mu, nu)``."""
    # Rounding may leave a trace below zero or a sum off one, both of which the solver would refuse.
    mass = np.maximum(mu, 0.0)
    if not (np.isfinite(mu).all() and mass.sum() > 0):
        return np.full(mu.size, np.nan)
    _, log = pot().emd2(mass / mass.sum(), nu, cost, numItermax=PIVOTS, log=True)
    # The solver's potential of mu says little about its empty cells. That of nu says it all: the largest f that it permits is
    # 1-Lipschitz everywhere, and minus the potential on nu's own cells.
    support = nu > 0
    f = (cost[:, support] - log["v"][support]).min(1)
    # Any constant may be added; this one keeps products with masses in float32 small.
    centred: NDArray[np.float64] = f - 0.5 * (f.max() + f.min())
    return centred


@lru_cache(maxsize=4)
def _cost(size: int, dimension: int, periodic: bool) -> NDArray[np.float64]:
    """Distances between the cell centres, ``[K, K]``: Euclidean, or on a ring the shorter way round."""
    grid = Grid(cells_per_axis(size, dimension), dimension)
    centers = grid.centers(dtype=torch.float64)
    cost: NDArray[np.float64] = torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    return np.minimum(cost, 1.0 - cost) if periodic else cost


def pot() -> Any:
    """The module of POT.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import ot
    except ImportError as error:
        raise ImportError("Optimal transport needs POT: pip install 'safe-m3-taxi[transport]'") from error
    return ot
