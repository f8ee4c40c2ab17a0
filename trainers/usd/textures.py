"""Images beside a USD file: maps of a material as 8-bit PNG, and back.

Source: PNG; the forms of images are those of Kaolin's ``io.utils``, Apache 2.0.
"""

import hashlib
import io
import os
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.trainers.usd.arrays import to_host

_EFFORT: Final = 3  # of deflate: a quarter of the time of Pillow's 6, for an eighth more bytes
_CHANNELS: Final = (1, 3, 4)


def to_pixels(what: str, image: Any) -> NDArray[np.uint8]:
    """An image as it is stored.

    Args:
        what: its name, for messages.
        image: (C, H, W) or (H, W, C), C 1, 3 or 4; the former where only the first axis can be C. uint8, or floats from 0 to 1, which
            are cut off at both ends and rounded down.

    Returns:
        (H, W) or (H, W, C) uint8.

    Raises:
        ConfigError: an array of another form.
    """
    array = to_host(image)
    if array.ndim == 3 and array.shape[0] in _CHANNELS and array.shape[2] not in _CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in _CHANNELS or not array.size or array.dtype.kind not in "fu":
        raise ConfigError(f"{what}: {array.shape} {array.dtype}; give (C, H, W) or (H, W, C), C 1, 3 or 4, floats or uint8")
    if array.dtype != np.uint8:
        array = np.nan_to_num(array.astype(np.float32) * 255).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array)


def read_texture(path: str) -> torch.Tensor:
    """The pixels of an image file, (H, W, C) float32 from 0 to 1.

    Args:
        path: of the file, also of one within a ``.usdz`` package as USD writes it.

    Raises:
        SourceError: no image there.
    """
    from PIL import Image
    from pxr import Ar

    asset = Ar.GetResolver().OpenAsset(Ar.ResolvedPath(path))
    try:
        with Image.open(io.BytesIO(asset.GetBuffer() if asset else b"")) as image:
            pixels = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    except (OSError, ValueError) as error:
        raise SourceError("container", f"no readable image at {path} ({error})", "the texture that the file names") from error
    largest = np.float32(65535 if pixels.dtype == np.uint16 else 255)
    return torch.from_numpy((pixels if pixels.ndim == 3 else pixels[..., None]).astype(np.float32) / largest)


class TextureFolder:
    """Keeps images in a folder, each under a name of its own; equal ones that follow each other share their bytes.

    Args:
        folder: where; made with the first image.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._latest: dict[str, tuple[bytes, Path]] = {}

    def save(self, series: str, name: str, pixels: NDArray[np.uint8], overwrite: bool = False) -> str:
        """Keep an image.

        Args:
            series: what the image is one of over time; an image that is the latest of any series is not stored twice.
            name: of its file, without ``.png``; ``_0``, ``_1`` and so on is added where there is such a file.
            pixels: (H, W) or (H, W, C) uint8.
            overwrite: let the image take the place of a file of its name.

        Returns:
            The name of its file.
        """
        digest = hashlib.blake2b(pixels.tobytes() + repr(pixels.shape).encode()).digest()
        equal = next((path for known, path in self._latest.values() if known == digest and path.exists()), None)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{uuid4().hex}"
        if equal is None or not _is_linked(equal, temporary):
            temporary.write_bytes(_png(pixels))
        path = self.folder / f"{name}.png" if overwrite else self._free(name)
        temporary.replace(path)
        temporary.unlink(missing_ok=True)  # replacing a file by itself leaves both names
        self._latest[series] = (digest, path)
        return path.name

    def _free(self, name: str) -> Path:
        path, number = self.folder / f"{name}.png", 0
        while path.exists():
            path, number = self.folder / f"{name}_{number}.png", number + 1
        return path


def _is_linked(path: Path, name: Path) -> bool:
    try:
        os.link(path, name)
    except OSError:  # gone by now, or a file system without links
        return False
    return True


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=_EFFORT)
    return stream.getvalue()
