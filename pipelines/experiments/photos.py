"""Images that come without a store: JPEG and PNG files of any size, from anywhere; nothing in them is trusted."""

import io
import warnings
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from scenemill.schemas.errors import SourceError

_LIMIT_BYTE: Final = 1 << 28


def read_image(path: Path) -> NDArray[np.uint8]:
    """The colours of a JPEG or PNG file, turned upright as its EXIF entry says; what is transparent counts as if it were not.

    Returns:
        (H, W, 3) uint8.

    Raises:
        SourceError: it cannot be read, or has more than 8 bits to a grey value.
    """
    try:
        if not path.is_file():
            raise SourceError("presence", "no file", "an image")
        with path.open("rb") as file:
            data = file.read(_LIMIT_BYTE + 1)
    except SourceError:
        raise
    except OSError as error:
        raise SourceError("presence", f"a file that cannot be opened ({error.strerror})", "an image") from error
    if len(data) > _LIMIT_BYTE:
        raise SourceError("container", f"more than {_LIMIT_BYTE >> 20} MiB", "a smaller image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                if image.mode.startswith(("I", "F")):
                    raise SourceError("dtype", f"image mode {image.mode}", "8 bits to a value")
                upright = ImageOps.exif_transpose(image)
                return np.array(upright.convert("RGB"))
    except SourceError:
        raise
    except UnidentifiedImageError as error:
        raise SourceError("container", f"{len(data)} bytes that are no readable image", "a JPEG or PNG file") from error
    except Exception as error:  # Pillow's decoders raise many classes on hostile bytes
        raise SourceError("container", f"no readable image ({str(error)[:120]})", "a JPEG or PNG file") from error
