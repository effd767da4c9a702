"""Likelihood of a landing point: a Gaussian about the destination, truncated to ``[0, 1]`` per axis."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Beyond this many standard deviations between a landing and the nearest destination in the city, a prediction is wrong rather
#: than just at the edge, and has to be told so.
EDGE_TOLERANCE = 4.0


def negative_log_likelihood(landing: Tensor, destination: Tensor, std: Tensor) -> Tensor:
    """``-log p(landing | destination)`` per axis, up to a constant.

    Args:
        landing: In ``[0, 1]``, any shape.
        destination: In ``[0, 1]``; shapes broadcast.
        std: Standard deviation before truncation.
    """
    root = math.sqrt(0.5)
    inside = 0.5 * (torch.erf((1.0 - destination) / std * root) - torch.erf(-destination / std * root))
    return 0.5 * ((landing - destination) / std).square() + std.log() + inside.clamp_min(1e-6).log()


def irls_targets(landing: Tensor, unclipped: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Working response and weight of one step of iteratively reweighted least squares.

    A truncated Gaussian is an exponential family in ``destination / std^2`` with mean ``E`` and variance ``V`` of the
    landing, so a scoring step solves weighted least squares for ``destination + (landing - E) std^2 / V`` with weights
    ``V / std^4`` (McCullagh and Nelder, *Generalized Linear Models*, Section 2.5).

    A prediction beyond the edge is clipped to the city, so it cannot be told from the edge: it has weight zero, unless the
    vehicle landed clearly elsewhere; then the landing itself is its target.

    Args:
        landing: ``[n, d]`` in ``[0, 1]``.
        unclipped: Predictions before clipping, ``[..., n, d]``.
        std: Standard deviation before truncation, ``[..., n, d]``.

    Returns:
        Response and weight, both ``[..., n, d]``.
    """
    destination = unclipped.clamp(0.0, 1.0)
    low, high = -destination / std, (1.0 - destination) / std
    density_low, density_high = _normal_density(low), _normal_density(high)
    inside = 0.5 * (torch.erf(high * math.sqrt(0.5)) - torch.erf(low * math.sqrt(0.5)))
    shift = (density_low - density_high) / inside
    # Relative variance V / std^2, between 1 - 2 / pi at the edge and 1 well inside.
    variance = (1.0 + (low * density_low - high * density_high) / inside - shift.square()).clamp_min(0.05)
    wrong = (landing - destination).abs() > EDGE_TOLERANCE * std
    response = torch.where(
        wrong, landing.expand_as(destination), destination + (landing - destination - std * shift) / variance
    )
    weight = torch.where(wrong, 1.0, variance) / std.square()
    return response, torch.where(wrong | (unclipped == destination), weight, 0.0)


def _normal_density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x.square()) / math.sqrt(2.0 * math.pi)
