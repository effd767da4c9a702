"""Checkpoints: everything a run needs to go on as if it had never stopped, in safetensors and JSON. Nothing is ever unpickled.

A saved agent is a folder of ``run.json`` (settings of agent and world), a city's ``scenario.npz`` and
``checkpoint.safetensors``. The first two do not change during a run; the third is replaced whole after every episode.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from mf_taxi_env import ParticleMDP
from mf_taxi_env.atomic import replacing
from mf_taxi_env.checks import plain_number
from safe_m3_agent.config import Config
from safe_m3_agent.worlds import rebuilt_world, save_world, world_facts

FORMAT = "safe-m3-checkpoint"
FORMAT_VERSION = 6
RUN_FILE, CHECKPOINT_FILE = "run.json", "checkpoint.safetensors"

D = TypeVar("D")


def save_checkpoint(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and JSON-able facts to one file, whole or not at all.

    Raises:
        OSError: If the file cannot be written; an older checkpoint is then intact.
    """
    metadata = {"format": FORMAT, "version": str(FORMAT_VERSION), "facts": json.dumps(facts, default=plain_number)}
    safetensors = _safetensors()
    try:
        with replacing(path) as temporary:
            safetensors.torch.save_file(
                {name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary, metadata
            )
    except safetensors.SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def load_checkpoint(path: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_checkpoint` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a checkpoint, is corrupt, or is of another version.
    """
    with _opened(path, device) as (file, facts):
        return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118


def saved_episodes(folder: Path) -> int:
    """How many episodes the checkpoint of a run's folder holds, 0 where there is none yet; its tensors are not read.

    Raises:
        ValueError: If the checkpoint is corrupt or of another version.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return 0
    with _opened(path, torch.device("cpu")) as (_, facts):
        return len(facts["history"])


@contextlib.contextmanager
def _opened(path: Path, device: torch.device) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A checkpoint's file, to read tensors from, and its facts; see :func:`load_checkpoint` for what is raised."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{path} is not a checkpoint of this library (no {FORMAT!r} header)")
            if metadata.get("version") != str(FORMAT_VERSION):
                raise ValueError(f"{path} has format version {metadata.get('version')!r}; this library reads {FORMAT_VERSION}")
            yield file, json.loads(metadata["facts"])
    except (safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a readable checkpoint: {error}") from error


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("Checkpoints need safetensors: pip install 'safe-m3-taxi[agent]'") from error
    return safetensors


def run_facts(mdp: ParticleMDP, config: Config, seed: int, first: str | None = None) -> dict[str, Any]:
    """What a run file holds: all that makes a run another one.

    Args:
        mdp: The world.
        config: Settings of the agent.
        seed: Its seed.
        first: Fingerprint of the policy that it was handed at the start; None where it began by staying put.
    """
    facts = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "seed": seed,
        "first": first,
        "config": dataclasses.asdict(config),
        "world": world_facts(mdp),
    }
    return typing.cast("dict[str, Any]", json.loads(json.dumps(facts, default=plain_number)))


def write_run_files(folder: Path, mdp: ParticleMDP, facts: dict[str, Any]) -> None:
    """Write the files that stay the same during a run, where there are none yet.

    Args:
        folder: The run's folder, which :func:`check_folder` has let pass.
        mdp: The world.
        facts: What :func:`run_facts` says of the run.
    """
    if (folder / RUN_FILE).exists():
        return
    save_world(folder, mdp)
    with replacing(folder / RUN_FILE) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n")


def check_folder(folder: Path, facts: dict[str, Any], episodes: int) -> None:
    """Make sure that a folder holds no run, or this one with no more episodes than there are to save.

    Args:
        folder: The folder.
        facts: What :func:`run_facts` says of the run.
        episodes: How many episodes it has.

    Raises:
        ValueError: If it holds another run, one that is further, or one that cannot be read.
    """
    if (folder / RUN_FILE).exists():
        check_run_files(folder, facts)
    if (saved := saved_episodes(folder)) > episodes:
        raise ValueError(
            f"{folder} holds {saved} episodes of this run, and the agent has {episodes}: go on with "
            f"SafeM3UCRL.load({str(folder)!r}), or choose another folder"
        )


def check_run_files(folder: Path, facts: dict[str, Any]) -> None:
    """Make sure that a folder's run is the one that :func:`run_facts` tells of.

    Raises:
        ValueError: If it is another one.
    """
    theirs = _read_json(folder / RUN_FILE)
    theirs.setdefault("first", None)  # a run file older than this fact
    with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError):  # what is no config differs, below
        # Through the dataclasses: a run older than a setting was run with its default.
        theirs["config"] = json.loads(json.dumps(dataclasses.asdict(from_dict(Config, theirs["config"]))))
    if theirs != facts:
        differ = "; ".join(_differences(theirs, facts)) or "it says more than this version knows"
        raise ValueError(f"{folder} holds another run: {differ}, by its {RUN_FILE}; choose an empty folder")


class RunFiles(NamedTuple):
    """What a run is of."""

    mdp: ParticleMDP
    config: Config
    seed: int
    first: str | None  #: fingerprint of the policy that it was handed at the start; None where it began by staying put


def read_run_files(folder: Path, mdp: ParticleMDP | None, device: torch.device | str) -> RunFiles:
    """The world, settings, seed and start of a saved run.

    Args:
        folder: The run's folder.
        mdp: The world, where it cannot be rebuilt from files: one, or with a motion or a constraint, of the user's own.
        device: Device of a rebuilt world.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If the files are not readable, the world has to be handed in, or the one handed in is another.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no run at {folder}: it has no {RUN_FILE}")
    run = _read_json(path)
    try:
        if run["format"] != FORMAT or run["version"] != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format {run['format']!r} version {run['version']!r}; this library reads {FORMAT!r} version "
                f"{FORMAT_VERSION}"
            )
        config, seed, world = from_dict(Config, run["config"]), int(run["seed"]), run["world"]
        if mdp is None:
            mdp = rebuilt_world(folder, world, device)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a readable run file: {error!r}") from error
    facts = world_facts(mdp)
    if differ := _differences(world, facts):
        raise ValueError(f"{folder} was run in another world: {'; '.join(differ)}")
    return RunFiles(mdp, config, seed, run.get("first"))  # a run file older than that fact has none


def _differences(theirs: Any, ours: Any, name: str = "") -> list[str]:
    """Which facts of a file are others now, by their dotted names."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return [line for key in ours for line in _differences(theirs.get(key), ours[key], f"{name}.{key}".lstrip("."))]
    return [] if theirs == ours else [f"{name} is {theirs!r} there and {ours!r} here"]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text())
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"{path} is not a readable run file: {error}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{path} is not a readable run file: it holds no JSON object")
    return facts


def from_dict(kind: type[D], values: dict[str, Any]) -> D:
    """A (nested) dataclass from what ``dataclasses.asdict`` and JSON made of it."""
    hints = typing.get_type_hints(kind)
    built = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = from_dict(hints[name], value)
        built[name] = tuple(value) if isinstance(value, list) else value
    return kind(**built)
