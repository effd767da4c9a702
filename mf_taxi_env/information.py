"""Entropy and Kullback-Leibler divergence of distributions on a grid, safe to differentiate at empty cells."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Smallest mass inside a logarithm. A float32 distribution keeps normal numbers down to about 1e-38, so this changes no value
#: that matters, and it bounds the gradient of ``-log`` at cells the fleet has left.
MASS_FLOOR = 1e-30


def floored_log(mu: Tensor) -> Tensor:
    """``log max(mu, MASS_FLOOR)``, of any shape: what every quantity here takes the logarithm of a mass by."""
    return mu.clamp_min(MASS_FLOOR).log()


def entropy(mu: Tensor, log: Tensor | None = None) -> Tensor:
    """Shannon entropy in nats.

    Args:
        mu: Distributions ``[..., K]``.
        log: Their :func:`floored_log`, where it is at hand.

    Returns:
        ``-sum mu log mu``, ``[...]`` in ``[0, log K]``.
    """
    return -(mu * (floored_log(mu) if log is None else log)).sum(-1)


def entropy_fraction(mu: Tensor, log: Tensor | None = None) -> Tensor:
    """Entropy as a share of its maximum ``log K``, ``[...]`` in ``[0, 1]``; 1 on a grid of one cell.

    Args:
        mu: Distributions ``[..., K]``.
        log: Their :func:`floored_log`, where it is at hand.
    """
    size = mu.shape[-1]
    if size == 1:
        return torch.ones_like(mu[..., 0])
    return entropy(mu, log) / math.log(size)


def kl_divergence(p: Tensor, q: Tensor, log_q: Tensor | None = None, log_p: Tensor | None = None) -> Tensor:
    """Kullback-Leibler divergence ``KL(p || q)`` in nats; a cell with ``p = 0`` contributes nothing.

    Args:
        p: Distributions ``[..., K]``.
        q: Distributions ``[..., K]``, floored at ``MASS_FLOOR`` inside the logarithm.
        log_q: The :func:`floored_log` of ``q``, where it is at hand.
        log_p: That of ``p``.

    Returns:
        ``sum p log(p / q)``, ``[...]``, at least zero.
    """
    log_p = floored_log(p) if log_p is None else log_p
    divergence: Tensor = (p * (log_p - (floored_log(q) if log_q is None else log_q))).sum(-1)
    return divergence
