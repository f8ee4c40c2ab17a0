"""What a run says of itself while it runs: a line of JSON for each thing that happened, curves for TensorBoard, and W&B if asked."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.steps import reached
from scenemill.transforms.publish import write_whole

_LOGINS: Final = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


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
        reached("status told")


class Curves:
    """Numbers over steps: TensorBoard always, Weights & Biases where it is enabled and one is logged in or works offline.

    Args:
        folder: of the results.
        config: of the run; ``wandb`` says whether and where. All of it but secrets is told to Weights & Biases.

    Raises:
        ConfigError: Weights & Biases is asked for, and is not installed or refuses.
    """

    def __init__(self, folder: Path, config: ExperimentConfig) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._wandb = _wandb_run(folder, config)  # first, for what it copies is what writers made later write
        self._copied = config.wandb.sync_tensorboard
        self._board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        for name, number in numbers.items():
            self._board.add_scalar(name, number, step)
        if self._wandb is not None and not self._copied:
            self._wandb.log(dict(numbers), step=step)
        reached("point drawn")

    def flush(self) -> None:
        """Write what is held back of TensorBoard's curves."""
        self._board.flush()

    def close(self) -> None:
        """Write what is held back. While an exception is on its way, Weights & Biases is told that the run failed."""
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if sys.exc_info()[0] is None else 1)
            if self._copied:
                from wandb.integration import tensorboard

                tensorboard.unpatch()  # else the next run of this process would be given a copy too


def _wandb_run(folder: Path, config: ExperimentConfig) -> Any:
    """A run of Weights & Biases; None where it is off or nobody is logged in: then nothing is sent anywhere."""
    mode = os.environ.get("WANDB_MODE", "online")
    if not config.wandb.enable or mode == "disabled":
        return None
    wandb = _library("WANDB_MODE" if mode == "offline" else next((name for name in _LOGINS if os.environ.get(name)), ""))
    if wandb is None:
        return None
    try:
        if mode != "offline" and not wandb.login(prompt=False, verify=False):
            return None
        return _begin(wandb, mode, folder, config)
    except wandb.Error as error:
        raise ConfigError(
            f"Weights & Biases refuses ({error}); set WANDB_MODE=offline or wandb.enable=false to do without"
        ) from error


def _library(asked_by: str) -> Any:
    """The library of Weights & Biases; None where it is not installed and no variable of the environment asks for it."""
    try:
        import wandb
    except ModuleNotFoundError as error:
        if not asked_by:
            return None
        raise ConfigError(
            f"wandb.enable=true and {asked_by} is set, but Weights & Biases is not installed: "
            "run \"pip install 'scenemill[wandb]'\", or set wandb.enable=false"
        ) from error
    return wandb


def _begin(wandb: Any, mode: str, folder: Path, config: ExperimentConfig) -> Any:
    held = config.wandb
    return wandb.init(
        mode=mode,
        project=held.project,
        entity=held.entity or None,
        group=held.group or None,
        id=held.run_id or _remembered_id(folder),
        resume="allow",
        name=held.name,
        tags=list(held.tags),
        dir=str(folder),
        reinit="finish_previous" if held.reinit else "return_previous",
        sync_tensorboard=held.sync_tensorboard,
        save_code=held.save_code,
        config={name: value for name, value in asdict(config).items() if name != "encryption_key"},
        settings={"console": "off"},  # the terminal's progress line is nothing to keep
    )


def _remembered_id(folder: Path) -> str:
    """The id of the folder's run, made at first, so that a training that goes on is one run."""
    path = folder / "wandb_run_id"
    if not path.is_file():
        write_whole(path, uuid4().hex[:12].encode())
    return path.read_text()
