"""Optimal transport from where the fleet is to where it should be, by POT (extra ``transport``)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from baselines.aiming import SolvedPolicy
from mf_taxi_env import Motion, TaxiMDP
from mf_taxi_env.wasserstein import PIVOTS, pot


class GreedyTransport(SolvedPolicy):
    """Each step the cheapest transport of the fleet to its target, as if there were no later step.

    The plan ``pi`` ``[K, K]`` minimises ``sum pi(c, c') |c - c'|^2`` among the couplings of the fleet after trips and the
    target. A cell has one action, so its taxis head for the plan's barycentric projection ``sum_c' pi(c, c') c' / mu(c)``
    (Ferradans et al. 2014; Peyre and Cuturi, *Computational Optimal Transport*, 2019).

    The cost is the squared distance for a reason. With a distance as cost, mass that two distributions share may stay and the
    rest may go far: the barycentre of both is a place where nobody is wanted. Of the squared distance the continuous
    problem's plan is a map, one destination per place (Brenier 1991), so a barycentre loses little: where a cell's mass is
    spread over several cells, which a single destination and the noise cannot do.

    It aims at the certified bound's optimum, and may violate: see :class:`~baselines.aiming.AimedPolicy`.

    Args:
        mdp: The city; its motion is not looked at.
        motion: Where actions lead, as far as the policy knows. Default free motion, which is a guess.
        barrier: Weight of the log-barrier of the target, at least 0.

    Raises:
        ImportError: If POT or CVXPY is not installed (extras ``transport`` and ``bounds``).
        TypeError: If the world is no city, or a constraint has no certified bound.
        ValueError: If ``barrier`` is out of range.

    Example:
        >>> from mf_taxi_env import load_scenario
        >>> mdp = TaxiMDP(load_scenario("shenzhen", cells=5))
        >>> GreedyTransport(mdp).field(mdp.initial((3,)), 0).shape
        torch.Size([3, 25, 2])
    """

    def __init__(self, mdp: TaxiMDP, motion: Motion | None = None, *, barrier: float = 0.0) -> None:
        pot()  # not installed: told now, not in an episode
        super().__init__(mdp, motion, barrier=barrier)
        self._places = self._centers.cpu().numpy()
        self._cost = np.square(self._places[:, None] - self._places).sum(-1)

    def solve(self, mu: NDArray[np.float64], t: int) -> NDArray[np.float64]:
        goal = self.target[min(t, len(self.target) - 1)].cpu().numpy()
        plan = pot().emd(mu / mu.sum(), goal / goal.sum(), self._cost, numItermax=PIVOTS)
        mass = plan.sum(1, keepdims=True)
        there = np.divide(plan @ self._places, mass, out=self._places.copy(), where=mass > 0)  # nobody's destination is any
        shifts: NDArray[np.float64] = there - self._places
        return shifts
