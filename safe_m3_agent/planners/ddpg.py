"""MF-DDPG: deep deterministic policy gradient on the lifted MDP."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from mf_taxi_env.mdp import Field
from safe_m3_agent.hallucination import HallucinatedMDP
from safe_m3_agent.planners.actor import Acting, Jittered, LiftedActor, Perturbed
from safe_m3_agent.planners.critic import Critic, expand, make_critic
from safe_m3_agent.planners.ddpg_config import DDPGConfig
from safe_m3_agent.planners.episodes import Episodes, Stage, gaussian_starts, nominal
from safe_m3_agent.planners.modes import CosineModes
from safe_m3_agent.planners.planner import BestIterate, Plan, Planner, part_of
from safe_m3_agent.planners.replay import Replay
from safe_m3_agent.policy import Policy

#: By which factor the scale of parameter noise changes from round to round at most.
FASTEST_ADAPTATION = 2.0
#: A step of the actor that is accepted makes the next one longer, one that is taken back shorter, within these bounds.
LONGER, SHORTER, SHORTEST_STEP, LONGEST_STEP = 1.3, 0.6, 1e-4, 0.02


class DDPGPlanner(Planner):
    """Actor and critic on the lifted MDP, whose simulator is the learned world (arXiv 2306.17052, Algorithm 3).

    Replay, critic, target critic and the scale of the noise are carried from plan to plan; the actor and its target start
    each plan at the policy handed in.

    Args:
        config: Settings.
        width: Width of the relaxed barrier, in the constraint's unit.
    """

    def __init__(self, config: DDPGConfig, width: float) -> None:
        self.config = config
        self.width = width
        self.replay = Replay(config.replay_episodes if config.replay else config.episodes)
        self.critic: Critic | None = None
        self.target: Critic | None = None
        self.noise_scale = torch.tensor(config.noise_distance)
        self._loaded: dict[str, Tensor] = {}
        self._metrics: dict[str, Tensor] = {}

    def plan(
        self,
        mdp: HallucinatedMDP,
        policy: Policy,
        *,
        weight: float,
        adversaries: Tensor,
        optimistic: bool,
        generator: torch.Generator,
        effort: int = 1,
    ) -> Plan:
        """Improve a copy of ``policy`` by rounds of episodes, critic steps, actor steps and an evaluation.

        Raises:
            FloatingPointError: If the plan broke down on the way. What is carried to the next plan is then of no use, and is to
                be put back by :meth:`load_state`.
        """
        modes = CosineModes(mdp, self.config.modes)
        # A certificate may find nothing worse than the nominal motion, which is planned in anyway, and known by its zeros.
        adversaries = adversaries[adversaries.any(-1)]
        critic, target = self._critics(mdp, modes, optimistic, generator)
        stage = Stage(mdp, weight, self.width)
        self.replay.refresh(stage)
        noise_scale = self.noise_scale.to(mdp.device, mdp.dtype)
        actor = LiftedActor(mdp, policy, optimistic=optimistic)
        run = ActorCritic(self.config, stage, actor, critic, target, self.replay, modes, adversaries, noise_scale, generator)
        run.evaluate()
        for number in range(effort * self.config.rounds):
            if self.config.renewal and number % self.config.renewal == 0:
                near = mdp.near(actor.policy)
                if near is not stage.mdp:  # a known motion is its own tangent
                    run.move_to(near)
            run.explore()
            run.fit_critic()
            run.climb()
            run.evaluate()
        self.noise_scale = run.noise_scale
        self._metrics = run.metrics
        _check_numbers(run.metrics)
        feasible = bool(run.best.value > -math.inf)
        if feasible:
            run.best.restore(run.parameters)
        objective = run.trusted.value if self.config.trust_region else run.metrics["objective"]
        return Plan(actor.policy, float(objective), feasible)

    def metrics(self) -> dict[str, float]:
        """Of the last round of the last plan; empty before the first. The page on metrics defines each."""
        return {name: float(value) for name, value in self._metrics.items()}

    def state(self) -> dict[str, Tensor]:
        """Replay, critic, target critic and scale of the noise. Networks learn in place, so theirs are copies."""
        if self.critic is None or self.target is None:
            return dict(self._loaded)
        return {
            "noise_scale": self.noise_scale,
            **{f"critic.{name}": value.clone() for name, value in self.critic.state_dict().items()},
            **{f"target.{name}": value.clone() for name, value in self.target.state_dict().items()},
            **{f"replay.{name}": value for name, value in self.replay.state().items()},
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` gave; the networks are built, and checked against it, by the next plan."""
        self._loaded = dict(state)
        self.critic = self.target = None
        self.noise_scale = state.get("noise_scale", torch.tensor(self.config.noise_distance))
        self.replay.load_state(part_of(state, "replay."))

    def _critics(
        self, mdp: HallucinatedMDP, modes: CosineModes, optimistic: bool, generator: torch.Generator
    ) -> tuple[Critic, Critic]:
        """Critic and target critic, made for the first plan or from what was loaded."""
        if self.critic is None or self.target is None:
            actions = mdp.action_dim if optimistic else mdp.action_dim // 2
            # Loaded networks draw nothing from the run's generator: a resumed run goes on with the same numbers.
            source = torch.Generator(mdp.device) if self._loaded else generator
            self.critic = make_critic(self.config.critic, mdp, modes, actions, self.config.hidden, source)
            self.target = copy.deepcopy(self.critic)
            if self._loaded:
                self.critic.load_state_dict(part_of(self._loaded, "critic."))
                self.target.load_state_dict(part_of(self._loaded, "target."))
                self._loaded = {}
        return self.critic, self.target


