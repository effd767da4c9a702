"""Likelihood of a landing point on a ring: a Gaussian of the shorter way round from the destination, per axis.

That is the wrapped Gaussian without its farther images. They matter where the noise is as wide as the ring: the likelihoods of
landings half a turn away, ``5 std`` at ``std = 0.1``, are off by a factor of two, all others by less.
"""

from __future__ import annotations

from torch import Tensor

from mf_taxi_env.space import TORUS


def negative_log_likelihood(landing: Tensor, destination: Tensor, std: Tensor) -> Tensor:
    """``-log p(landing | destination)`` per axis, up to a constant.

    Args:
        landing: Any shape; 0 and 1 are the same point.
        destination: Shapes broadcast.
        std: Standard deviation of the noise, well below one.
    """
    return 0.5 * (TORUS.displacement(destination, landing) / std).square() + std.log()


def irls_targets(landing: Tensor, unclipped: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Working response and weight of one step of iteratively reweighted least squares.

    Given which way round each landing was reached, this is plain least squares; the way is that of the present prediction.

    Args:
        landing: ``[n, d]``.
        unclipped: Predictions before wrapping, ``[..., n, d]``.
        std: Standard deviation of the noise, ``[..., n, d]``.

    Returns:
        Response, the image of the landing nearest to the prediction, and weight, both ``[..., n, d]``.
    """
    return unclipped + TORUS.displacement(unclipped, landing), std.square().reciprocal()
