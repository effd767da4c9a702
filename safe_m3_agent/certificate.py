"""The pessimistic certificate: a policy is executed only if the worst plausible motion, and trips, keep it safe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mf_taxi_env.checks import plain_numbers, whole_number
from mf_taxi_env.mdp import Field
from safe_m3_agent.hallucination import HallucinatedMDP
from safe_m3_agent.policy import Policy

#: Shares of the way to the motions that a search ends in at which a certificate looks, too: a margin may be least in between.
INSIDE = (0.25, 0.5, 0.75)
#: Share by which a direction on a sphere may seem to lie outside.
ROUNDING = 1e-5


@dataclass(frozen=True)
class CertificateConfig:
    """How hard the adversary looks.

    Attributes:
        restarts: Searches from random motions, at least 1, side by side with those from the nominal motion and from every
            adversary that is known: what is known alone would only be found again. All of them are made for each constraint.
        steps: Steps of each search; they bound the cost of a certificate.
        attempts: Shorter steps tried where no plan of an episode was certified, each half of the one before.
    """

    restarts: int = 3
    steps: int = 4
    attempts: int = 3

    def __post_init__(self) -> None:
        plain_numbers(self)
        for name in ("restarts", "steps", "attempts"):
            whole_number(f"certificate.{name}", getattr(self, name), least=1)


class Certificate(NamedTuple):
    """What the adversary found."""

    margin: float  #: smallest margin found over steps, constraints and plausible motions; safe if at least zero
    z: Tensor  #: the worst plausible motion found, and trips where these are learned, [E]

    @property
    def certified(self) -> bool:
        """Whether no plausible motion was found that breaks a constraint."""
        return self.margin >= 0.0


class Certifier:
    """Searches the confidence set for the motion that brings a fixed policy closest to a violation.

    The confidence set is a ball of :meth:`HallucinatedMDP.plausible`, which spans what the model's members disagree about.
    Where the margin is linear in the motion, the least margin over a ball of radius ``r`` is the mean less ``r`` standard
    deviations of the margin itself, as the members give it, see :class:`~safe_m3_agent.confidence.Confidence`. If the set
    holds the true motion (arXiv 2306.17052, Assumption 4) and the search finds the minimum, a certified policy is safe. The
    search is local: a certificate is strong evidence, not a proof.

    Where trips are learned they have a ball of their own, and the adversary chooses from both at once: the worst plausible
    trips together with the worst plausible motion.

    Args:
        config: How hard to look.
    """

    def __init__(self, config: CertificateConfig) -> None:
        self.config = config

    def certify(self, mdp: HallucinatedMDP, policy: Policy, known: Tensor, generator: torch.Generator) -> Certificate:
        """Look for the worst plausible motion.

        Args:
            mdp: The learned world.
            policy: The policy to judge.
            known: Adversaries found before, ``[A, E]``, the last ones last.
            generator: Source of the random starts.
        """
        with torch.no_grad():
            field = policy.prepared()
        return self._search(mdp, mdp, field, self._starts(mdp, known, generator), inside=INSIDE)

    def screen(self, mdp: HallucinatedMDP, policy: Policy, known: Tensor, generator: torch.Generator) -> Certificate:
        """The same, but look in the motion linearised about the policy's own episode, where that costs little.

        Where doubt is large the worst motion lies far from that episode, and is missed: this refuses, or passes what is worth a
        certificate. The margin is that of the model itself all the same.
        """
        with torch.no_grad():
            field = policy.prepared()
        return self._search(mdp, mdp.near(field), field, self._starts(mdp, known, generator))

    def _search(
        self, mdp: HallucinatedMDP, searched: HallucinatedMDP, field: Field, z: Tensor, inside: Sequence[float] = ()
    ) -> Certificate:
        """The worst motion, by the margins of ``mdp``, of those that searches from ``z`` ``[S, E]`` in ``searched`` end in.

        Steps go from end to end of the set. A margin that is least on the way, such as that of a region which a crowd is blown
        into, or past, is found at the shares ``inside`` of it.
        """
        # Without doubt, or anything to keep, the first start, the nominal motion, says it all.
        if mdp.exact or not mdp.constraints:
            z = z[:1]
        else:
            z = torch.cat([self._worst(searched, field, z, kept) for kept in range(len(mdp.constraints))])
            z = torch.cat([z, *(share * z for share in inside)])
        with torch.no_grad():
            # A motion or policy that leads to no number is as bad as can be; without constraints the margin stays infinite.
            margins = mdp.plausible(z).rollout(field).worst_margin.nan_to_num(nan=-math.inf, posinf=math.inf)
        found = margins.argmin()
        return Certificate(float(margins[found]), z[found])

    def _worst(self, mdp: HallucinatedMDP, field: Field, z: Tensor, kept: int) -> Tensor:
        """The motion that is worst for one constraint, of those met on the way from each start, ``[S, E]``.

        Margins of several constraints have units of their own: one that is small, or steep, would be all that a search for the
        smallest of them ever looks at.
        """
        best_margin = torch.full(z.shape[:1], math.inf, dtype=z.dtype, device=z.device)
        best = z
        for step in range(self.config.steps + 1):
            z = z.detach().requires_grad_()
            trajectory = mdp.plausible(z).rollout(field)
            margins = trajectory.margins[..., kept]
            worst = margins.amin(-1).nan_to_num(nan=-math.inf)
            with torch.no_grad():
                lower = worst < best_margin
                best_margin = torch.where(lower, worst, best_margin)
                best = torch.where(lower.unsqueeze(-1), z, best)
            if step == self.config.steps:
                break
            # Every second search lowers all steps' margins at once: the smallest one alone says nothing about those after it.
            odd = torch.arange(len(worst), device=worst.device) % 2 == 1
            aim = torch.where(odd, margins.mean(-1), worst)
            (slope,) = torch.autograd.grad(aim.sum(), z)
            # The margin is nearly linear over the ball, so each step goes to where its linearisation is least: on the sphere.
            z = -_farthest(mdp, slope)
        return best.detach()

    def _starts(self, mdp: HallucinatedMDP, known: Tensor, generator: torch.Generator) -> Tensor:
        random = torch.randn(self.config.restarts, mdp.directions, generator=generator, dtype=known.dtype, device=known.device)
        nominal = known.new_zeros(1, mdp.directions)
        return torch.cat([nominal, _farthest(mdp, torch.cat([random, known]))])


def _farthest(mdp: HallucinatedMDP, z: Tensor) -> Tensor:
    """The plausible motions, and trips, that lie farthest along directions ``[..., E]``: on the sphere about each set."""
    parts = z.split([members for members, _ in mdp.doubts], -1)
    spheres = [
        radius * torch.nn.functional.normalize(part, dim=-1) for (_, radius), part in zip(mdp.doubts, parts, strict=True)
    ]
    # One alone is not copied: in another layout sums are rounded otherwise, and old runs could not be repeated.
    return torch.cat(spheres, -1) if len(spheres) > 1 else spheres[0]


def within(mdp: HallucinatedMDP, z: Tensor) -> Tensor:
    """Directions ``[..., E]``; those that lie outside of the confidence sets are drawn back to their spheres."""
    parts = []
    for part, (_, radius) in zip(z.split([members for members, _ in mdp.doubts], -1), mdp.doubts, strict=True):
        size = part.norm(dim=-1, keepdim=True)
        parts.append(torch.where(size > radius * (1.0 + ROUNDING), part * (radius / size), part))
    return torch.cat(parts, -1)
