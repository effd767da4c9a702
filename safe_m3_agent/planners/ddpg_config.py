"""Settings of MF-DDPG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from mf_taxi_env.checks import finite_number, plain_numbers, whole_number
from safe_m3_agent.planners.critic import CriticKind

NoiseKind = Literal["parameter", "action", "none"]


@dataclass(frozen=True)
class DDPGConfig:
    """Settings of MF-DDPG (arXiv 2306.17052, Algorithm 3).

    Attributes:
        critic: ``"plain"``: ``Q(t, mu', field)`` from cosine modes; ``"grid"``: the same by convolutions; ``"expansion"``: a
            few steps through the differentiable model, then ``V(t, mu')``.
        rounds: Rounds per plan, each of episodes, critic steps, actor steps and an evaluation.
        renewal: Rounds until a learned motion is linearised anew, see :meth:`HallucinatedMDP.near`; 0 plays in the model.
        episodes: Episodes per round, played at once.
        critic_steps: Gradient steps of the critic per round.
        actor_steps: Gradient steps of the actor per round.
        critic_batch: Transitions per critic step, for every step of the episode.
        actor_batch: Distributions per actor step, for every step of the episode.
        critic_rate: Learning rate of the critic (Adam).
        actor_step: First length of an actor step: root mean square by which a parameter tensor moves.
        hidden: Width of the critic's hidden layers.
        modes: Cosine modes per axis, of smooth noise and of what critics see.
        lookahead: Steps through the model of the critic ``"expansion"``.
        tau: Share by which target networks follow, in ``(0, 1]``.
        noise: ``"parameter"``: perturbed copies of the actor explore; ``"action"``: independent noise per action; ``"none"``.
        noise_distance: Root mean square by which executed actions shall differ from the actor's.
        noise_hold: Steps for which a perturbed copy acts.
        gaussian_starts: Share of episodes that start from Gaussian mean fields, 0 to 1.
        replay: Whether the last ``replay_episodes`` are learned from, or those of the latest round alone.
        replay_episodes: Episodes kept.
        targets: Whether the critic learns from slowly following target networks, or from itself.
        trust_region: Whether actor steps that worsen the objective are taken back.
    """

    critic: CriticKind = "plain"
    rounds: int = 30
    renewal: int = 5
    episodes: int = 16
    critic_steps: int = 20
    actor_steps: int = 2
    critic_batch: int = 16
    actor_batch: int = 8
    critic_rate: float = 1e-3
    actor_step: float = 0.003
    hidden: int = 128
    modes: int = 6
    lookahead: int = 3
    tau: float = 0.01
    noise: NoiseKind = "parameter"
    noise_distance: float = 0.01
    noise_hold: int = 1
    gaussian_starts: float = 0.0625
    replay: bool = True
    replay_episodes: int = 128
    targets: bool = True
    trust_region: bool = True

    def __post_init__(self) -> None:
        plain_numbers(self)
        for name, allowed in (("critic", get_args(CriticKind)), ("noise", get_args(NoiseKind))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"ddpg.{name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name in (
            "rounds", "episodes", "critic_steps", "actor_steps", "critic_batch", "actor_batch", "hidden", "modes", "lookahead",
            "noise_hold", "replay_episodes",
        ):  # fmt: skip
            whole_number(f"ddpg.{name}", getattr(self, name), least=1)
        whole_number("ddpg.renewal", self.renewal, least=0)
        for name in ("critic_rate", "actor_step", "noise_distance"):
            finite_number(f"ddpg.{name}", getattr(self, name), positive=True)
        if not 0 < self.tau <= 1:
            raise ValueError(f"ddpg.tau must lie in (0, 1], got {self.tau!r}")
        if not 0 <= self.gaussian_starts <= 1:
            raise ValueError(f"ddpg.gaussian_starts must lie in [0, 1], got {self.gaussian_starts!r}")
