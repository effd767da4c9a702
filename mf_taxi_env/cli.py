"""The command ``mf-taxi``: list cities, build one from trips, find trips in GPS traces, draw one. Needs the extra ``cli``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from mf_taxi_env.bound import certified_bound
from mf_taxi_env.scenarios import Scenario, list_scenarios, load_scenario, scenario_from_trips, traces, trips_from_traces
from mf_taxi_env.scenarios.city import box_km
from mf_taxi_env.scenarios.trips import describe
from mf_taxi_env.taxi import TaxiMDP

try:
    from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg
    from tyro.extras import SubcommandApp
except ImportError as error:
    # A user who left out the extra gets a hint from main(), not a traceback from here.
    _MISSING: ImportError | None = error
else:
    _MISSING = None

DESCRIPTION = "Cities for taxi repositioning: list them, build them from trips or GPS traces, look at them."
#: How the library's messages name an argument, and what it is called here.
FLAGS = {r"columns=\{.*?\}": "--columns NAME=COLUMN", r"bad_rows='drop'": "--bad-rows drop"}


def scenarios(cells: int = 25) -> None:
    """List the built-in cities.

    Args:
        cells: Cells per axis; entropies depend on it.
    """
    rows = [("name", "demand entropy", "entropy floor", "area")]
    for name in list_scenarios():
        city = load_scenario(name, cells)
        width, height = box_km(city.box)
        rows.append((name, f"{city.demand_entropy:.1%}", f"{city.entropy_floor:.1%}", f"{width:.1f} x {height:.1f} km"))
    first = max(len(row[0]) for row in rows)
    for name, entropy, floor, area in rows:
        print(f"{name:<{first}}  {entropy:>14}  {floor:>13}  {area}")
    print(f"\nEntropies are shares of the largest possible, on {cells} x {cells} cells.")


def build(
    source: Annotated[Path, arg(metavar="SOURCE")],
    /,
    *,
    box: Annotated[tuple[float, float, float, float], arg(metavar="W E S N")],
    out: Annotated[Path, arg(metavar="FILE.npz")],
    cells: int = 25,
    window: Annotated[tuple[str, str] | None, arg(metavar="START END", help_behavior_hint="(default: all day)")] = None,
    steps: int = 1,
    smoothing: int = 3,
    columns: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME=COLUMN")] = (),
    source_cell: Annotated[
        tuple[float, float] | None, arg(metavar="W H", help_behavior_hint="(default: the coordinates are points)")
    ] = None,
    entropy_floor: float = 0.95,
    bad_rows: Literal["raise", "drop"] = "raise",
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: the file's)")] = None,
    overwrite: bool = False,
) -> None:
    """Build a scenario file from trip records.

    Args:
        source: File of trips: .csv, .csv.gz, .csv.zst or .parquet.
        box: Study area in degrees: west, east, south, north.
        out: Scenario file to write.
        cells: Cells per axis.
        window: Local times of day of the pick-ups to keep, such as 19:00 22:00; may pass midnight; 00:00 24:00 is the
            whole day.
        steps: Slices of the window, equal in time, each with its own demand and trips: one per step. An episode has 12 steps
            unless --horizon of safe-m3, or horizon in Python, says otherwise.
        smoothing: Width of the median filter over the demand in cells, odd; 1 for none.
        columns: What the file calls one of our columns, such as pickup_lon=start_lng; repeat it for more.
            Ours are pickup_lon, pickup_lat, dropoff_lon, dropoff_lat, pickup_time and trips (a count per row).
        source_cell: Width and height in degrees of the source's cells, where its coordinates are the centres of cells.
        entropy_floor: Default safety constraint, as a share of the largest entropy.
        bad_rows: Refuse a file with unreadable or impossible values, or leave such rows out and count them.
        name: Name of the scenario.
        overwrite: Replace an existing scenario file.
    """
    target = out if out.suffix == ".npz" else out.with_name(out.name + ".npz")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; replace it with --overwrite")
    _check_folder(target)
    city = scenario_from_trips(
        source,
        box=box,
        cells=cells,
        window=window,
        steps=steps,
        smoothing=smoothing,
        columns=dict(_pair(text) for text in columns),
        source_cell=source_cell,
        entropy_floor=entropy_floor,
        bad_rows=bad_rows,
        name=name,
    )
    print(describe(city.provenance))
    print(f"demand entropy  {_entropy(city)}")
    print(f"scenario        {city.save(target)}")


def trips(
    source: Annotated[Path, arg(metavar="SOURCE")],
    /,
    *,
    out: Annotated[Path, arg(metavar="FILE")],
    columns: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME=COLUMN")] = (),
    max_gap: Annotated[float, arg(metavar="SECONDS")] = 600.0,
    bad_rows: Literal["raise", "drop"] = "raise",
    overwrite: bool = False,
) -> None:
    """Find the trips in GPS traces that tell whether a taxi is occupied.

    Args:
        source: File of positions: .csv, .csv.gz, .csv.zst or .parquet.
        out: Trip file to write for `build`: .csv or .parquet.
        columns: What the file calls one of our columns, such as taxi=vehicle; repeat it for more.
            Ours are taxi, time, lon, lat and occupied (0 or 1).
        max_gap: Longest time between two positions of a taxi; a trip with a longer gap is left out.
        bad_rows: Refuse a file with unreadable or impossible values, or leave such rows out and count them.
        overwrite: Replace an existing trip file.
    """
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; replace it with --overwrite")
    _check_folder(out)
    facts = trips_from_traces(source, out, columns=dict(_pair(text) for text in columns), max_gap=max_gap, bad_rows=bad_rows)
    print(traces.describe(facts))
    print(f"trip file       {out}")


def show(
    scenario: Annotated[str, arg(metavar="SCENARIO")],
    /,
    *,
    cells: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 25, or the file's own)")] = None,
    out: Annotated[Path | None, arg(metavar="FILE.png", help_behavior_hint="(default: SCENARIO.png in this folder)")] = None,
) -> None:
    """Draw a city on one sheet and print its key figures.

    Args:
        scenario: Name of a built-in city (synthetic:7 is the generated one of seed 7), or a scenario file (.npz) or file of
            city parameters (.toml).
        cells: Cells per axis.
        out: Picture to write: .png, .pdf or .svg.
    """
    from mf_taxi_env.render import save_figure
    from mf_taxi_env.scenario_sheet import mean_trip, scenario_sheet

    # A colon is no character of a file name everywhere.
    target = out or Path(f"{Path(scenario).stem.replace(':', '-')}.png")
    _check_folder(target)
    if cells is None and Path(scenario).suffix == ".npz":
        city = Scenario.load(scenario)
    else:
        city = load_scenario(scenario, 25 if cells is None else cells)
    save_figure(scenario_sheet(city), target)
    k, (width, height) = city.cells, box_km(city.box)
    demand = np.atleast_2d(city.demand)
    positive = demand[demand > 0]
    uniform = float((positive * np.log(positive * k * k)).sum()) / len(demand)
    print(f"{city.name}: {k} x {k} cells, {width:.1f} x {height:.1f} km")
    print(f"demand entropy   {_entropy(city)}")
    print(f"entropy floor    {city.entropy_floor:.1%}")
    print(f"mean trip        {mean_trip(city):.2f} km")
    print(f"uniform fleet    KL {uniform:.4f} nats per step from the demand")
    print(f"certified bound  {_bound(city)}")
    print(f"picture          {target}")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments; default those of the process.

    Returns:
        Exit status: 0, or 2 after an error that was told in one line.
    """
    if _MISSING is not None:
        return _fail("the command line needs tyro: pip install 'safe-m3-taxi[cli]'")
    app = SubcommandApp()
    for command in (scenarios, build, trips, show):
        app.command(command)
    try:
        app.cli(prog="mf-taxi", description=DESCRIPTION, args=args, config=(FlagCreatePairsOff,))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except (ValueError, ImportError) as error:
        return _fail(str(error))
    return 0


