"""Optional dependencies are optional: the core works without them, and what needs one says which."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

#: Everything that only an extra installs, in any extra of the distribution.
OPTIONAL = (
    "pygame",
    "ot",
    "polars",
    "cvxpy",
    "tyro",
    "matplotlib",
    "pettingzoo",
    "stable_baselines3",
    "safetensors",
    "tensorboard",
    "gpytorch",
    "safe_m3_agent",
    "baselines",
)

BLOCKER = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run_without_extras(code: str) -> str:
    """What ``code`` prints in a fresh interpreter that has no optional dependency."""
    program = BLOCKER + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """One interpreter for all questions: starting one is what takes time."""
    output = run_without_extras(
        """
        import contextlib, pathlib, tempfile
        import mf_taxi_env
        import gymnasium as gym, torch

        env = gym.make("MFTaxi-v0", cells=5)
        env.reset(seed=0)
        step = env.step(env.action_space.sample())
        print("env:", len(step), step[0].shape)

        mdp = env.unwrapped.mdp
        fleet = mf_taxi_env.FleetSimulator(mdp, 50)
        path = fleet.rollout(lambda positions, mu, t: torch.zeros_like(positions))
        print("fleet:", tuple(path.distributions.shape))

        with tempfile.TemporaryDirectory() as folder:
            file = mdp.scenario.save(pathlib.Path(folder) / "city.npz")
            print("file:", mf_taxi_env.load_scenario(file, cells=10).cells)
            trips = pathlib.Path(folder) / "trips.csv"
            trips.write_text("pickup_lon,pickup_lat,dropoff_lon,dropoff_lat\\n0.5,0.5,0.5,0.5\\n")
            try:
                mf_taxi_env.scenario_from_trips(trips, box=(0, 1, 0, 1))
            except ImportError as error:
                print("trips:", error)

        try:
            mf_taxi_env.fleet_parallel_env(5, cells=5)
        except ImportError as error:
            print("multiagent:", error)
        try:
            mf_taxi_env.certified_bound(mdp)
        except ImportError as error:
            print("bound:", error)
        try:
            mf_taxi_env.score(path.distributions[1:] * 0 + 1 / 25, mdp)
        except ImportError as error:
            print("score:", error)
        """
    )
    return dict(line.split(": ", 1) for line in output.splitlines())


def test_the_env_needs_no_extra(answers: dict[str, str]) -> None:
    """import, gym.make and step with nothing but the core dependencies, and without the agent."""
    assert answers["env"] == "5 (25,)"


def test_the_fleet_and_scenario_files_need_no_extra(answers: dict[str, str]) -> None:
    """A whole fleet rollout, saving and loading."""
    assert answers["fleet"] == "(13, 25)"
    assert answers["file"] == "10"


@pytest.mark.parametrize(
    ("feature", "extra"), [("trips", "trips"), ("multiagent", "multiagent"), ("bound", "bounds"), ("score", "bounds")]
)
def test_features_of_an_extra_name_it(answers: dict[str, str], feature: str, extra: str) -> None:
    """An ImportError with the command that helps, not a bare missing module."""
    assert f"safe-m3-taxi[{extra}]" in answers[feature]


def test_importing_the_package_loads_no_extra() -> None:
    """Optional packages are imported where they are used, even when installed: importing stays quick."""
    code = f"import sys, mf_taxi_env; print([name for name in {OPTIONAL!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
