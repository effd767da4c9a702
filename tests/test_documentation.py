"""What the documentation shows is so: code runs, commands are understood, and tables name all settings and metrics."""

from __future__ import annotations

import dataclasses
import functools
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from baselines import cli as benchmark_cli
from mf_taxi_env import EntropyFloor, TaxiMDP, load_scenario
from mf_taxi_env import cli as city_cli
from safe_m3_agent import Config, SafeM3UCRL, cli
from safe_m3_agent.fleet_table import FleetEpisode
from safe_m3_agent.history import Episode
from safe_m3_agent.planners.ddpg_config import DDPGConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs").glob("[mps]*/*.md"))]
#: The commands of the project, their modules, and what they offer.
PROGRAMS = {
    "safe-m3": (cli, ("train", "evaluate", "fleet", "figures")),
    "mf-taxi": (city_cli, ("build", "show", "trips")),
    "python -m baselines": (benchmark_cli, ("run", "table")),
}
#: Pages on which a code span that starts with dashes is options of ``safe-m3 train``.
OF_THE_AGENT = [page for page in PAGES if page.parent.name in ("models", "planners", "safety") or page.name == "method.md"]


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/quickstart.md",
        "docs/callbacks.md",
        "docs/fleet.md",
        "docs/baselines.md",
        "docs/stable_baselines.md",
        "docs/safety/improvement.md",
    ],
)
def test_snippets_run(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every Python block of a page, one after the other in one namespace; a learning run is shortened to one episode."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        code = re.sub(r"episodes=60", "episodes=1", block)
        exec(compile(code, page, "exec"), names)


def commands(page: Path) -> Iterator[str]:
    """The lines of a page that call one of the programs, with the variables of its shell loops filled in."""
    text, program = page.read_text(), "|".join(PROGRAMS)
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        variables = {"seed": "0", **dict(re.findall(r'(\w+)="(.*)"', block))}
        for line in block.replace("\\\n", " ").splitlines():
            for name, value in reversed(variables.items()):  # a later one may hold an earlier one
                line = line.replace(f"${name}", value)
            if called := re.search(rf"\b({program}) .*", line):
                yield called[0]
    yield from re.findall(rf"`((?:{program}) \w+ [^`]+)`", text)
    if page in OF_THE_AGENT:
        yield from (f"safe-m3 train {options}" for options in re.findall(r"`(--[^`]+)`", text))


def idle(function: Callable[..., Any], called: list[str]) -> Callable[..., None]:
    """A function of the same arguments that does nothing but say that it was called."""

    @functools.wraps(function)
    def stand_in(*arguments: object, **named: object) -> None:
        called.append(function.__name__)

    return stand_in


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A renamed or misspelt option on a page fails here: every command is parsed, and none is carried out."""
    called: list[str] = []
    for module, names in PROGRAMS.values():
        for name in names:
            monkeypatch.setattr(module, name, idle(getattr(module, name), called))
    for command in commands(page):
        program = next(name for name in PROGRAMS if command.startswith(name))
        arguments = shlex.split(command.removeprefix(program), comments=True)
        try:
            PROGRAMS[program][0].main(arguments)
        except SystemExit as error:
            pytest.fail(f"{command}: exit status {error.code}")
        assert called.pop() == arguments[0]


def test_commands_are_found() -> None:
    """The search for commands finds those in loops, in tables and in the options of a single setting."""
    found = {page.name: list(commands(page)) for page in PAGES}
    assert "safe-m3 train --scenario shenzhen-real.npz --model known --episodes 35 --out runs/known" in found["replicate.md"]
    assert "safe-m3 figures runs/paper/base-* --out figures --only 4" in found["replicate.md"]
    assert "safe-m3 train --ddpg.noise-hold 12" in found["mf-ddpg.md"]
    assert "python -m baselines table runs/mine --out runs/table" in found["add_algorithm.md"]


def rows(text: str) -> dict[str, str]:
    """Second column of tables by first, where that is one code span."""
    return dict(re.findall(r"^\| `([^`|]+)` \| ([^|]+?) \|", text, re.MULTILINE))


def settings(config: Any, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Names and defaults of all settings, nested ones with their dots."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def test_every_setting_is_documented_with_its_default() -> None:
    """The pages on the agent name every setting of it, each with the default that it has."""
    documented: dict[str, str] = {}
    for page in OF_THE_AGENT:
        documented |= rows(page.read_text())
    for name, default in settings(Config()):
        assert documented.get(name) == f"`{default}`", f"{name}: no page on the agent says that its default is {default}"


def test_every_column_of_a_fleet_is_defined() -> None:
    """The page on finite fleets names what is recorded of every episode; the two columns per step by their first."""
    text = (ROOT / "docs" / "evaluate_fleet.md").read_text().split("## The table")[1].split("## ")[0]
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", text, re.MULTILINE))))
    columns = {field.name for field in dataclasses.fields(FleetEpisode)} - {"step_kl", "step_margin"}
    assert named == columns | {"kl_1", "margin_1"}


def test_every_metric_is_defined() -> None:
    """The page on metrics names every column of the history and, in sections of their own, those of MF-DDPG and trips."""
    _, *sections = re.split(r"^## ", (ROOT / "docs" / "metrics.md").read_text(), flags=re.MULTILINE)
    defined = {section.splitlines()[0]: rows(section).keys() for section in sections}
    assert defined["Per episode"] == {field.name for field in dataclasses.fields(Episode)}
    quick = DDPGConfig(rounds=1, episodes=2, critic_steps=1, critic_batch=2, actor_batch=2, hidden=4, modes=2)
    world = TaxiMDP(load_scenario("shenzhen", cells=5), constraints=[EntropyFloor(0.9)])
    agent = SafeM3UCRL(world, Config(planner="ddpg", model="known", learn_trips=True, rounds=1, ddpg=quick))
    agent.learn(2)  # nothing is planned before the first trips
    assert defined["Of MF-DDPG"] == agent.planner_metrics.keys()
    assert defined["Of learned trips"] == agent.trip_metrics.keys()
