"""What a baseline needs beyond the core is asked for when it is used, by the name of its extra."""

from __future__ import annotations

import subprocess
import sys
import textwrap

#: What the extras of the baselines, and of what is below them, install.
OPTIONAL = ("ot", "cvxpy", "stable_baselines3", "polars", "tyro", "matplotlib", "safetensors", "tensorboard", "gpytorch")


def test_importing_needs_no_extra_and_constructing_names_it() -> None:
    """Policies that need nothing run without POT, CVXPY and Stable-Baselines3; others say how to get what they lack."""
    program = f"""
    import sys

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {OPTIONAL!r}:
                raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)

    sys.meta_path.insert(0, Blocker())
    import baselines
    from mf_taxi_env import TaxiMDP, load_scenario

    mdp = TaxiMDP(load_scenario("shenzhen", cells=5))
    for make in (baselines.Stay, baselines.RandomField):
        print(tuple(make(mdp).field(mdp.initial(), 0).shape))
    for make in (baselines.GreedyTransport, baselines.Proportional, baselines.FluidLP, baselines.RollingLP):
        try:
            make(mdp)
        except ImportError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    stay, random, transport, *bounds = done.stdout.splitlines()
    assert stay == random == "(25, 2)"
    assert "safe-m3-taxi[transport]" in transport
    assert len(bounds) == 3 and all("safe-m3-taxi[bounds]" in line for line in bounds)
