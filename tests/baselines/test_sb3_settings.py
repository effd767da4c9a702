"""The file of hyperparameters: complete, all of it used, and nothing in it that is not known."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from baselines.algorithm import algorithms
from baselines.sb3.settings import ACTOR_DECAY, ARGUMENTS, HYPERPARAMETERS, read_settings

SECTIONS = read_settings()


def test_every_section_is_an_algorithm_of_the_benchmark() -> None:
    """By its name and label; none reads the true motion."""
    registered = {name: one for name, one in algorithms().items() if name.startswith("sb3-")}
    assert registered.keys() == SECTIONS.keys()
    assert all(one.label == SECTIONS[name].label and not one.oracle for name, one in registered.items())
    assert len({one.label for one in SECTIONS.values()}) == len(SECTIONS)


def test_what_is_promised_is_there() -> None:
    """Five algorithms, each with a fixed and with a controlled price; TD3 and SAC on cells and nodes, others on few nodes."""
    assert {one.algorithm for one in SECTIONS.values()} == ARGUMENTS.keys()
    for algorithm in ("TD3", "SAC"):
        assert {one.parameterization for one in SECTIONS.values() if one.algorithm == algorithm} >= {"cells", "bilinear:8"}
    for algorithm in ("PPO", "A2C", "DDPG"):
        assert all(one.parameterization.startswith("bilinear:") for one in SECTIONS.values() if one.algorithm == algorithm)
    for controlled in (False, True):
        assert {one.algorithm for one in SECTIONS.values() if bool(one.lagrangian) == controlled} == set(ARGUMENTS)


def test_every_section_names_its_source() -> None:
    """Above each section there is a comment on where its settings come from."""
    text = HYPERPARAMETERS.read_text()
    for name in SECTIONS:
        assert re.search(rf"^#[^\n]*\n\[{name}\]$", text, re.MULTILINE), name


@pytest.mark.parametrize("algorithm", ARGUMENTS)
def test_stated_arguments_are_those_that_sb3_has(algorithm: str) -> None:
    """Every number of the algorithm is stated; what SB3 offers beyond is left out on purpose, and written down here."""
    sb3 = pytest.importorskip("stable_baselines3")
    offered = set(inspect.signature(getattr(sb3, algorithm)).parameters)
    left_out = {
        "policy", "env", "policy_kwargs", "seed", "device", "action_noise",  # given by the training
        "verbose", "tensorboard_log", "stats_window_size", "_init_setup_model",  # no matter of learning
        "use_sde", "sde_sample_freq", "use_sde_at_warmup", "target_kl", "clip_range_vf", "n_steps",  # switched off
        "rollout_buffer_class", "rollout_buffer_kwargs", "replay_buffer_class", "replay_buffer_kwargs",
        "optimize_memory_usage",
    }  # fmt: skip
    ours = {ACTOR_DECAY} if algorithm in ("DDPG", "TD3") else set()
    assert ARGUMENTS[algorithm] - ours <= offered  # type: ignore[index]
    assert (offered | ours) - left_out <= ARGUMENTS[algorithm]  # type: ignore[index]


def lines(name: str) -> list[str]:
    """The keys of a section, its own and its subsections', as lines of the file."""
    text = HYPERPARAMETERS.read_text()
    section = text[text.index(f"[{name}]") :]
    end = re.search(rf"^\[(?!{name}[.\]])", section, re.MULTILINE)
    return re.findall(r"^\w+ = .*$", section[: end.start() if end else None], re.MULTILINE)


@pytest.mark.parametrize("name", SECTIONS)
def test_no_key_may_be_missing_or_unknown(name: str, tmp_path: Path) -> None:
    """Each key of each section in turn is taken away, and is misspelt."""
    text = HYPERPARAMETERS.read_text()
    start = text.index(f"[{name}]")
    stated = lines(name)
    assert len(stated) == 13 + len(ARGUMENTS[SECTIONS[name].algorithm]) + 4 * (SECTIONS[name].lagrangian is not None)
    file = tmp_path / "mine.toml"
    for line in stated:
        for changed, message in (("", "lacks the keys"), (f"x{line}", "unknown keys")):
            file.write_text(text[:start] + text[start:].replace(f"\n{line}\n", f"\n{changed}\n", 1))
            with pytest.raises(ValueError, match=rf"mine.toml, \[{name}\].*{message}"):
                read_settings(file)


@pytest.mark.parametrize(
    ("was", "becomes", "message"),
    [
        ("reach = .*", "reach = 2", "reach must be a number in (0, 1], got 2"),
        ("noise = .*", "noise = 0.0", "noise must be a number in (0, inf)"),
        ("penalty = .*", "penalty = -1", "penalty"),
        ("penalty = .*", 'penalty = "much"', "penalty"),
        ("caution = .*", "caution = nan", "caution"),
        ("num_envs = .*", "num_envs = 0", "num_envs"),
        ("algorithm = .*", 'algorithm = "PPO2"', "algorithm must be one of"),
        ("activation = .*", 'activation = "gelu"', "activation must be one of ('tanh', 'relu'), got 'gelu'"),
        ("hidden = .*", "hidden = 64", "hidden must be of type list"),
        ("hidden = .*", "hidden = [0]", "hidden"),
        ("observe_time = .*", "observe_time = 1", "observe_time must be of type bool"),
        ("bootstrap = .*", "bootstrap = false\nobserve_time = false", "observe_time"),
        ("limit = .*", "limit = -0.1", "limit"),
    ],
)
def test_values_out_of_range_are_refused(was: str, becomes: str, message: str, tmp_path: Path) -> None:
    """The message says where, what and what is allowed."""
    text = HYPERPARAMETERS.read_text()
    text = text[text.index("[sb3-ppo-lagrangian]") :]
    if "bootstrap" in was:
        text = re.sub(r"^observe_time = .*\n", "", text, count=1, flags=re.MULTILINE)
    file = tmp_path / "mine.toml"
    file.write_text(re.sub(f"^{was}$", becomes, text, count=1, flags=re.MULTILINE))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_settings(file)
    assert "mine.toml, [sb3-ppo-lagrangian]" in str(error.value)


def test_a_negative_decay_is_refused(tmp_path: Path) -> None:
    """It would drive the actor's weights away from zero."""
    text = HYPERPARAMETERS.read_text()
    file = tmp_path / "mine.toml"
    file.write_text(re.sub(f"^{ACTOR_DECAY} = .*$", f"{ACTOR_DECAY} = -0.1", text, flags=re.MULTILINE))
    with pytest.raises(ValueError, match=re.escape("[sb3-ddpg]: actor_decay must be a number in [0, inf), got -0.1")):
        read_settings(file)


def test_the_registry_does_without_sb3() -> None:
    """Importing it costs nothing of SB3; running an algorithm without it names the extra."""
    program = """
import sys
sys.modules["stable_baselines3"] = None  # as if it were not installed
from baselines.algorithm import algorithms
train = algorithms()["sb3-ppo"].train
try:
    train(None, None)
except ImportError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120).stdout
    assert "sb3-ppo" in said and "pip install 'safe-m3-taxi[baselines]'" in said
