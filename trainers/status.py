"""What a run says of itself while it runs: a line of JSON for each thing that happened, curves for TensorBoard, and W&B if asked."""

import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from scenemill.schemas.experiment import ExperimentConfig


class StatusLog:
    """Appends to ``status.json``: one JSON object per line, flushed as it is written.

    Args:
        folder: of the results; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "status.json"

    def write(self, status: str, message: str = "", *, verbosity: str = "INFO", **more: Any) -> None:
        """Add one line.

        Args:
            status: STARTED, RUNNING, SUCCESS, FAILURE or SKIPPED.
            message: in words; left out where empty.
            verbosity: as a logger's.
            more: kpi, epoch, step and the like.
        """
        now = datetime.now()
        line: dict[str, Any] = {
            "date": f"{now.month}/{now.day}/{now.year}",
            "time": f"{now.hour}:{now.minute}:{now.second}",
            "status": status,
            "verbosity": verbosity,
        }
        if message:
            line["message"] = message
        with self._path.open("a") as file:
            file.write(json.dumps(line | more) + "\n")


class Curves:
    """Numbers over steps: TensorBoard always, Weights & Biases where it is enabled and one is logged in or works offline.

    Args:
        folder: of the results.
        config: of the run; ``wandb`` says whether and where.
    """

    def __init__(self, folder: Path, config: ExperimentConfig) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"))
        self._wandb = _wandb_run(folder, config)

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        for name, number in numbers.items():
            self._board.add_scalar(name, number, step)
        if self._wandb is not None:
            self._wandb.log(dict(numbers), step=step)

    def close(self) -> None:
        """Write what is held back."""
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _wandb_run(folder: Path, config: ExperimentConfig) -> Any:
    """A run of Weights & Biases; None where it is off, not installed, or nobody is logged in: then nothing is sent anywhere."""
    held = config.wandb
    offline = os.environ.get("WANDB_MODE") == "offline"
    if not held.enable or not (offline or os.environ.get("WANDB_API_KEY")):
        return None
    try:
        import wandb  # type: ignore[import-not-found, unused-ignore]
    except ModuleNotFoundError:
        return None
    return wandb.init(
        project=held.project,
        entity=held.entity or None,
        group=held.group or None,
        id=held.run_id or None,
        name=held.name,
        tags=list(held.tags),
        dir=str(folder),
        resume="allow" if held.run_id else None,
        reinit=held.reinit,
        sync_tensorboard=held.sync_tensorboard,
        save_code=held.save_code,
    )
