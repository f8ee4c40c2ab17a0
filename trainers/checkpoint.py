"""Checkpoints: written whole or not at all, read without running anything that they hold, encrypted where a key is given.

A checkpoint is a torch file: a dict with ``state_dict``, and whatever resuming needs beside it. Tensors and plain values only.

An encrypted one is one line of ours and then two age files (age-encryption.org/v1), of the library pyrage: a new identity for this
file, encrypted with the passphrase, and the torch file, encrypted for that identity. age with a passphrase alone, and Fernet as well,
hold the whole plaintext and the whole ciphertext in memory; age for an identity reads and writes 64 kB at a time, and each piece, its
place and the end are authenticated. So gigabytes stream to the file, and nothing in it is cryptography of ours.
"""

import errno
import glob
import hashlib
import io
import os
import pickle
import re
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final
from uuid import uuid4

import torch
from torch import Tensor, nn

from scenemill.schemas.errors import ConfigError, Corrupt
from scenemill.schemas.steps import reached

SUFFIXES: Final = (".pth", ".tlt")
PREFIXES: Final = ("model.", "module.", "model.module.", "module.model.", "")
"""What may stand before the names of weights: the trainer's, that of training on several GPUs, both, none."""

PARTS: Final = ("backbone", "sem_seg_head", "completion", "projector")
"""The parts of the network: the leading component of every name."""

_CRITERION: Final = "criterion."
_LATEST: Final = "_latest.pth"
_HEADER: Final = b"scenemill checkpoint, age, version 1: "
_ZIP: Final = b"PK\x03\x04"
_PIECE_BYTE: Final = 1 << 22
_PLAIN: Final = (Tensor, nn.Parameter, torch.Size, torch.dtype, int, float, bool, str, bytes, type(None))
_TABLES: Final = (dict, OrderedDict, Counter)


def checkpoint_name(epoch: int, step: int, unit: str) -> str:
    """The name of a checkpoint's file.

    Args:
        epoch: finished or begun, from 0.
        step: of the whole training.
        unit: ``epoch`` or ``step``: what checkpoints are counted in; ``step`` as well where training stops on an exception.

    Raises:
        ConfigError: no such unit.

    >>> checkpoint_name(7, 1200, "epoch"), checkpoint_name(7, 1200, "step")
    ('model_epoch_007.pth', 'model_epoch_007_step_01200.pth')
    """
    if unit not in ("epoch", "step"):
        raise ConfigError(f"checkpoints are counted in epoch or step, not in {unit!r}")
    return f"model_epoch_{epoch:03d}.pth" if unit == "epoch" else f"model_epoch_{epoch:03d}_step_{step:05d}.pth"


def save_checkpoint(path: Path, document: Mapping[str, Any], key: str = "") -> None:
    """Write a checkpoint so that any reader sees the file of before or this one, also after a loss of power.

    Tensors are written one after the other; no copy of them all is made, encrypted or not. One process writes to one path.

    Args:
        path: ends in .pth or .tlt; its folder is made.
        document: tensors and plain values, in dicts, lists and tuples.
        key: passphrase to encrypt with; "" for a plain file. It costs about two seconds and 1 GB of memory: age makes guesses dear.

    Raises:
        ConfigError: another suffix; a value that ``load_checkpoint`` would refuse to read; no pyrage to encrypt with.
        OSError: the disk is full, or the folder cannot be written to; what stood there stays.
    """
    _refuse_suffix(path)
    _refuse_values(document, "")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _written_whole(path) as file:
        if key:
            _save_encrypted(document, file, key)
        else:
            torch.save(dict(document), file)


def load_checkpoint(path: Path, key: str = "", map_location: str | torch.device = "cpu", *, mapped: bool = False) -> dict[str, Any]:
    """What a checkpoint holds. Nothing in the file is ever run: a file with more than tensors and plain values is refused.

    Args:
        path: ends in .pth or .tlt.
        key: passphrase of an encrypted file; a plain one needs none and ignores it.
        map_location: where tensors go.
        mapped: True to read a tensor from the file when it is used, for a caller that copies some and drops the rest. Encrypted
            files are decrypted in memory, whole: their plaintext never touches a disk.

    Raises:
        ConfigError: missing, another suffix, no checkpoint, other contents, no key or the wrong one.
        Corrupt: truncated, damaged or altered.
    """
    _refuse_suffix(path)
    return read_torch_file(path, key, map_location, mapped=mapped)


