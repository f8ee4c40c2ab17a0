"""Materials of an MTL file: values and images as they are named there, and as physically based materials.

Source: Wavefront's MTL material format, 1995, with the physically based values of its later extension (Pr, Pm); the keys, the forms and the
errors are those of Kaolin's ``io.obj``, Apache 2.0.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from scenemill.trainers.obj.errors import Handler, MaterialFileError, MaterialLoadError, default_error_handler
from scenemill.trainers.obj.parsing import joined_lines, read_text
from scenemill.trainers.usd.materials import PBRMaterial

COLORS: Final = {"kd": "diffuse_color", "ks": "specular_color", "ka": ""}
VALUES: Final = {"pr": "roughness_value", "pm": "metallic_value", "d": "opacity_value"}
MAPS: Final = {
    "map_kd": "diffuse",
    "map_ks": "specular",
    "map_ka": "",
    "map_d": "opacity",
    "map_ns": "roughness",
    "map_refl": "metallic",
    "bump": "normals",
    "map_bump": "normals",
    "disp": "displacement",
}
"""Keys of a file in small letters -> what they are of a ``PBRMaterial``, "" for nothing."""

_CHANNELS: Final = {"r": 0, "g": 1, "b": 2}
_OPTIONS: Final = {  # of images -> how many words follow
    **dict.fromkeys(("-blendu", "-blendv", "-bm", "-boost", "-cc", "-clamp", "-imfchan", "-texres", "-type"), 1),
    "-mm": 2,
    **dict.fromkeys(("-o", "-s", "-t"), 3),
}


def load_mtl(
    mtl_path: str | PathLike[str],
    error_handler: Handler = default_error_handler,
    texture_root: str | PathLike[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """The materials of a file.

    Args:
        mtl_path: of the file.
        error_handler: is told what is wrong, with what is known of it: ``mtl_path``, ``mtl_data`` (the materials so far) and ``data``
            (the words of the line).
        texture_root: the folder that images must be in; None for that of the file.

    Returns:
        Name -> its "material_name"; "Kd", "Ka", "Ks", (3,) float32; "Pr", "Pm", "d", (1,) float32; images, (H, W, 3) uint8, or (H, W, 1)
        for one of their channels, under the keys that they have in the file.

    Raises:
        MaterialFileError: by the default handler, the file is missing or unreadable.
        MaterialLoadError: by the default handler, a line that cannot be understood, or an image that is missing, unreadable or outside of
            its folder.
    """
    path, materials = Path(mtl_path), dict[str, dict[str, Any]]()
    root = path.parent if texture_root is None else Path(texture_root)
    try:
        lines = joined_lines(read_text(path))
    except OSError as error:
        error_handler(MaterialFileError(str(error), "the file of materials"), mtl_path=str(path), mtl_data=materials)
        return materials
    current: dict[str, Any] = {}  # values before the first name belong to no material
    for line in filter(None, lines):
        key, _, rest = line.partition(" ")
        try:
            if key == "newmtl":
                current = materials[rest.strip()] = {"material_name": rest.strip()}
            else:
                current.update(_entry(key, rest.strip(), path, root))
        except (OSError, ValueError) as error:
            wrong = MaterialLoadError(f"{line[:200]!r} of {path} ({error})", "a value or an image that can be read")
            error_handler(wrong, data=line.split(), mtl_data=materials, mtl_path=str(path))
    return materials


def _entry(key: str, rest: str, path: Path, root: Path) -> dict[str, Any]:
    """What a line says of its material."""
    name = key.lower()
    if name in COLORS:
        return {key: _numbers(rest, 3)}
    if name in VALUES:
        return {key: _numbers(rest, 1)}
    return {key: _read_map(rest, path.parent, root)} if name in MAPS else {}


def _numbers(text: str, count: int) -> torch.Tensor:
    numbers = [float(word) for word in text.split()]
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(f"{text!r}; give {count} finite numbers")
    return torch.tensor(numbers)


def _read_map(text: str, folder: Path, root: Path) -> torch.Tensor:
    """(H, W, 3) uint8, or (H, W, 1) for a channel."""
    from PIL import Image

    options, name = _split_options(text)
    path = inside(folder / name.replace("\\", "/"), root)
    try:
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB")))
    except (SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises beside OSError and ValueError
        raise ValueError(str(error)) from error
    channel = _CHANNELS.get(options.get("-imfchan", [""])[0])
    return pixels if channel is None else pixels[..., channel : channel + 1]


def _split_options(text: str) -> tuple[dict[str, Sequence[str]], str]:
    """The options before the name of an image, and the name, which may have spaces."""
    words, options = text.split(" "), dict[str, Sequence[str]]()
    while words and words[0] in _OPTIONS:
        count = _OPTIONS[words[0]]
        options[words[0]] = words[1 : 1 + count]
        del words[: 1 + count]
    return options, " ".join(words).strip()


def inside(path: Path, root: Path) -> Path:
    """A path, if it is within a folder once all links are followed.

    Raises:
        ValueError: it is not, or no file has such a name.
    """
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{path} is outside of {root}; give texture_root to allow more")
    return path


def to_pbr(material: Mapping[str, Any]) -> PBRMaterial:
    """A material of ``load_mtl`` as a physically based one.

    Args:
        material: by the keys of the file; uint8 images become floats from 0 to 1, those of normals from -1 to 1.

    Returns:
        With textures (H, W, C) float32. What has no place in it is left out, as is Ka.
    """
    found: dict[str, Any] = {"material_name": material.get("material_name", "")}
    for key, value in material.items():
        name = key.lower()
        kind = MAPS.get(name, "")
        if kind:
            image = value.float() / 255
            found[f"{kind}_texture"] = image * 2 - 1 if kind == "normals" else image
        elif COLORS.get(name) or name in VALUES:
            found[COLORS.get(name) or VALUES[name]] = value
    return PBRMaterial(**found)
