"""Entropy and Kullback-Leibler divergence of distributions on a grid, safe to differentiate at empty cells."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Smallest mass inside a logarithm. A float32 distribution keeps normal numbers down to about 1e-38, so this changes no value
#: that matters, and it bounds the gradient of ``-log`` at cells the fleet has left.
MASS_FLOOR = 1e-30


def entropy(mu: Tensor) -> Tensor:
    """Shannon entropy in nats.

    Args:
        mu: Distributions ``[..., K]``.

    Returns:
        ``-sum mu log mu``, ``[...]`` in ``[0, log K]``.
    """
    return -(mu * mu.clamp_min(MASS_FLOOR).log()).sum(-1)


def entropy_fraction(mu: Tensor) -> Tensor:
    """Entropy as a share of its maximum ``log K``, ``[...]`` in ``[0, 1]``; 1 on a grid of one cell.

    Args:
        mu: Distributions ``[..., K]``.
    """
    size = mu.shape[-1]
    return entropy(mu) / math.log(size) if size > 1 else torch.ones_like(mu[..., 0])


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Kullback-Leibler divergence ``KL(p || q)`` in nats; a cell with ``p = 0`` contributes nothing.

    Args:
        p: Distributions ``[..., K]``.
        q: Distributions ``[..., K]``, floored at ``MASS_FLOOR`` inside the logarithm.

    Returns:
        ``sum p log(p / q)``, ``[...]``, at least zero.
    """
    divergence: Tensor = (p * (p.clamp_min(MASS_FLOOR).log() - q.clamp_min(MASS_FLOOR).log())).sum(-1)
    return divergence
