"""Weights from files into the network: VGGT's, those of one stage, or all. Every name and shape is checked before any is copied.

Names are matched by their leading component. NvPanoptix3D matches substrings, and so loses ``sem_seg_head.depth_projector``, a
"projector", between its stages.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.checkpoint import load_checkpoint, read_torch_file, strip_prefix

STAGE_1: Final = ("backbone", "sem_seg_head")
PROJECTOR: Final = "projector"
STAGE_2: Final = ("completion", PROJECTOR)
VGGT: Final = ("aggregator", "camera_head", "depth_head")
"""Parts of the backbone that VGGT's file has weights for."""

_VGGT_OTHERS: Final = ("point_head", "track_head")
_SHOWN: Final = 3


def load_vggt(backbone: nn.Module, path: Path) -> None:
    """Copy the weights of VGGT-1B into the backbone; ``dpt2pixeldecoder``, which VGGT lacks, stays as it is.

    Args:
        backbone: ``Stage1.backbone``.
        path: the public file, of any suffix: a flat dict with our names, without ``backbone.``.

    Raises:
        ConfigError: missing, no torch file; a name too few or too many, another shape. Then nothing was copied.
        Corrupt: truncated or damaged.
    """
    found = {name: tensor for name, tensor in read_torch_file(path, mapped=True).items() if _lead(name) not in _VGGT_OTHERS}
    _copy(backbone, found, VGGT, f"VGGT weights {path}")


def load_stage1(model: nn.Module, path: Path, key: str = "") -> None:
    """Copy every weight of stage 1 into a model, from a checkpoint of stage 1 or 2 (``train.checkpoint_2d``).

    Args:
        model: has ``backbone`` and ``sem_seg_head``; whatever else it has stays as it is.
        path: the checkpoint.
        key: passphrase of an encrypted one.

    Raises:
        ConfigError: as ``load_checkpoint``; a name too few or too many, another shape. Then nothing was copied.
        Corrupt: truncated, damaged or altered.
    """
    _load_parts(model, path, key, STAGE_1, STAGE_2)


def load_stage2(model: nn.Module, path: Path, key: str = "") -> None:
    """As ``load_stage1``, for ``completion`` and ``projector`` (``train.checkpoint_3d``)."""
    _load_parts(model, path, key, STAGE_2, STAGE_1)


def load_projector(projector: nn.Module, path: Path, key: str = "") -> bool:
    """Copy the projector's weights from a checkpoint of stage 2; False, and nothing is copied, where it is one of stage 1.

    Raises:
        ConfigError: as ``load_checkpoint``; a name too few or too many, another shape.
        Corrupt: truncated, damaged or altered.
    """
    weights = _weights(load_checkpoint(path, key, mapped=True), path)
    lead = f"{PROJECTOR}."
    found = {name.removeprefix(lead): tensor for name, tensor in weights.items() if name.startswith(lead)}
    if found:
        _copy(projector, found, None, f"checkpoint {path}, {PROJECTOR}")
    return bool(found)


def load_all(model: nn.Module, path: Path, key: str = "") -> None:
    """Copy every weight of a checkpoint into a model that has the same: for evaluation and inference.

    Args:
        model: the network of the checkpoint's stage.
        path: the checkpoint.
        key: passphrase of an encrypted one.

    Raises:
        ConfigError: as ``load_checkpoint``; a name too few or too many, another shape. Then nothing was copied.
        Corrupt: truncated, damaged or altered.
    """
    restore(model, load_checkpoint(path, key, mapped=True), path)


def restore(model: nn.Module, document: Mapping[str, Any], path: Path) -> None:
    """As ``load_all``, of a checkpoint that was read already: to resume.

    Args:
        model: the network of the checkpoint's stage.
        document: what ``load_checkpoint`` gave.
        path: where that came from, for messages.
    """
    _copy(model, _weights(document, path), None, f"checkpoint {path}")


def _load_parts(model: nn.Module, path: Path, key: str, parts: Sequence[str], ignored: Sequence[str]) -> None:
    weights = _weights(load_checkpoint(path, key, mapped=True), path)
    found = {name: tensor for name, tensor in weights.items() if _lead(name) not in ignored}
    _copy(model, found, parts, f"checkpoint {path}")


def _weights(document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    held = document.get("state_dict", document)
    if not isinstance(held, Mapping):
        raise ConfigError(f"checkpoint {path}: state_dict is a {type(held).__name__}; a file that another tool encrypted?")
    try:
        return strip_prefix(held)
    except ConfigError as error:
        raise ConfigError(f"checkpoint {path}: {error}") from error


def _lead(name: str) -> str:
    return name.partition(".")[0]


def _copy(module: nn.Module, found: Mapping[str, Any], parts: Sequence[str] | None, where: str) -> None:
    """Copy tensors into the parts of a module, all of them or none; None for all parts."""
    own = {name: tensor for name, tensor in module.state_dict().items() if parts is None or _lead(name) in parts}
    wrong = [
        f"{name} {_shape(found[name])} for {_shape(tensor)}"
        for name, tensor in own.items()
        if name in found and _shape(found[name]) != _shape(tensor)
    ]
    missing = [name for name in own if name not in found]
    unexpected = [name for name in found if name not in own]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
    if any(kinds.values()):
        said = "; ".join(f"{len(names)} {kind}: {_first(names)}" for kind, names in kinds.items() if names)
        raise ConfigError(f"{where}: not the weights of this network, nothing was loaded. {said}. Check the file and the settings")
    module.load_state_dict(dict(found), strict=False)


def _shape(value: object) -> str:
    return "x".join(map(str, value.shape)) or "scalar" if isinstance(value, Tensor) else type(value).__name__


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
