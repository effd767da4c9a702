"""Calibration of the learned trips: is their prior as wide as the trips that were seen ask for, and their set as wide as its
level?"""

from __future__ import annotations

from collections.abc import Callable

from scipy import stats

#: Factors considered, in order.
FACTORS = tuple(1.5**n for n in range(18))
#: Nats below the greatest evidence down to which a wider prior is as good (Wilks 1938: an interval of 95 %).
CAREFUL = 2.0
#: Factor that trips have to speak against before the prior as configured is believed.
UNTESTED = 5.0
#: Nats below the greatest evidence so far from which on wider priors are not looked at any more.
LOST = 5.0


class TripCalibration:
    """How wide prior and confidence set of learned trips have to be.

    The evidence of a prior, the probability of all trips under it, is the product over trips of how probable each was before
    it was learned from (prequential; Dawid 1984): what held-out landings are to the standard deviations of a model of motion.
    A prior that is sure without reason finds passengers where it did not expect them, time and again. All its scales are
    widened by a factor ``tau >= 1`` (type II maximum likelihood; MacKay 2003, Ch. 28), and the posterior is that of the wider
    prior: unlike deviations that are widened after the fact it follows the trips, and becomes sure once it is right.

    The factor is the largest one whose evidence is within ``CAREFUL`` nats of the greatest. The prior as configured, factor 1,
    is believed instead where it explains the trips no worse, by a likelihood-ratio test of level ``delta`` (Wilks 1938), and
    they have had a say: as long as a prior ``UNTESTED`` times as wide is as good, nobody knows, and the wide one is gone by.

    Args:
        quantile: Least half-width of the confidence set in posterior standard deviations.
        delta: Level of the test, in ``(0, 1)``.
    """

    def __init__(self, quantile: float, delta: float) -> None:
        self.quantile = quantile
        # One-sided: twice the logarithm of the likelihood ratio is the square of a standard normal, or nothing.
        self._decisive = 0.5 * max(0.0, float(stats.norm.isf(delta))) ** 2

    def width(self, least: float) -> float:
        """Half-width of the confidence set in posterior standard deviations.

        Args:
            least: ``beta`` of the settings.
        """
        return max(least, self.quantile)

    def factor(self, evidence: Callable[[float], float]) -> float:
        """The factor ``tau`` of the prior; the largest of ``FACTORS`` while no trip has been seen.

        Args:
            evidence: Logarithm of the evidence, in nats, of a factor; called in ascending order, with 1 first.
        """
        found = {1.0: evidence(1.0)}
        for tau in FACTORS[1:]:
            found[tau] = evidence(tau)
            if found[tau] < max(found.values()) - LOST:
                break
        greatest = max(found.values())
        widest = max(tau for tau, nats in found.items() if nats >= greatest - CAREFUL)
        believed = greatest <= found[1.0] + self._decisive and widest < UNTESTED
        return 1.0 if believed else widest
