"""What a run of Stable-Baselines3 leaves in its folder, to go on from when it was killed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from mf_taxi_env.atomic import replacing

#: Names the files that belong together; written last, so that a kill leaves the previous set.
INDEX = "progress.json"


@dataclass(frozen=True)
class Progress:
    """What the model does not know of its run.

    Attributes:
        env_steps: Steps of the true world so far.
        episodes: Episodes that ended.
        violated: Those of them with a violation.
        multiplier: Price of a nat of cost.
        integral: The controller's, see :class:`~baselines.sb3.lagrangian.PIDController`; 0 without one.
        previous: As there.
    """

    env_steps: int
    episodes: int
    violated: int
    multiplier: float
    integral: float = 0.0
    previous: float | None = None


def save(folder: Path, model: BaseAlgorithm, progress: Progress, *, replay: bool) -> None:
    """Write model, replay and progress, whole or not at all, and remove what was there before.

    Args:
        folder: Where to.
        model: As SB3 saves it, a ``.zip`` that ``PPO.load`` and its like read.
        progress: What is to be known beside it.
        replay: Whether a replay buffer, if there is one, is written too; a run that is over needs none.

    Raises:
        OSError: If a file cannot be written; what was there before still is.
    """
    files = {"model": f"model-{progress.env_steps}.zip", "replay": ""}
    with replacing(folder / files["model"]) as path, path.open("wb") as file:
        model.save(file)
    if replay and isinstance(model, OffPolicyAlgorithm):
        files["replay"] = f"replay-{progress.env_steps}.pkl"
        with replacing(folder / files["replay"]) as path, path.open("wb") as file:
            model.save_replay_buffer(file)
    with replacing(folder / INDEX) as path:
        path.write_text(json.dumps({"files": files, **asdict(progress)}, indent=1))
    for old in (*folder.glob("model-*.zip"), *folder.glob("replay-*.pkl")):
        if old.name not in files.values():
            old.unlink()


def load(folder: Path) -> tuple[Path, Path | None, Progress] | None:
    """Files of model and replay, and the progress, of the last :func:`save`; ``None`` where there was none.

    SB3 unpickles them: they are for the run that wrote them, not to be taken from others.
    """
    index = folder / INDEX
    if not index.is_file():
        return None
    known = json.loads(index.read_text())
    files = known.pop("files")
    return folder / files["model"], folder / files["replay"] if files["replay"] else None, Progress(**known)
