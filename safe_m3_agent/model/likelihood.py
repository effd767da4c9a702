"""What the ensemble asks of the likelihood of a landing point."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Likelihood(Protocol):
    """Likelihood of a landing, per axis: the modules ``truncated_likelihood`` and ``wrapped_likelihood`` are two."""

    def negative_log_likelihood(self, landing: Tensor, destination: Tensor, std: Tensor) -> Tensor:
        """``-log p(landing | destination)`` up to a constant, with noise of standard deviation ``std``; shapes broadcast."""
        ...

    def irls_targets(self, landing: Tensor, unclipped: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Working response and weight of one step of iteratively reweighted least squares, both ``[..., n, d]``.

        The response is near ``unclipped`` ``[..., n, d]``, the predicted destinations before edges or wrapping.
        """
        ...
