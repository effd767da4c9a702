"""What a policy is worth: its episode in the true mean field, and with finite fleets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from baselines.heuristics import Stay
from mf_taxi_env import FleetSimulator, TaxiMDP, certified_bound, score
from mf_taxi_env.fleet_metrics import episode_metrics, fleet_metrics, over_runs
from mf_taxi_env.fleet_policy import FleetPolicy, checked
from mf_taxi_env.information import entropy_fraction
from mf_taxi_env.mdp import Field, Trajectory, worst
from mf_taxi_env.scoring import as_judged, demand_match, kept, stay_return


class Judgement(NamedTuple):
    """A policy's episode in the true mean field; :class:`~baselines.curve.Row` defines the numbers."""

    score: float
    reward: float
    min_margin: float
    kl: float
    entropy: float
    violations: int


class Judge:
    """Executes policies in the true mean field. What is possible in it is computed once, here.

    Args:
        world: The true world, its rewards of the distribution that an action causes. It is nobody else's: an algorithm that
            writes to its own world changes no number.

    Raises:
        ValueError: If its rewards are of other distributions; or if no policy can earn more than staying put: there is nothing
            to score then.
    """

    def __init__(self, world: TaxiMDP) -> None:
        if world.reward_timing != "next":
            raise ValueError(f"world must have reward_timing='next', which bound and score go by, got {world.reward_timing!r}")
        self.world = world
        self.bound = certified_bound(world)
        self.stay = stay_return(world)
        if not self.bound.reward - self.stay > world.horizon * self.bound.gap:
            raise ValueError(
                f"scores need a city in which more can be earned than by staying put, {self.stay:.6f} nats; "
                f"in this one the certified bound is {self.bound.reward:.6f}"
            )

    @torch.no_grad()
    def __call__(self, policy: Field) -> tuple[Judgement, Tensor]:
        """Execute a policy. A margin in float64 above ``-1e-6`` counts as kept; who violates, and nobody else, has no score.

        Returns:
            The numbers, and the distributions ``mu_0 .. mu_T``, ``[T + 1, K]``.

        Raises:
            BoundExceededError: If it keeps the constraints and earns more than the certified bound.
            TypeError: If it is no policy.
            ValueError: If an action is not finite, leaves ``[-1, 1]``, or the field has the wrong shape.
        """
        executed = self.world.rollout(_Checked(policy, self.world))
        caused, margins = executed.mu[1:], _margins(executed, self.world)
        judgement = Judgement(
            score=score(caused, self.world),
            reward=float(executed.returns),
            min_margin=float(worst(margins.flatten())),
            kl=-demand_match(as_judged(caused), self.world) / self.world.horizon,
            entropy=float(entropy_fraction(caused).min()),
            violations=int((~kept(margins)).any(-1).sum()),
        )
        if judgement.violations == 0:  # the score has been checked; the world adds up its own rewards
            self.bound.check(judgement.reward)
        return judgement, executed.mu


@torch.no_grad()
def stay_margin(world: TaxiMDP) -> float:
    """The smallest margin of an episode in which everybody stays put: below 0, a score of 0 is that of an unsafe fleet."""
    return float(worst(_margins(world.rollout(Stay(world)), world).flatten()))


def _margins(executed: Trajectory, world: TaxiMDP) -> Tensor:
    """Margins ``[T, n_constraints]`` of an episode, as in a score: the world's own are rounded."""
    return world.margins(as_judged(executed.mu[1:]))


@torch.no_grad()
def judge_fleets(policy: Field, world: TaxiMDP, taxis: int, runs: int) -> tuple[dict[str, float], Tensor]:
    """Execute a policy with finite fleets whose taxis act at the centres of cells; fleet ``i`` has the seed ``i``.

    Args:
        policy: What is judged.
        world: The true world.
        taxis: Size of a fleet, at least 1.
        runs: Fleets, at least 1.

    Returns:
        By the names of :data:`~mf_taxi_env.fleet_metrics.METRICS` the mean over fleets; ``violated`` and ``corrected``, the
        shares of fleets that violate a constraint at some step, as they are and after the correction for finite samples
        (:func:`~mf_taxi_env.finite_samples.corrected_margins`; NaN where it is not known, with fewer taxis than cells); and the
        distributions, ``[runs, T + 1, K]``.

    Raises:
        TypeError: If it is no policy.
        ValueError: If an action is not finite, leaves ``[-1, 1]``, or the field has the wrong shape.
    """
    watched = _Checked(policy, world)  # at this resolution a field is all that is asked of a policy
    episodes, distributions = [], []
    for seed in range(runs):
        rollout = FleetSimulator(world, taxis, seed=seed).rollout(cast("FleetPolicy", watched))
        episodes.append(episode_metrics(fleet_metrics(rollout, world)))
        distributions.append(rollout.distributions)
    means = {name: estimate.mean for name, estimate in over_runs(episodes).items()}
    shares = {
        "violated": _share_broken([episode["violations"] for episode in episodes]),
        "corrected": _share_broken([episode["corrected_violations"] for episode in episodes]),
    }
    return means | shares, torch.stack(distributions)


def _share_broken(violations: Sequence[float]) -> float:
    """The share of episodes with a violation; NaN where one's number is not known."""
    return math.nan if any(map(math.isnan, violations)) else sum(count > 0 for count in violations) / len(violations)


class _Checked:
    """A policy whose every action is checked, and that is shown a copy of the fleet: what it writes there moves nobody."""

    def __init__(self, policy: Field, world: TaxiMDP) -> None:
        if not callable(getattr(policy, "field", None)):
            raise TypeError(f"a policy must have a method field(mu, t), got {policy!r}; an algorithm records and returns one")
        self.policy = policy
        self.shape = world.centers.shape

    def field(self, mu: Tensor, t: int) -> Tensor:
        return checked(self.policy.field(mu.clone(), t), self.shape, t)
