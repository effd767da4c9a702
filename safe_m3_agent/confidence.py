"""The width of a confidence set, in standard deviations as the model gives them, and the radius of the ball that spans it."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats

#: Radius beyond which a ball of plausible motions is as good as all motions; Student's quantile overflows for a large beta.
LARGEST_RADIUS = 1e4


@dataclass(frozen=True)
class Confidence:
    """How far plausible motions, or trips, may lie from the mean.

    Two widths compete, that of the settings and that of the level with standard deviations that are ``tau`` times those of the
    model, and the larger one counts.

    Attributes:
        beta: Half-width of the settings in standard deviations of the model, at least 0.
        quantile: ``z``, what the level asks for in standard deviations that are right; 0 where nothing is calibrated.
        tau: Factor by which those of the model are too small, at least 1.
        factor: By which certificates that were refuted have widened the set, at least 1.
    """

    beta: float
    quantile: float = 0.0
    tau: float = 1.0
    factor: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("beta", 0), ("quantile", 0), ("tau", 1), ("factor", 1)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)!r}")

    @property
    def width(self) -> float:
        """Half-width ``beta_n = factor max(beta, tau z)`` in standard deviations of the model."""
        return self.factor * max(self.beta, self.tau * self.quantile)

    def radius(self, members: int) -> float:
        """Radius ``factor max(t(beta), tau t(z))`` of the ball of plausible motions, ``t`` as :func:`student_quantile` has it.

        The factors are of standard deviations, and so multiply quantiles: a quantile of the product would be of another level.

        Args:
            members: Members of the model, ``E``; the radius is 0 for a single, exact one.
        """
        widest = max(student_quantile(self.beta, members), self.tau * student_quantile(self.quantile, members))
        return min(self.factor * widest, LARGEST_RADIUS)


def student_quantile(beta: float, members: int) -> float:
    """The radius that is as rarely left as ``beta`` standard deviations of a Gaussian.

    The standard deviation of a margin is itself estimated, from ``E`` members: it may well come out too small, and a planner
    that looks for policies with a certificate finds those for which it did. The quantile is therefore Student's with ``E - 1``
    degrees of freedom: 4.1 in place of 3 for ten members.

    Args:
        beta: In standard deviations, at least 0.
        members: ``E``; the quantile is 0 for a single, exact one.
    """
    if members < 2:
        return 0.0
    return min(float(stats.t.isf(stats.norm.sf(beta), members - 1)), LARGEST_RADIUS)
