"""Constraints on the distribution of the fleet: each has a margin, safe at zero and above, and a Lipschitz constant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from mf_taxi_env.information import entropy


@runtime_checkable
class Constraint(Protocol):
    """A safety constraint ``h(mu) >= C``."""

    @property
    def name(self) -> str:
        """Key of this constraint in ``info["margins"]``."""
        ...

    @property
    def lipschitz(self) -> float:
        """``L_h``: by how much the margin may fall per unit of distance that the distribution is off."""
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
        """The margin as a concave CVXPY expression of a variable ``[K]``, for :func:`mf_taxi_env.certified_bound`.

        Raises:
            TypeError: If the safe set is not convex, so that no certified bound exists.
        """
        ...


@dataclass(frozen=True)
class EntropyFloor:
    """The fleet stays spread out: ``entropy(mu) >= fraction * log K`` (arXiv 2306.17052, Section 5).

    Entropy is not Lipschitz on the whole simplex (its gradient ``-log mu`` grows without bound at empty cells), so
    ``lipschitz`` is a modelling constant; 0.1 per unit of accumulated epistemic uncertainty is what the published experiments
    use. What makes an executed policy safe is the certificate, which does not use it.

    Args:
        fraction: Share of the largest possible entropy, in ``[0, 1]``.
        lipschitz: ``L_h`` of the tightening, at least 0.

    Example:
        >>> import torch
        >>> EntropyFloor(0.5).margin(torch.full((4,), 0.25)).item()  # log 4 - 0.5 log 4
        0.6931...
    """

    fraction: float
    lipschitz: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.fraction <= 1.0:
            raise ValueError(f"fraction must lie in [0, 1] (a share of log K), got {self.fraction!r}")
        if not (math.isfinite(self.lipschitz) and self.lipschitz >= 0):
            raise ValueError(f"lipschitz must be a finite number >= 0, got {self.lipschitz!r}")

    @property
    def name(self) -> str:
        return "entropy"

    def margin(self, mu: Tensor) -> Tensor:
        return entropy(mu) - self.fraction * math.log(mu.shape[-1])

    def convex_margin(self, mu: Any) -> Any:
        import cvxpy as cp

        return cp.sum(cp.entr(mu)) - self.fraction * math.log(mu.shape[-1])
