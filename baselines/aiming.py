"""Policies that aim at the safe optimum: the distribution of the certified bound, the best that keeps the constraints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baselines.cellwise import CellPolicy
from baselines.inverse import Steering
from mf_taxi_env import FreeMotion, Motion, TaxiMDP, certified_bound

#: Share of a uniform cell's mass below which a cell counts as holding that much: few taxis cannot carry a large flow.
EMPTY = 1e-3
#: Solved distributions that a policy remembers.
REMEMBERED = 64


class AimedPolicy(CellPolicy, ABC):
    """Shifts taxis so that the fleet stands, after each step, as the certified bound says is best.

    The bound's optimum keeps the constraints, and where they bind it lies on their edge: what a policy misses it by may well be
    a violation. A barrier puts the target inside, see :func:`~baselines.belief.with_least_barrier`.

    Args:
        mdp: The city: demand, trips, noise and constraints are known; its motion is not looked at.
        motion: Where actions lead, as far as the policy knows. Default free motion, which is a guess.
        barrier: Weight of the log-barrier of the target, see :func:`~mf_taxi_env.certified_bound`, at least 0.

    Raises:
        ImportError: If CVXPY is not installed (extra ``bounds``).
        TypeError: If the world is no city, or a constraint has no certified bound.
        ValueError: If ``barrier`` is out of range or no distribution meets the constraints.
    """

    mdp: TaxiMDP

    def __init__(self, mdp: TaxiMDP, motion: Motion | None = None, *, barrier: float = 0.0) -> None:
        if not isinstance(mdp, TaxiMDP):
            raise TypeError(f"mdp must be a TaxiMDP, which has a demand to aim at, got a {type(mdp).__name__}")
        super().__init__(mdp)
        self.barrier = barrier
        #: Where the fleet should stand after each step, [T, K], in float64.
        self.target = torch.tensor(certified_bound(mdp, barrier).mu, device=mdp.device)
        self.steering = Steering(mdp, FreeMotion() if motion is None else motion)
        self._centers = mdp.centers.double()

    @torch.no_grad()
    def field(self, mu: Tensor, t: int) -> Tensor:
        shifts = self.shifts(mu.double(), t)
        return self.steering(mu, shifts.to(mu))

    @abstractmethod
    def shifts(self, mu: Tensor, t: int) -> Tensor:
        """Wanted mean displacements of the taxis of each cell, ``[..., K, d]``, for ``mu`` ``[..., K]`` in float64."""

    def surplus(self, mu: Tensor, t: int) -> Tensor:
        """By how much cells would have too many taxis after step ``t`` if nobody moved, ``[..., K]``, summing to zero.

        Noise moves taxis that stay; it is known, and counted.
        """
        return self.mdp.noise.push_forward(mu, self._centers) - self.target[min(t, len(self.target) - 1)]


class SolvedPolicy(AimedPolicy, ABC):
    """An aimed policy that solves a program for each distribution; the last ones are remembered."""

    def __init__(self, mdp: TaxiMDP, motion: Motion | None = None, *, barrier: float = 0.0) -> None:
        super().__init__(mdp, motion, barrier=barrier)
        self._solved: OrderedDict[tuple[int, bytes], NDArray[np.float64]] = OrderedDict()

    def shifts(self, mu: Tensor, t: int) -> Tensor:
        rows = mu.reshape(-1, mu.shape[-1]).cpu().numpy()
        found = np.stack([self._remembered(row, t) for row in rows])
        return torch.from_numpy(found).to(mu.device).reshape(*mu.shape, -1)

    @abstractmethod
    def solve(self, mu: NDArray[np.float64], t: int) -> NDArray[np.float64]:
        """Displacements ``[K, d]`` for one distribution ``[K]``."""

    def _remembered(self, mu: NDArray[np.float64], t: int) -> NDArray[np.float64]:
        key = (t, mu.tobytes())
        if key not in self._solved:
            self._solved[key] = self.solve(mu, t)
            if len(self._solved) > REMEMBERED:
                self._solved.popitem(last=False)
        self._solved.move_to_end(key)
        return self._solved[key]


def one_way(ahead: Tensor, behind: Tensor) -> Tensor:
    """One displacement for taxis that are wanted on both sides: as much as both want, towards the side that wants more.

    A cell has one action, so its taxis cannot part. Their mean, ``ahead - behind``, would let none leave a crowded cell from
    which all sides want as many; this one lets the right number leave, to one side, from where later steps move them on.

    Args:
        ahead: What is wanted along an axis, at least 0, any shape.
        behind: What is wanted against it, at least 0, same shape.
    """
    both = ahead + behind
    return torch.where(ahead >= behind, both, -both)
