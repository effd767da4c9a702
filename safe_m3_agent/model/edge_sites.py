"""Landings near the city's edge as Gaussian pseudo-observations of where a motion leads, by expectation propagation.

A motion beyond the edge is clipped to it, and noise is truncated there: the likelihood of a destination is not Gaussian, it is
flat beyond the edge, and treating it as Gaussian would bias a process inwards and make it far too sure of how far beyond the
edge a motion leads. Expectation propagation (Minka 2001; Rasmussen and Williams, *Gaussian Processes for Machine Learning*,
Section 3.6) replaces each likelihood by a Gaussian site that gives the right mean and variance beside all other sites.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from safe_m3_agent.model.posterior import LEFT_OUT, LinearPlusRBF, Observations, Posterior
from safe_m3_agent.model.truncated_likelihood import negative_log_likelihood

#: Share of a new site that is taken over per sweep; sites are updated all at once.
DAMPING = 0.7
#: Quadrature nodes for destinations inside the city, and how many standard deviations they span either way.
NODES, SPAN = 24, 7.0
_ABSCISSAE, _WEIGHTS = np.polynomial.legendre.leggauss(NODES)


def clear_landings(landing: Tensor, std: Tensor, margin: float = 2.0) -> tuple[Tensor, Tensor]:
    """Sites to start from: what landed clear of the edge headed there, what landed near it says nothing yet.

    Args:
        landing: ``[d, n]`` in ``[0, 1]``.
        std: Of the noise, ``[d, 1]``.
        margin: How far clear, in standard deviations.

    Returns:
        Values and variances ``[d, n]``.
    """
    clear = (landing > margin * std) & (landing < 1.0 - margin * std)
    return landing, torch.where(clear, std.square(), LEFT_OUT)


def propagate(
    kernel: LinearPlusRBF,
    sites: Observations,
    start: Tensor,
    landing: Tensor,
    std: Tensor,
    inducing: Tensor | None,
    sweeps: int,
) -> Observations:
    """Sweeps of expectation propagation.

    Args:
        kernel: Prior of the displacement.
        sites: Sites so far, as observations of the displacement ``destination - start``.
        start: Positions before the move, ``[d, n]``.
        landing: Positions after it, ``[d, n]``.
        std: Of the noise, ``[d, 1]``.
        inducing: Inducing inputs of a sparse posterior, ``[m, i]``, or ``None``.
        sweeps: How many.

    Returns:
        The sites after the last sweep.
    """
    for _ in range(sweeps):
        mean, variance = Posterior(kernel, sites.inputs, sites.variance, inducing).marginals(sites.values)
        # What all other sites say.
        precision = sites.variance.reciprocal()
        rest = (variance.reciprocal() - precision).clamp_min(1.0 / LEFT_OUT)
        rest_mean = (mean / variance - sites.values * precision) / rest
        seen_mean, seen_variance = tilted_moments(landing, start + rest_mean, rest.reciprocal(), std)
        raw = seen_variance.reciprocal() - rest
        # A likelihood with a flat tail may widen a belief; no Gaussian site does, so such a one is left out.
        site = raw.clamp_min(1.0 / LEFT_OUT).minimum(std.pow(-2))
        value = (seen_mean - start) + torch.where(raw > 1.0 / LEFT_OUT, rest / raw, 0.0) * (seen_mean - start - rest_mean)
        new_precision = torch.lerp(precision, site, DAMPING)
        values = torch.lerp(sites.values * precision, site * value, DAMPING) / new_precision
        sites = Observations(sites.inputs, values, new_precision.reciprocal())
    return sites


def tilted_moments(landing: Tensor, mean: Tensor, variance: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of ``u ~ N(mean, variance)`` after a landing, a Gaussian about ``clip(u, 0, 1)`` truncated to [0, 1].

    The three parts below, inside and beyond the city are truncated Gaussians; the one inside is divided by the likelihood's
    normaliser and integrated by quadrature.

    Args:
        landing: In ``[0, 1]``, float64, any shape.
        mean: Same shape.
        variance: Same shape, positive.
        std: Of the noise; broadcasts.
    """
    spread = variance.sqrt()
    low_weight, low_mean, low_variance = _tail(-mean / spread)
    high_weight, high_mean, high_variance = _tail((mean - 1.0) / spread)
    low_weight = low_weight - negative_log_likelihood(landing, torch.zeros_like(landing), std)
    high_weight = high_weight - negative_log_likelihood(landing, torch.ones_like(landing), std)
    # Inside, the product of two Gaussians is a third one.
    total = variance + std.square()
    middle, width = (mean * std.square() + landing * variance) / total, spread * std / total.sqrt()
    low, high = ((middle + side * SPAN * width).clamp(0.0, 1.0) for side in (-1.0, 1.0))
    nodes = low.unsqueeze(-1) + (high - low).unsqueeze(-1) * (0.5 + 0.5 * landing.new_tensor(_ABSCISSAE))
    density = -0.5 * ((nodes - mean.unsqueeze(-1)) / spread.unsqueeze(-1)).square() - spread.log().unsqueeze(-1)
    density = density - 0.5 * math.log(2.0 * math.pi) - negative_log_likelihood(landing.unsqueeze(-1), nodes, std.unsqueeze(-1))
    density = density + (0.5 * (high - low).unsqueeze(-1) * landing.new_tensor(_WEIGHTS)).clamp_min(1e-300).log()
    # All parts as one mixture: of the two tails and of the nodes, which are points.
    weights = torch.softmax(torch.cat([density, low_weight.unsqueeze(-1), high_weight.unsqueeze(-1)], -1), -1)
    means = torch.cat([nodes, (mean - spread * low_mean).unsqueeze(-1), (mean + spread * high_mean).unsqueeze(-1)], -1)
    inner = torch.stack([low_variance, high_variance], -1) * variance.unsqueeze(-1)
    average = (weights * means).sum(-1)
    between = (weights * (means - average.unsqueeze(-1)).square()).sum(-1)
    return average, between + (weights[..., -2:] * inner).sum(-1)


def _tail(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a standard normal below ``x``: log probability, distance of the mean from zero, and variance."""
    log_weight: Tensor = torch.special.log_ndtr(x)
    mean = (-0.5 * x.square() - 0.5 * math.log(2.0 * math.pi) - log_weight).exp()
    return log_weight, mean, (1.0 - x * mean - mean.square()).clamp(1e-12, 1.0)
