"""All settings of the agent, frozen and validated."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from mf_taxi_env import ParticleMDP, TaxiMDP
from mf_taxi_env.checks import finite_number, is_number, plain_numbers, whole_number
from mf_taxi_env.safety import scatter
from safe_m3_agent.barrier import BarrierConfig
from safe_m3_agent.certificate import CertificateConfig
from safe_m3_agent.model.ensemble import EnsembleConfig
from safe_m3_agent.model.gaussian_process import GPConfig
from safe_m3_agent.model.trip_model import TripConfig
from safe_m3_agent.planners.bptt import BPTTConfig
from safe_m3_agent.planners.critic import check_critic
from safe_m3_agent.planners.ddpg_config import DDPGConfig
from safe_m3_agent.policy import PolicyConfig
from safe_m3_agent.tightening import LipschitzConfig

PlannerName = Literal["bptt", "ddpg"]
ModelName = Literal["ensemble", "gp", "known"]
Exploration = Literal["free", "policy"]
Tightening = Literal["accumulated", "lemma2"]


@dataclass(frozen=True)
class Config:
    """Settings of :class:`~safe_m3_agent.SafeM3UCRL`.

    Attributes:
        planner: ``"bptt"``: MF-BPTT; ``"ddpg"``: MF-DDPG.
        model: ``"ensemble"`` and ``"gp"``, a Gaussian process (extra ``gp``), learn the motion; ``"known"`` is given it
            (Remark 1 of the paper).
        learn_trips: Learn where passengers go, too, from those of representative taxis; ``False`` is given it. Only for cities
            whose trips are the same at all steps.
        constrained: ``False`` is M3-UCRL: no barrier and no certificate; margins are still recorded.
        certified: Execute certified policies only. ``False`` executes every plan, as published: a tightened barrier is then all
            that keeps the fleet safe, and its weight falls with every plan.
        fleet: Taxis of the fleet, at least 1, that plans and certificates are to hold for: they reserve margin for the scatter
            of such a fleet, see :meth:`HallucinatedMDP.for_fleet`. 0 is the mean field, an infinite fleet.
        optimistic: Choose the hallucinated control together with the policy (Eq. 8a); ``False`` plans on the model's mean.
        beta: Half-width of the confidence set in epistemic standard deviations, at least 0; the certificate widens it for the
            number of members, see :class:`~safe_m3_agent.confidence.Confidence`.
        calibrate: Widen the confidence set where held-out landings show the model to be too sure of itself, see
            :class:`~safe_m3_agent.calibration.Calibration`, and that of learned trips likewise, see
            :class:`~safe_m3_agent.model.trip_calibration.TripCalibration`; ``beta`` and ``trips.beta`` are then the least
            widths. Without constraints there is nothing to certify, and they stay as they are.
        delta: Probability, in (0, 1), with which the calibrated sets, of motion and of learned trips together, may be left in a
            vehicle's episode.
        representative_agents: Representative taxis per episode, at least 1.
        exploration: What representative taxis do: ``"free"``: of some random actions, the one that the model is least sure of
            (they carry no mass, so the fleet stays as safe as it is); ``"policy"``: what the fleet does, as in the paper.
        exploration_candidates: Random actions that a freely exploring taxi chooses among, at least 1.
        adversaries: Worst cases kept from certificates and planned against, at least 0.
        rounds: Plans per episode, each followed by its certificate and, where that is refused, by a plan against what refused
            it; at least 1. Where nothing is certified in between, motion known or no constraint, one plan of as many steps.
        growth: Share by which the transitions have to grow before the agent plans again, at least 0: a model that has seen
            little more than the last one plans little better (UCRL2 waits for counts to double; Jaksch et al. 2010, Figure 1).
            Where the policy in use violates a constraint, and plans are certified, it does not wait.
        anew: Factor by which the transitions have to grow, more than 1, before the agent plans from the first policy again
            instead of from the one in use; 0 for never. What was planned with a poor model stays near where that led.
        tightening: What constraints are tightened by in plans: ``"accumulated"``, the fleet's doubt so far, as in the paper's
            experiments; ``"lemma2"``, the paper's bound, valid but vacuous beyond a few steps: plans keep no constraint then.
        lipschitz: Constants that ``"lemma2"`` assumes.
        policy: Kind of policy.
        ensemble: Settings of the ensemble.
        gp: Settings of the Gaussian process.
        trips: Settings of the learned trips.
        bptt: Settings of MF-BPTT.
        ddpg: Settings of MF-DDPG.
        barrier: Weight and width of the barrier.
        certificate: How hard the certificate's adversary looks.
    """

    planner: PlannerName = "bptt"
    model: ModelName = "ensemble"
    learn_trips: bool = False
    constrained: bool = True
    certified: bool = True
    fleet: int = 0
    optimistic: bool = True
    beta: float = 3.5
    calibrate: bool = True
    delta: float = 0.1
    representative_agents: int = 1
    exploration: Exploration = "free"
    exploration_candidates: int = 16
    adversaries: int = 3
    rounds: int = 3
    growth: float = 0.2
    anew: float = 2.0
    tightening: Tightening = "accumulated"
    lipschitz: LipschitzConfig = field(default_factory=LipschitzConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    gp: GPConfig = field(default_factory=GPConfig)
    trips: TripConfig = field(default_factory=TripConfig)
    bptt: BPTTConfig = field(default_factory=BPTTConfig)
    ddpg: DDPGConfig = field(default_factory=DDPGConfig)
    barrier: BarrierConfig = field(default_factory=BarrierConfig)
    certificate: CertificateConfig = field(default_factory=CertificateConfig)

    def __post_init__(self) -> None:
        plain_numbers(self)
        for name, allowed in (
            ("planner", get_args(PlannerName)),
            ("model", get_args(ModelName)),
            ("exploration", get_args(Exploration)),
            ("tightening", get_args(Tightening)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        finite_number("beta", self.beta)
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must lie in (0, 1), got {self.delta!r}")
        for name, least in (
            ("representative_agents", 1), ("exploration_candidates", 1), ("adversaries", 0), ("rounds", 1), ("fleet", 0),
        ):  # fmt: skip
            whole_number(name, getattr(self, name), least)
        finite_number("growth", self.growth)
        if not (is_number(self.anew) and (self.anew == 0 or 1 < self.anew < math.inf)):
            raise ValueError(f"anew must be a finite number > 1, or 0 for never, got {self.anew!r}")


def check_world(config: Config, mdp: ParticleMDP) -> None:
    """Make sure that settings can be used in a world, before an episode is spent.

    Raises:
        ValueError: If they ask for what the world does not have.
    """
    current = isinstance(mdp, TaxiMDP) and mdp.reward_timing == "current"
    if mdp.horizon == 1 and current and not (config.constrained and mdp.constraints):
        raise ValueError(
            "with horizon=1, reward_timing='current' and no constraint to keep nothing depends on a policy: build the world "
            "with reward_timing='next'"
        )
    if config.planner == "ddpg":
        check_critic(config.ddpg.critic, mdp.grid)
    if config.fleet:
        try:
            scatter(mdp.constraints, mdp.initial())
        except ValueError as error:
            raise ValueError(f"fleet must be 0 in this world, got {config.fleet}: {error}") from error
