"""Safe-M3-UCRL in its variants, as algorithms of the benchmark."""

from __future__ import annotations

from dataclasses import replace

from baselines.algorithm import Recorder, Task, Train, register
from mf_taxi_env.mdp import Field
from safe_m3_agent import Config, Episode, SafeM3UCRL
from safe_m3_agent.barrier import BarrierConfig
from safe_m3_agent.callbacks import Learner
from safe_m3_agent.checkpoint import CHECKPOINT_FILE
from safe_m3_agent.planners.bptt import BPTTConfig
from safe_m3_agent.planners.ddpg_config import DDPGConfig
from safe_m3_agent.policy import PolicyConfig
from safe_m3_agent.run import RunFolder

#: What the others are variants of: one representative taxi, MF-BPTT, a Gaussian process.
BASE = Config(model="gp")
#: Settings by name, and what tables call them.
VARIANTS: dict[str, tuple[str, Config]] = {
    "safe-m3": ("Safe-M3 (BPTT)", BASE),
    "safe-m3-fleet": ("Safe-M3 (BPTT), planned for 10,000 taxis", replace(BASE, fleet=10_000)),
    "safe-m3-ensemble": ("Safe-M3 (BPTT, ensemble)", Config()),
    "safe-m3-ddpg": (
        "Safe-M3 (DDPG)",
        replace(
            BASE,
            planner="ddpg",
            growth=0.5,
            adversaries=1,
            barrier=BarrierConfig(initial=0.1, fall=0.8),
            ddpg=DDPGConfig(critic="expansion", rounds=10, episodes=8, actor_batch=4, critic_steps=5, lookahead=6),
        ),
    ),
    "safe-m3-known": ("Safe-M3 (BPTT, motion known)", Config(model="known")),
    "m3-ucrl": ("M3-UCRL", replace(BASE, constrained=False)),
    # Of arXiv 2306.17052, Section 5 and Appendix C, and its published configuration files: weight 1, L_h = 0.1 (that of the
    # constraints), beta 1, a network fed the distribution, Adam at 1e-4 in the model itself, representative taxis that follow
    # the policy, every plan executed. Theirs takes up to 20,000 steps per plan; ensemble, noise and relaxed barrier are ours.
    "published": (
        "Safe-M3-UCRL (published settings)",
        Config(
            certified=False,
            calibrate=False,
            exploration="policy",
            beta=1.0,
            rounds=1,
            growth=0.0,
            anew=0.0,
            policy=PolicyConfig("network", residual=False),
            barrier=BarrierConfig(initial=1.0, final=1.0),
            bptt=BPTTConfig(epochs=300, learning_rate=1e-4, renewal=0),
        ),
    ),
    # One thing less than the first, each.
    "safe-m3-uncertified": ("Safe-M3 without certificate", replace(BASE, certified=False)),
    "safe-m3-fixed-barrier": ("Safe-M3, barrier weight 1", replace(BASE, barrier=BarrierConfig(initial=1.0, final=1.0))),
    "safe-m3-uncalibrated": ("Safe-M3 without calibration", replace(BASE, calibrate=False)),
    "safe-m3-network": ("Safe-M3, network and field", replace(BASE, policy=PolicyConfig("network"))),
    "safe-m3-network-alone": ("Safe-M3, network alone", replace(BASE, policy=PolicyConfig("network", residual=False))),
}


def learner(config: Config) -> Train:
    """The agent with these settings as a function of the benchmark.

    An episode that the fleet executes is an episode of the benchmark, with as many steps as the world's horizon. The task's
    folder is the run's, with all that ``safe-m3`` shows of one; a run that was killed goes on there, bit for bit.
    """

    def train(task: Task, record: Recorder) -> Field:
        """Learn until the budget is used up; the policy in use is the result."""
        if (task.folder / CHECKPOINT_FILE).exists():
            agent = SafeM3UCRL.load(task.folder, mdp=task.mdp, device=task.device)
        else:
            agent = SafeM3UCRL(task.mdp, config, seed=task.seed)

        def show(agent: Learner, episode: Episode | None = None) -> bool:
            played, violated = len(agent.history), agent.history.violations
            return record(agent.policy, env_steps=played * task.mdp.horizon, episodes=played, violated=violated)

        left = task.budget.env_steps // task.mdp.horizon - len(agent.history)
        # A kill may have come between the last checkpoint and its record; a budget below an episode leaves the first policy.
        if (agent.history or left < 1) and not show(agent):
            return agent.policy
        if left > 0:
            with RunFolder(task.folder) as run:
                agent.learn(left, callback=[run, show])
        return agent.policy

    return train


for _name, (_label, _config) in VARIANTS.items():
    register(_name, label=_label, oracle=_config.model == "known", settings=_config)(learner(_config))
