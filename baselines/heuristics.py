"""Heuristic policies, called as every policy: ``policy(positions, mu, t)`` by a fleet, ``field(mu, t)`` by the mean field."""

from __future__ import annotations

import torch
from torch import Tensor

from mf_taxi_env import MeanFieldMDP


class Stay:
    """Nobody moves: the score's zero, and the policy that safe learning starts from.

    Args:
        mdp: The world; it gives the shape of a field.

    Example:
        >>> from mf_taxi_env import FleetSimulator, TaxiMDP, load_scenario
        >>> mdp = TaxiMDP(load_scenario("shenzhen", cells=5))
        >>> FleetSimulator(mdp, 1000).rollout(Stay(mdp)).distributions.shape
        torch.Size([13, 25])
    """

    def __init__(self, mdp: MeanFieldMDP) -> None:
        self.mdp = mdp

    def field(self, mu: Tensor, t: int) -> Tensor:
        """Zero actions at the cell centres, ``[..., K, d]``, for ``mu`` ``[..., K]``."""
        return mu.new_zeros(*mu.shape, self.mdp.action_dim)

    def __call__(self, positions: Tensor, mu: Tensor, t: int) -> Tensor:
        """Zero actions ``[m, d]`` at ``positions`` ``[m, d]``."""
        return torch.zeros_like(positions)
