"""The checkpoints that an evaluation is about: a file, those of a training's folder, or of a pattern; in the order of training."""

import glob
import hashlib
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from scenemill.schemas.errors import ConfigError

PATTERN: Final = "model_epoch_*.pth"
"""What the checkpoints in a training's folder are called."""

_NAME: Final = re.compile(r"model_epoch_(\d+)(?:_step_(\d+))?\.\w+")
_ZIP: Final = b"PK\x03\x04"
_SIGNS: Final = frozenset("*?[")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, and where in its training it was written.

    Attributes:
        path: of the file.
        epoch, step: epochs and steps of the whole training until then; None where neither the file nor its name says.
    """

    path: Path
    epoch: int | None
    step: int | None

    @property
    def training(self) -> str:
        """The folder of its training, the same for a link elsewhere."""
        return str(self.path.resolve().parent)

    @property
    def place(self) -> str:
        """Where it stands, in words.

        >>> Checkpoint(Path("a.pth"), 3, 1200).place, Checkpoint(Path("a.pth"), None, None).place
        ('epoch 3, step 1200', 'epoch and step not said')
        """
        said = [f"{name} {value}" for name, value in (("epoch", self.epoch), ("step", self.step)) if value is not None]
        return ", ".join(said) or "epoch and step not said"

    def digest(self) -> str:
        """Tells contents apart, whatever the file is called: of the sums that a torch file keeps of its records, else of all bytes.

        The sums stand at the end of the file, so that gigabytes need not be read.
        """
        with self.path.open("rb") as file:
            sums = _sums(file) if file.read(len(_ZIP)) == _ZIP else []
            if sums and all(crc for _, _, crc in sums):
                return hashlib.sha256(str(sums).encode()).hexdigest()
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()


def _sums(file: IO[bytes]) -> list[tuple[str, int, int]]:
    """Name, size and CRC-32 of all records of a torch file that hold something; a writer may leave the CRCs 0."""
    with zipfile.ZipFile(file) as archive:
        return [
            (record.filename.partition("/")[2], record.file_size, record.CRC) for record in archive.infolist() if record.file_size
        ]


def names_several(named: str) -> bool:
    """Whether a setting asks for all checkpoints of a folder or pattern, and not for one file; a file's own name counts first.

    >>> names_several("out/train/*.pth"), names_several("out/train/model_epoch_029.pth")
    (True, False)
    """
    return not Path(named).is_file() and bool(named) and (Path(named).is_dir() or not _SIGNS.isdisjoint(named))


def find_checkpoints(named: str, key: str = "") -> tuple[Checkpoint, ...]:
    """The checkpoints that ``evaluate.checkpoint`` names, by epoch, step and name; a file that several links name comes once.

    Args:
        named: a file; a folder, for every ``PATTERN`` in it; or a pattern of files, in which ``**`` stands for any folders.
        key: passphrase of encrypted files.

    Raises:
        ConfigError: nothing named or found, or a file that is no checkpoint.
        Corrupt: truncated or damaged.
    """
    if not named:
        raise ConfigError("evaluate.checkpoint is empty: name a checkpoint that train wrote, a folder of them, or a pattern")
    if not names_several(named):
        return (read_checkpoint(Path(named), key),)
    paths: dict[Path, Path] = {}
    for path in sorted(_list(named), key=Path.is_symlink):  # a file's own name before those of its links
        paths.setdefault(path.resolve(), path)
    return tuple(sorted((read_checkpoint(path, key) for path in paths.values()), key=_order))


def _list(named: str) -> list[Path]:
    if Path(named).is_dir():
        found = list(Path(named).glob(PATTERN))
    else:
        names = glob.glob(named, recursive=True)  # noqa: PTH207 - patterns of paths may be absolute ones
        found = [path for path in map(Path, names) if not path.is_dir()]
    if not found:
        wanted = f"{PATTERN} in it; a training leaves them in its folder train" if Path(named).is_dir() else "files of such names"
        raise ConfigError(f"evaluate.checkpoint={named!r}: no checkpoints; expected {wanted}")
    return found


def _order(checkpoint: Checkpoint) -> tuple[int, int, Path]:
    """By training; what does not say where it stands comes first."""
    numbers = [-1 if value is None else value for value in (checkpoint.epoch, checkpoint.step)]
    return numbers[0], numbers[1], checkpoint.path


def read_checkpoint(path: Path, key: str = "") -> Checkpoint:
    """A checkpoint's place in its training: what the file holds, else what its name says.

    Raises:
        ConfigError: missing, no checkpoint, no key or the wrong one.
        Corrupt: truncated, damaged or altered.
    """
    from scenemill.trainers.checkpoint import load_checkpoint  # torch, which scoring alone does not need

    held = load_checkpoint(path, key, mapped=True)
    named = _NAME.fullmatch(path.name)
    said = named.groups() if named else (None, None)
    epoch, step = (_number(held.get(name), text) for name, text in zip(("epoch", "global_step"), said, strict=True))
    return Checkpoint(path, epoch, step)


def _number(value: Any, said: str | None) -> int | None:
    if isinstance(value, int):
        return value
    return None if said is None else int(said)