class ActorCritic:
    """One plan's actor and critic. Nothing is read back from the device.

    Args:
        config: Settings.
        stage: Where episodes are played.
        actor: What is improved.
        critic: What it follows.
        target: The critic's target network.
        replay: The last episodes.
        modes: Of the noise.
        adversaries: Directions of the worlds to be safe against, ``[A, E]``.
        noise_scale: Scale of parameter noise to begin with, ``[]``.
        generator: Source of randomness.
    """

    def __init__(
        self,
        config: DDPGConfig,
        stage: Stage,
        actor: LiftedActor,
        critic: Critic,
        target: Critic,
        replay: Replay,
        modes: CosineModes,
        adversaries: Tensor,
        noise_scale: Tensor,
        generator: torch.Generator,
    ) -> None:
        self.config = config
        self.stage = stage
        self.actor = actor
        self.target_actor = copy.deepcopy(actor)
        self.critic = critic
        self.target = target
        self.replay = replay
        self.modes = modes
        self.noise_scale = noise_scale
        self.generator = generator
        self.worlds = torch.cat([adversaries.new_zeros(1, stage.mdp.directions), adversaries])
        self.parameters = list(actor.parameters())
        self.trusted = BestIterate(self.parameters)
        self.best = BestIterate(self.parameters)
        self.step = noise_scale.new_tensor(config.actor_step)
        self.optimizer = torch.optim.Adam(critic.parameters(), lr=config.critic_rate)
        self.metrics: dict[str, Tensor] = {}
        #: Return of the policy handed in, minus infinity where it is not feasible; None before the first evaluation.
        self.start_return: Tensor | None = None
        self._fresh = True

    def move_to(self, mdp: HallucinatedMDP) -> None:
        """Go on in another world, where the actor is measured anew: what it was worth elsewhere is no yardstick here."""
        step, best = self.step, self.best
        self.stage.mdp = mdp
        self.trusted, self.best = BestIterate(self.parameters), BestIterate(self.parameters)
        self.evaluate()
        self.step = step
        # Of a plan that has left what is feasible, the last one that was.
        self.best.offer(best.parameters, best.value, self.best.value.isneginf())

    @torch.no_grad()
    def explore(self) -> None:
        """Play episodes with a noisy actor, into the replay; keep the noise at the distance that was asked for."""
        config, mdp = self.config, self.stage.mdp
        z = self.worlds[torch.arange(config.episodes, device=mdp.device) % len(self.worlds)]
        start = mdp.initial((config.episodes,)).clone()
        gaussian = round(config.gaussian_starts * config.episodes)
        if gaussian:
            start[-gaussian:] = gaussian_starts(mdp, gaussian, self.generator)
        episodes, _, _ = self.stage.play(self._behaviour(nominal(z)), start, z)
        self.replay.add(episodes)
        clean = self.actor.fields(episodes.shifted, episodes.nominal)
        distance = (episodes.fields - clean).square().mean().sqrt()
        if config.noise == "parameter":
            change = (config.noise_distance / distance).clamp(1 / FASTEST_ADAPTATION, FASTEST_ADAPTATION)
            self.noise_scale = self.noise_scale * change
        self.metrics |= {"noise_distance": distance, "noise_scale": self.noise_scale}
        if self._fresh:
            # A new barrier weight or model makes other returns: their units are chosen anew for each plan.
            for critic in (self.critic, self.target):
                critic.standardise(episodes)
            self._fresh = False

    def _behaviour(self, worlds: Tensor) -> Field:
        config = self.config
        if config.noise == "parameter":
            return Perturbed(self.actor, worlds, self.noise_scale, config.noise_hold, self.modes, self.generator)
        if config.noise == "action":
            return Jittered(self.actor, worlds, config.noise_distance, self.generator)
        return Acting(self.actor, worlds)

    def fit_critic(self) -> None:
        """Temporal-difference steps of the critic; the targets follow."""
        for _ in range(self.config.critic_steps):
            now, then = self.replay.sample(self.config.critic_batch, self.generator)
            with torch.no_grad():
                aim = self._aim(now, then)
            values = self.critic(now.shifted, now.fields, now.doubt, now.z)
            loss = ((values - aim) / self.critic.unit).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.critic.parameters(), 1.0, foreach=True)
            self.optimizer.step()
            self.metrics["critic_loss"] = loss.detach()
            follow(self.target, self.critic, self.config.tau)
            follow(self.target_actor, self.actor, self.config.tau)

    def _aim(self, now: Episodes, then: Episodes) -> Tensor:
        """What the critic is to say of the transitions, ``[M, T]``."""
        critic, actor = (self.target, self.target_actor) if self.config.targets else (self.critic, self.actor)
        if self.config.critic == "expansion":
            return expand(self.stage, critic, actor, now, actor.fields(now.shifted, now.nominal), 1)
        if not then.shifted.shape[1]:  # an episode of one step
            return now.rewards
        fields = actor.fields(then.shifted, then.nominal, 1)
        ahead = critic(then.shifted, fields, then.doubt, then.z, 1)
        return now.rewards + torch.nn.functional.pad(ahead, (0, 1))

    def climb(self) -> None:
        """Steps of the actor up the critic, each tensor by the same length."""
        for _ in range(self.config.actor_steps):
            now, _ = self.replay.sample(self.config.actor_batch, self.generator)
            fields = self.actor.fields(now.shifted, now.nominal)
            if self.config.critic == "expansion":
                values = expand(self.stage, self.critic, self.actor, now, fields, self.config.lookahead)
            else:
                values = self.critic(now.shifted, fields, now.doubt, now.z)
            gradients = torch.autograd.grad(values.mean(), self.parameters)
            with torch.no_grad():
                for parameter, gradient in zip(self.parameters, gradients, strict=True):
                    size = gradient.square().mean().sqrt().clamp_min(torch.finfo(gradient.dtype).tiny)
                    parameter.add_(self.step * gradient / size)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Play the actor without noise in every planned world: take a step back that was for the worse, keep the best."""
        start = self.stage.mdp.initial((len(self.worlds),))
        acting = Acting(self.actor, nominal(self.worlds))
        episodes, returns, margins = self.stage.play(acting, start, self.worlds)
        objective = episodes.rewards.sum()
        safe = (margins >= 0).all() if self.stage.weight else torch.ones_like(objective, dtype=torch.bool)
        if self.start_return is None:
            self.start_return = torch.where(safe, returns[0], -math.inf)
        # By objective, so that plans stay on the central path; but one that earns less than its start did is not kept, optimism
        # included. What is executed has to earn no less without it.
        self.best.offer(self.parameters, objective, safe & (returns[0] >= self.start_return))
        better = self.trusted.offer(self.parameters, objective, torch.ones_like(safe))
        if self.config.trust_region:
            self.trusted.restore(self.parameters)
            self.step = torch.where(better, LONGER * self.step, SHORTER * self.step).clamp(SHORTEST_STEP, LONGEST_STEP)
        self.metrics |= {"objective": objective, "accepted": better, "actor_step": self.step}


def _check_numbers(metrics: dict[str, Tensor]) -> None:
    """Make sure that a plan's last round went by numbers.

    The objective of the best evaluation is one even where the critic is none: steps of the actor that lead to no number are
    taken back, and plan after plan would be thrown away in silence.

    Raises:
        FloatingPointError: If the critic's loss, the noise or the last evaluation is infinite or no number.
    """
    names = ("critic_loss", "noise_scale", "objective")
    values = torch.stack([metrics[name] for name in names]).tolist()  # read back from the device at once
    broken = [f"{name} {value}" for name, value in zip(names, values, strict=True) if not math.isfinite(value)]
    if broken:
        raise FloatingPointError(
            f"MF-DDPG's plan broke down: its last round has {', '.join(broken)}. The policy in use and all that was learned "
            "are intact; a smaller ddpg.critic_rate or ddpg.actor_step may help, in "
            "another run from here: SafeM3UCRL(world, config, first=agent.policy)"
        )


@torch.no_grad()
def follow(target: torch.nn.Module, source: torch.nn.Module, tau: float) -> None:
    """Move the parameters of ``target`` by a share ``tau`` towards those of ``source``."""
    for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
        ours.lerp_(theirs, tau)
