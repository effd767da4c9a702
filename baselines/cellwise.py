"""What the classical policies share: one action per cell, in the mean field and for every taxi of a fleet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from mf_taxi_env import MeanFieldMDP


class CellPolicy(ABC):
    """A policy with one action per cell, the same function seen by the lifted MDP and by a taxi.

    Args:
        mdp: The world; it gives the grid and the shape of a field.
    """

    def __init__(self, mdp: MeanFieldMDP) -> None:
        self.mdp = mdp

    @abstractmethod
    def field(self, mu: Tensor, t: int) -> Tensor:
        """Actions at the cell centres, ``[..., K, d]`` in ``[-1, 1]``, for ``mu`` ``[..., K]`` after trips at step ``t``."""

    def at(self, mu: Tensor, t: int) -> Callable[[Tensor], Tensor]:
        """The policy in one distribution after trips ``mu`` ``[K]``: a function from positions ``[m, d]`` to actions.

        The field is computed here, once, however often the function is called.
        """
        actions = self.field(mu, t)
        return lambda positions: actions.index_select(0, self.mdp.grid.index(positions))

    def __call__(self, positions: Tensor, mu: Tensor, t: int) -> Tensor:
        """Actions ``[m, d]`` at ``positions`` ``[m, d]`` in the distribution after trips ``mu`` ``[K]`` at step ``t``."""
        return self.at(mu, t)(positions)
