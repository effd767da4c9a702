"""``python -m baselines``: run algorithms against each other, and make the table. Needs the extra ``baselines``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from baselines.algorithm import Budget, algorithms
from mf_taxi_env.bound import BoundExceededError
from mf_taxi_env.checks import whole_number

try:
    import tyro

    from baselines.judgement import stay_margin
    from baselines.leaderboard import make_leaderboard
    from baselines.plans import Benchmark, Plan, city_world
    from baselines.run_folder import ERROR_FILE, Result
    from baselines.runner import Refused, run_all
    from mf_taxi_env.scoring import MARGIN_TOLERANCE
    from safe_m3_agent.jobs import cpus
except ImportError as error:
    # A user who left out the extra gets a hint from main(), not a traceback from here.
    _MISSING: ImportError | None = error
else:
    _MISSING = None


def run(
    algorithms: tuple[str, ...],
    scenarios: tuple[str, ...] = ("shenzhen",),
    seeds: int = 5,
    first_seed: int = 0,
    cells: int = 25,
    env_steps: int = 1_000_000,
    seconds: float = 600.0,
    out: Path = Path("runs/benchmark"),
    taxis: int = 10_000,
    fleet_runs: int = 5,
    workers: int | None = None,
    ray: str | None = None,
    device: str = "cpu",
) -> None:
    """Let algorithms learn under one budget. The same command goes on with what is missing.

    Args:
        algorithms: Names of registered algorithms; `path/to/script.py:NAME` or `package.module:NAME` for others.
        scenarios: Names of cities, or paths of .npz files made by `mf-taxi build`.
        seeds: Runs of every algorithm in every city, each with a seed of its own.
        first_seed: The first seed; the others follow.
        cells: Cells per axis.
        env_steps: Steps of the true world that a run may make.
        seconds: Time that a run may learn; evaluation does not count.
        out: Folder of all runs.
        taxis: Size of the finite fleets that final policies are judged with; 0 for none.
        fleet_runs: How many of them.
        workers: Runs at a time; default one per CPU that this process may use, and one on a GPU.
        ray: Address of a Ray cluster that carries out the runs instead, or `local` for one started here.
        device: torch device.
    """
    whole_number("--seeds", seeds, least=1)
    chosen = range(whole_number("--first-seed", first_seed, least=0), first_seed + seeds)
    on_cpu = device.partition(":")[0] == "cpu"
    if ray is not None and not on_cpu:
        raise ValueError(f"--ray carries out runs on CPUs, got --device {device!r}")
    benchmark = Benchmark(algorithms, scenarios, chosen, cells, Budget(env_steps, seconds), out, taxis, fleet_runs, device)
    cities = benchmark.cities()
    plans = benchmark.plans(cities)
    missing = [plan for plan in plans if not plan.finished]
    at_a_time = whole_number("workers", workers if workers is not None else cpus() if on_cpu else 1, least=1)
    folders = {plan.folder.parent.parent.name: cities[plan.scenario] for plan in plans}
    margins = {name: stay_margin(city_world(city, "cpu")) for name, city in folders.items()}
    _announce(benchmark, plans, margins, "on Ray" if ray else f"{max(1, min(at_a_time, len(missing)))} at a time")
    failed, refused, width = [], [], max(len(plan.name) for plan in plans)
    try:
        for number, (plan, result) in enumerate(run_all(missing, cities, device, workers=at_a_time, ray=ray), start=1):
            if result is None:
                failed.append(plan)
            elif isinstance(result, Refused):
                refused.append(result.reason)
            print(f"{number:>{len(str(len(missing)))}}/{len(missing)}  {plan.name:<{width}}  {_told(result)}", flush=True)
    except KeyboardInterrupt:
        sys.exit("\nbaselines: stopped; the same command goes on with what is missing")
    done = len(plans) - len(failed) - len(refused)
    print(f"\n{done} of {len(plans)} runs are finished; python -m baselines table {out} --out FOLDER")
    if failed:
        print(f"{len(failed)} failed; their tracebacks:", *(plan.folder / ERROR_FILE for plan in failed), sep="\n  ")
    if refused:
        print(f"{len(refused)} refused:", *refused, sep="\n  ")
    if failed or refused:
        sys.exit(1)


def list_algorithms() -> None:
    """The built-in algorithms: names, what tables call them, and which are oracles, given the true motion."""
    known = algorithms().values()
    width = max(len(one.name) for one in known)
    print(*(f"{one.name:<{width}}  {one.label}{' (oracle)' * one.oracle}" for one in known), sep="\n")


def table(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    out: Path,
    page: Path | None = None,
    notes: Path | None = None,
    format: tuple[Literal["png", "pdf", "svg"], ...] = ("png",),  # noqa: A002 - the flag's name
) -> None:
    """Make the leaderboard from recorded runs: tables as Markdown and CSV, learning curves, performance profiles.

    Args:
        runs: Folders that `run` recorded in.
        out: Folder of the tables and pictures.
        page: Write the leaderboard as a page of the documentation as well, its pictures into `images` beside it.
        notes: Remarks in Markdown that are put under the page's introduction; a page is written whole, edits by hand are lost.
        format: Formats of the pictures.
    """
    print(make_leaderboard(runs, out, page, format, notes))


def _announce(benchmark: Benchmark, plans: Sequence[Plan], margins: dict[str, float], where: str) -> None:
    """What will be run, and what is there already."""
    done, begun = sum(plan.finished for plan in plans), sum(plan.begun for plan in plans)
    counts = [
        f"{len(several)} {one if len(several) == 1 else many}"
        for several, one, many in (
            (benchmark.algorithms, "algorithm", "algorithms"),
            (benchmark.scenarios, "city", "cities"),
            (benchmark.seeds, "seed", "seeds"),
        )
    ]
    fleets = plans[0].settings.fleet_runs
    rows = {
        "runs": f"{len(plans)} = {' x '.join(counts)}",
        "algorithms": " ".join(dict.fromkeys(f"{plan.label}{' (oracle)' * plan.oracle}," for plan in plans)).rstrip(","),
        "cities": ", ".join(margins),
        "stay put": ", ".join(f"margin {margin:.4f} in {city}" for city, margin in margins.items()),
        "budget": f"{benchmark.budget.env_steps:,} steps, {benchmark.budget.seconds:,g} s; then "
        + (f"{fleets} fleets of {benchmark.taxis:,} taxis" if fleets else "no finite fleets"),
        "there": f"{done} finished, {begun} begun; {len(plans) - done} to go, {where}",
        "folder": str(benchmark.out),
    }
    print(*(f"{name:<10}  {text}" for name, text in rows.items()), sep="\n", end="\n\n", flush=True)
    for city, margin in margins.items():
        if not margin >= -MARGIN_TOLERANCE:
            print(
                f"baselines: warning: in {city} staying put violates a constraint (margin {margin:.4f}): scores are measured "
                "from an unsafe fleet, and 0 is no score to fall back to",
                file=sys.stderr,
            )


def _told(result: Result | Refused | None) -> str:
    """What became of a run in a line."""
    if not isinstance(result, Result):
        return "failed" if result is None else "refused"
    unsafe = "1 step violates" if result.violations == 1 else f"{result.violations} steps violate"
    end = unsafe if result.violations else f"score {result.score:6.3f}"
    learning = f"{result.violated:,} of {result.episodes:,} episodes violated"
    return f"{end:<17}  {learning:<32}  {result.env_steps:>9,} steps  {result.seconds:7.1f} s"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m baselines``."""
    if _MISSING is not None:
        sys.exit(f"baselines: error: {_MISSING}; install the requirements: pip install 'safe-m3-taxi[baselines]'")
    app = tyro.extras.SubcommandApp()
    for command in (run, table):
        app.command(command)
    app.command(name="list")(list_algorithms)
    try:
        app.cli(prog="python -m baselines", description="The benchmark: algorithms side by side.", args=arguments)
    except (ValueError, OSError, ImportError, BoundExceededError, torch.cuda.OutOfMemoryError) as error:
        print(f"baselines: error: {error}", file=sys.stderr)
        sys.exit(2)