def _fail(message: str) -> int:
    for pattern, flag in FLAGS.items():
        message = re.sub(pattern, flag, message)
    print(f"mf-taxi: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _pair(text: str) -> tuple[str, str]:
    name, equals, column = text.partition("=")
    if not (name and equals and column):
        raise ValueError(f"--columns must be NAME=COLUMN, such as pickup_lon=start_lng, got {text!r}")
    return name, column


def _check_folder(target: Path) -> None:
    # Said before the work, not after it.
    if not target.parent.is_dir():
        raise FileNotFoundError(f"--out: there is no folder {target.parent}")


def _entropy(city: Scenario) -> str:
    mean = " (mean demand of all steps)" if city.demand.ndim == 2 else ""
    return f"{city.demand_entropy:.1%} of the largest possible{mean}"


def _bound(city: Scenario) -> str:
    """The least divergence from the demand that any fleet above the entropy floor can have, in words."""
    # One step, or one per step of the data, has the same mean as any longer episode.
    try:
        bound = certified_bound(TaxiMDP(city, horizon=city.steps))
    except (ImportError, ValueError) as error:
        return f"not computed: {error}"
    return f"KL {-bound.per_step:.4f} nats per step at best, above the entropy floor"


if __name__ == "__main__":
    raise SystemExit(main())