def read_torch_file(path: Path, key: str = "", map_location: str | torch.device = "cpu", *, mapped: bool = False) -> dict[str, Any]:
    """As ``load_checkpoint``, for a file of any suffix.

    Raises:
        ConfigError, Corrupt: as ``load_checkpoint``.
    """
    if not path.is_file():
        raise ConfigError(f"checkpoint {path}: no such file; check the path")
    with path.open("rb") as file:
        begin = file.read(len(_HEADER))
        if not begin:
            raise Corrupt(f"checkpoint {path}: an empty file; take another checkpoint")
        if begin == _HEADER:
            return _load(_decrypted(file, path, key), path, map_location, zipped=True, mapped=False)
    if zipped := begin.startswith(_ZIP):
        _check_sums(path)
    return _load(path, path, map_location, zipped=zipped, mapped=mapped and zipped)


def point_latest(folder: Path, path: Path, name: str) -> Path:
    """Let ``<name>_latest.pth`` in a folder point to a checkpoint, from one moment to the next; the link.

    Args:
        folder: of results.
        path: the checkpoint; the link to it is relative, so that the folder may move.
        name: of the network.
    """
    link = folder / f"{name}{_LATEST}"
    temporary = link.with_name(f".{link.name}.{uuid4().hex}")
    temporary.symlink_to(os.path.relpath(path.absolute(), folder.resolve()))
    temporary.replace(link)
    _sync_folder(folder)
    reached("latest pointed")
    return link


def find_resume(chosen: str | Path | None, results_dir: Path, name: str = "") -> Path | None:
    """The checkpoint to go on from; None to begin afresh.

    Args:
        chosen: ``train.resume_training_checkpoint_path``; where set, it counts.
        results_dir: folder with a ``<name>_latest.pth``.
        name: of the network; "" for any.

    Raises:
        ConfigError: the chosen file is missing; a link points nowhere; links of several networks and no name.
    """
    if chosen:
        path = Path(chosen)
        _refuse_suffix(path)
        if not path.is_file():
            raise ConfigError(f"checkpoint {path}: no such file; correct train.resume_training_checkpoint_path or leave it out")
        return path
    found = sorted(results_dir.glob(f"{glob.escape(name) or '*'}{_LATEST}"))
    if len(found) > 1:
        names = ", ".join(link.name for link in found)
        raise ConfigError(f"{results_dir}: several to go on from ({names}); set train.resume_training_checkpoint_path")
    if not found:
        return None
    link = found[0]
    if not link.is_file():
        target = f"points to {link.readlink()}, which is missing" if link.is_symlink() else "is no file"
        raise ConfigError(f"{link}: {target}; remove it to begin afresh, or set train.resume_training_checkpoint_path")
    return link.resolve()


def strip_prefix(state_dict: Mapping[str, Any], parts: Collection[str] = PARTS) -> dict[str, Any]:
    """The weights under the network's own names, without what the trainer put before them; those of the loss are dropped.

    The first of ``PREFIXES`` after which the name of a part follows is taken. A name without it stays as it is.

    Args:
        state_dict: as stored.
        parts: leading components of the network's names.

    Raises:
        ConfigError: no prefix fits, or two names become one.

    >>> strip_prefix({"model.backbone.a": 1, "model.projector.b": 2, "criterion.empty_weight": 3})
    {'backbone.a': 1, 'projector.b': 2}
    """
    starts = {prefix: tuple(f"{prefix}{part}." for part in parts) for prefix in PREFIXES}
    prefix = next((prefix for prefix in PREFIXES if any(name.startswith(starts[prefix]) for name in state_dict)), None)
    if prefix is None:
        first = ", ".join(sorted(state_dict)[:3]) or "nothing"
        raise ConfigError(f"no weights of this network: names begin with none of {', '.join(parts)} (found {first})")
    kept = [name for name in state_dict if not name.startswith((_CRITERION, prefix + _CRITERION))]
    stripped = {name.removeprefix(prefix): state_dict[name] for name in kept}
    if len(stripped) < len(kept):
        raise ConfigError(f"the same weights with and without {prefix!r} before their names; take another checkpoint")
    return stripped


def _refuse_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"checkpoint {path}: not a name of a checkpoint; it ends in {' or '.join(SUFFIXES)}")


