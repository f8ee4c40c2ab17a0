"""Checkpoints in object stores: fetched once to a disk, and again where they have changed."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from scenemill.pipelines.experiments.checkpoints import PATTERN
from scenemill.pipelines.experiments.training import cache_folder
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.places import Remote
from scenemill.transforms.objects import place_of

_SETTINGS: Final = {
    "train": ("checkpoint_2d", "checkpoint_3d", "resume_training_checkpoint_path"),
    "evaluate": ("checkpoint",),
    "inference": ("checkpoint",),
    "export": ("checkpoint",),
}
"""What names checkpoints, by action."""


def with_fetched(config: ExperimentConfig, action: str) -> ExperimentConfig:
    """An experiment whose action finds its checkpoints on a disk: those that a URI names are fetched into the cache.

    Args:
        config: the experiment.
        action: train, evaluate, inference or export.

    Raises:
        ConfigError: nothing there, or no right.
        TransientError: the service does not answer.
    """
    held: Any = getattr(config, action)
    named = {name: str(getattr(held, name) or "") for name in _SETTINGS[action]}
    local = {name: str(_fetch(f"{action}.{name}", text)) for name, text in named.items() if "://" in text}
    return replace(config, **{action: replace(held, **local)}) if local else config


def _fetch(setting: str, uri: str) -> Path:
    """A checkpoint, or a folder with those of a training, as it now is."""
    place = place_of(uri)
    assert isinstance(place, Remote)
    if place.is_file():
        return _fetch_one(place, _folder_of(place.parent))
    found = sorted(place.glob(PATTERN))
    if not found:
        raise ConfigError(f"{setting}={uri!r}: no checkpoint there, nor a folder that holds {PATTERN}")
    folder = _folder_of(place)
    for path in set(folder.glob(PATTERN)) - {_fetch_one(checkpoint, folder) for checkpoint in found}:
        path.unlink()  # it is no more where it came from
    return folder


def _folder_of(place: Remote) -> Path:
    folder = cache_folder() / "checkpoints" / hashlib.sha256(str(place).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _fetch_one(place: Remote, folder: Path) -> Path:
    """A checkpoint in the cache; a note beside it says which bytes it holds."""
    status, path = place.stat(), folder / place.name
    note, told = path.with_name(f".{path.name}.json"), {"tag": status.tag, "size_byte": status.st_size}
    if path.is_file() and path.stat().st_size == status.st_size and note.is_file() and json.loads(note.read_bytes()) == told:
        return path
    note.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        place.fetch(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    note.write_text(json.dumps(told))
    return path
