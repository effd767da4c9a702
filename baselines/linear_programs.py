"""Vehicle rebalancing by linear programs, static and with a rolling horizon, solved by HiGHS through SciPy.

Both decide on flows of taxis between cells and their eight neighbours, as on the edges of a road graph (Rossi, Zhang, Hindy
and Pavone, *Routing Autonomous Vehicles in Congested Transportation Networks*, 2018): eight flows per cell in place of ``K``.
Who is wanted far away is passed on from cell to cell. That suits a policy whose taxis of a cell have one action: the flow
through a cell tells how far its taxis have to move, while the mean of far destinations is a place where nobody is wanted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog
from torch import Tensor

from baselines.aiming import EMPTY, AimedPolicy, SolvedPolicy, one_way
from mf_taxi_env import Grid, Motion, TaxiMDP
from mf_taxi_env.checks import whole_number

Vector = NDArray[np.float64]
#: Steps to the neighbours of a cell, in cells.
NEIGHBOURS = ((1, 0), (0, 1), (1, 1), (1, -1), (-1, 0), (0, -1), (-1, -1), (-1, 1))


class Neighbourhood:
    """The graph whose nodes are the cells of a square grid and whose edges lead to their eight neighbours.

    Args:
        grid: The grid.
    """

    def __init__(self, grid: Grid) -> None:
        k = grid.cells
        cells = np.arange(grid.size)
        row, column = np.divmod(cells, k)
        starts, ends = [], []
        for down, right in NEIGHBOURS:
            inside = (row + down >= 0) & (row + down < k) & (column + right >= 0) & (column + right < k)
            starts.append(cells[inside])
            ends.append(cells[inside] + down * k + right)
        start, end = np.concatenate(starts), np.concatenate(ends)
        centers = grid.centers(dtype=torch.float64).numpy()
        #: Ways from start to end, [E, 2], and their lengths, [E], in sides of the square.
        self.ways: Vector = centers[end] - centers[start]
        self.lengths: Vector = np.linalg.norm(self.ways, axis=-1)
        size, edges = (grid.size, len(start)), np.arange(len(start))
        #: What leaves the cells, [K, E], and by how much that exceeds what enters.
        self.leaving = sparse.csr_array((np.ones(len(start)), (start, edges)), shape=size)
        self.net = self.leaving - sparse.csr_array((np.ones(len(start)), (end, edges)), shape=size)

    def shifts(self, flows: Vector, mass: Vector) -> Vector:
        """Displacements ``[K, d]`` of the taxis of each cell, of ``mass`` ``[K]``, that make up flows ``[E]``: one per cell."""
        carried = np.maximum(mass, EMPTY / len(mass))[:, None]
        ahead, behind = (
            torch.from_numpy(self.leaving @ (flows[:, None] * np.maximum(side * self.ways, 0.0)) / carried) for side in (1, -1)
        )
        shifts: Vector = one_way(ahead, behind).numpy()
        return shifts


class FluidLP(AimedPolicy):
    """The static rebalancing policy of the fluid model: constant flows of empty taxis that keep the fleet at its optimum.

    In the fluid limit a fleet that stands at ``mu*`` loses ``served - served Phi`` of each cell to passengers in every step.
    The flows ``f >= 0`` of least total distance make up for that, and for what noise does to taxis that stay:

        ``min sum_e length_e f_e   such that   leaving f - entering f = surplus``   in every cell,

    the linear program of Pavone, Smith, Frazzoli and Rus, *Robotic Load Balancing for Mobility-on-Demand Systems* (2012), whose
    fixed routing shares Braverman, Dai, Liu and Ying, *Empty-Car Routing in Ridesharing Systems* (2019), derive as optimal in
    the limit. Where demand changes with time, everything is averaged over the episode: the policy is static. It is blind to
    the fleet: every step plays the same shifts, however far the fleet is from the optimum.

    It aims at the certified bound's optimum, and may violate: see :class:`~baselines.aiming.AimedPolicy`.

    Args:
        mdp: The city; its motion is not looked at.
        motion: Where actions lead, as far as the policy knows. Default free motion, which is a guess.
        barrier: Weight of the log-barrier of the target, at least 0.

    Raises:
        ImportError: If CVXPY is not installed (extra ``bounds``).
        TypeError: If the world is no city, or a constraint has no certified bound.
        ValueError: If ``barrier`` is out of range.

    Example:
        >>> from mf_taxi_env import load_scenario
        >>> mdp = TaxiMDP(load_scenario("shenzhen", cells=5))
        >>> FluidLP(mdp).field(mdp.initial((3,)), 0).shape
        torch.Size([3, 25, 2])
    """

    def __init__(self, mdp: TaxiMDP, motion: Motion | None = None, *, barrier: float = 0.0) -> None:
        super().__init__(mdp, motion, barrier=barrier)
        graph = Neighbourhood(mdp.grid)
        shifted = [mdp.shift(row.to(mdp.dtype), t).double() for t, row in enumerate(self.target)]
        surplus = torch.stack([self.surplus(mu, t) for t, mu in enumerate(shifted)]).mean(0).cpu().numpy()
        mass = torch.stack(shifted).mean(0).cpu().numpy()
        # Numbers of order one, and a sum of exactly zero, without which there is no solution.
        density = (surplus - surplus.mean()) * len(surplus)
        flows = _solved(linprog(graph.lengths, A_eq=graph.net, b_eq=density, method="highs")) / len(surplus)
        self._shifts = torch.from_numpy(graph.shifts(flows, mass)).to(mdp.device)

    def shifts(self, mu: Tensor, t: int) -> Tensor:
        return self._shifts.expand(*mu.shape[:-1], *self._shifts.shape)


class RollingLP(SolvedPolicy):
    """Model predictive control: each step a linear program over the next steps, of which the first step is carried out.

    Over ``H`` steps from the fleet after trips ``mu'`` that it sees, flows ``f_h >= 0`` and deviations ``x_h`` from the target
    minimise the distance driven and the mass in the wrong place,

        ``min sum_h  price sum_e length_e f_he + |x_h|_1``   such that in every cell
        ``x_h = x_{h-1} + surplus_h - leaving f_h + entering f_h``   and   ``leaving f_h <= mu'_h + max(0, x_{h-1})``,

    after Zhang, Rossi and Pavone, *Model Predictive Control of Autonomous Mobility-on-Demand Systems* (2016). Of the first step
    ``mu'_0`` and ``surplus_0`` are what the policy sees, ``x_{-1} = 0``; of later ones they are what passengers and noise, as
    forecast for a fleet at its target, make of the target. Per step a taxi goes to a neighbouring cell at most; who has further
    to go is planned to go on later. Nobody moving is always feasible.

    It aims at the certified bound's optimum, and may violate: see :class:`~baselines.aiming.AimedPolicy`.

    Args:
        mdp: The city; its motion is not looked at.
        motion: Where actions lead, as far as the policy knows. Default free motion, which is a guess.
        steps: Steps to look ahead ``H``, at least 1; fewer at the end of an episode.
        price: Of driving along a side of the city, in units of mass in the wrong place for a step; at least 0. A taxi that goes
            from where there are too many to where there are too few is worth 2 per step that this lasts.
        barrier: Weight of the log-barrier of the target, at least 0.

    Raises:
        ImportError: If CVXPY is not installed (extra ``bounds``).
        TypeError: If the world is no city, or a constraint has no certified bound.
        ValueError: If an argument is out of range.

    Example:
        >>> from mf_taxi_env import load_scenario
        >>> mdp = TaxiMDP(load_scenario("shenzhen", cells=5))
        >>> RollingLP(mdp, steps=2).field(mdp.initial((3,)), 0).shape
        torch.Size([3, 25, 2])
    """

    def __init__(
        self,
        mdp: TaxiMDP,
        motion: Motion | None = None,
        *,
        steps: int = 3,
        price: float = 0.1,
        barrier: float = 0.0,
    ) -> None:
        self.steps = whole_number("steps", steps, least=1)
        if not 0 <= price < np.inf:
            raise ValueError(f"price must be a number >= 0, got {price!r}")
        self.price = price
        super().__init__(mdp, motion, barrier=barrier)
        self._graph = Neighbourhood(mdp.grid)
        # Step t of a fleet that stands at the target before it.
        self._mass, self._surplus = [], []
        for t in range(mdp.horizon):
            before = mdp.shift(self.target[max(t - 1, 0)].to(mdp.dtype), t).double()
            self._mass.append(before.cpu().numpy())
            self._surplus.append(self.surplus(before, t).cpu().numpy())

    def solve(self, mu: NDArray[np.float64], t: int) -> NDArray[np.float64]:
        seen = self.surplus(torch.from_numpy(mu).to(self.mdp.device), t).cpu().numpy()
        later = range(t + 1, min(t + self.steps, self.mdp.horizon))
        mass = np.stack([mu, *(self._mass[h] for h in later)])
        surplus = np.stack([seen, *(self._surplus[h] for h in later)])
        flows = _first_flows(self._graph, mass * len(mu), surplus * len(mu), self.price) / len(mu)
        return self._graph.shifts(flows, mu)


def _first_flows(graph: Neighbourhood, mass: Vector, surplus: Vector, price: float) -> Vector:
    """Flows ``[E]`` of the first step of :class:`RollingLP`'s program, for masses and surpluses ``[H, K]``."""
    steps, size = surplus.shape
    apart = sparse.hstack([sparse.eye_array(size), -sparse.eye_array(size)])  # x = above - below, both at least 0
    since = sparse.eye_array(steps) - sparse.eye_array(steps, k=-1)
    above = sparse.hstack([sparse.eye_array(size), sparse.csr_array((size, size))])
    # x_h - x_{h-1} + net f_h = surplus_h, and leaving f_h <= mass_h + above_{h-1}; all flows first, then all deviations.
    balance = sparse.hstack([sparse.kron(sparse.eye_array(steps), graph.net), sparse.kron(since, apart)], format="csr")
    enough = sparse.hstack(
        [sparse.kron(sparse.eye_array(steps), graph.leaving), sparse.kron(-sparse.eye_array(steps, k=-1), above)], format="csr"
    )
    cost = np.concatenate([np.tile(price * graph.lengths, steps), np.ones(steps * 2 * size)])
    solution = linprog(
        cost, A_eq=balance, b_eq=surplus.ravel(), A_ub=enough, b_ub=np.maximum(mass, 0.0).ravel(), method="highs"
    )
    return _solved(solution)[: len(graph.lengths)]


def _solved(result: Any) -> Vector:
    if result.status != 0:
        raise RuntimeError(f"HiGHS found no flows: {result.message}")
    flows: Vector = result.x
    return flows