def _refuse_values(value: object, where: str) -> None:
    """Refuse what reading would refuse, before a run of days relies on the file."""
    if isinstance(value, Mapping) and (not where or type(value) in _TABLES):
        for name, held in value.items():
            _refuse_values(name, f"{where} key")
            _refuse_values(held, f"{where}.{name}" if where else str(name))
    elif type(value) in (list, tuple):
        for place, held in enumerate(value):  # type: ignore[arg-type]
            _refuse_values(held, f"{where}[{place}]")
    elif type(value) not in _PLAIN:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise ConfigError(f"checkpoint: {where} is a {kind}, which could not be read again; store tensors and plain values")


@contextmanager
def _written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name once all of it is on the disk; what a killed run left of the same file is removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with temporary.open("xb") as file:
            reached("checkpoint begun")
            yield file
            file.flush()
            os.fsync(file.fileno())
        reached("checkpoint written")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    reached("checkpoint placed")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _pyrage() -> Any:
    try:
        import pyrage
    except ImportError as error:
        raise ConfigError('encrypted checkpoints need pyrage: run "pip install pyrage", or set no encryption_key') from error
    return pyrage


def _save_encrypted(document: Mapping[str, Any], file: IO[bytes], key: str) -> None:
    age = _pyrage()
    identity = age.x25519.Identity.generate()
    sealed = age.passphrase.encrypt(str(identity).encode(), key)
    file.write(_HEADER + f"{len(sealed)} {hashlib.sha256(sealed).hexdigest()}\n".encode() + sealed)
    reading, writing = os.pipe()

    def encrypt() -> None:
        with os.fdopen(reading, "rb") as source:
            age.encrypt_io(source, file, [identity.to_public()])

    with ThreadPoolExecutor(1) as pool:
        encrypted = pool.submit(encrypt)
        try:
            with os.fdopen(writing, "wb") as sink:
                torch.save(dict(document), sink)
        except OSError:
            encrypted.result()  # the pipe broke because of this
            raise
        encrypted.result()


def _decrypted(file: IO[bytes], path: Path, key: str) -> io.BytesIO:
    """The torch file in an encrypted one, of which the header was read."""
    if not key:
        raise ConfigError(f"checkpoint {path}: encrypted; set encryption_key to the passphrase that it was written with")
    age = _pyrage()
    altered = f"checkpoint {path}: truncated or altered since it was written; take another checkpoint"
    said = re.fullmatch(rb"(\d{1,6}) ([0-9a-f]{64})\n", file.readline(128))
    sealed = file.read(int(said[1])) if said else b""
    if said is None or hashlib.sha256(sealed).hexdigest().encode() != said[2]:
        raise Corrupt(altered)
    try:
        identity = age.x25519.Identity.from_str(age.passphrase.decrypt(sealed, key).decode())
    except age.DecryptError as error:
        raise ConfigError(f"checkpoint {path}: encryption_key is not its passphrase ({error}); give the right one") from error
    plain = io.BytesIO()
    try:
        age.decrypt_io(file, plain, [identity])
    except (OSError, age.DecryptError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of age
        raise Corrupt(altered) from error
    plain.seek(0)
    return plain


def _check_sums(path: Path) -> None:
    """Hold the records of a torch file against their sums, which torch writes and does not look at."""
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if not record.CRC:  # of nothing, or written without
                    continue
                with archive.open(record) as held:
                    while held.read(_PIECE_BYTE):
                        pass
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise  # of the disk; EINVAL is a place before the file's begin, which a cut file asks for
        raise Corrupt(f"checkpoint {path}: truncated or damaged ({error}); take another checkpoint") from error


def _load(source: Path | io.BytesIO, path: Path, map_location: str | torch.device, *, zipped: bool, mapped: bool) -> dict[str, Any]:
    try:
        document = torch.load(source, map_location=map_location, weights_only=True, mmap=mapped)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if zipped or refused:
            what = f"asks for {refused[1]}" if refused else "holds something else"
            raise ConfigError(
                f"checkpoint {path}: refused and not run: beside tensors and plain values it {what}; take a file of weights alone"
            ) from error
        raise ConfigError(f"checkpoint {path}: not a torch file; check the path") from error
    except Exception as error:  # whatever the bytes of a broken file make of the reader
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise  # of the disk; EINVAL is a place before the file's begin, which a cut file asks for
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if zipped:
            raise Corrupt(f"checkpoint {path}: truncated or damaged ({reason}); take another checkpoint") from error
        raise ConfigError(f"checkpoint {path}: not a torch file ({reason}); check the path") from error
    if not isinstance(document, dict):
        raise ConfigError(f"checkpoint {path}: holds a {type(document).__name__}, not a dict; check the path")
    return document
