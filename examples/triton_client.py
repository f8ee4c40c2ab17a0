"""Ask a Triton server that serves a repository of ``scenemill export-triton`` for the scene behind an image.

    python triton_client.py image.jpg --output found

writes a file for each array that the server answers, such as ``found/panoptic_seg_3d.npy``. Needs numpy, pillow and tritonclient[http];
scenemill is not needed.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tritonclient.utils import InferenceServerException

MODEL = "nvpanoptix3d"
CAMERA = (277.1281435, 277.1281435, 159.5, 119.5)  # fx, fy, cx, cy of 3D-Front, pixels of an image of 320 x 240
NEAR_M, FAR_M = 0.4, 6.0
SPACE_M = 7.68  # edge of the cube that is completed


def main() -> None:
    """Send one image, save what comes back."""
    parser = argparse.ArgumentParser(description="Ask a Triton server for the scene behind an image.")
    parser.add_argument("image", type=Path, help="a JPEG or PNG file")
    parser.add_argument("--url", default="127.0.0.1:8000", help="host and HTTP port of the server")
    parser.add_argument("--output", type=Path, default=Path("found"), help="folder to write")
    parser.add_argument("--timeout", type=float, default=300, help="seconds to wait for an answer")
    parser.add_argument(
        "--camera", type=float, nargs=4, default=CAMERA, metavar=("FX", "FY", "CX", "CY"), help="pixels of the image as it is sent"
    )
    asked = parser.parse_args()
    client = triton.InferenceServerClient(asked.url, connection_timeout=asked.timeout, network_timeout=asked.timeout)
    fx, fy, cx, cy = asked.camera
    try:
        arrays = ask(client, asked.image, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]))
    except (InferenceServerException, OSError) as error:
        raise SystemExit(f"{asked.url}, {asked.image}: {error}") from error
    asked.output.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(asked.output / f"{name}.npy", array)
        print(f"{name}  {array.dtype} {array.shape}, {array.min():.3g} to {array.max():.3g}")


def ask(client: Any, image: Path, camera: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    """The server's answer about an image file: every output by name.

    Args:
        client: of the server.
        image: a JPEG or PNG file of any size; it is sent in the size that the server takes.
        camera: (3, 3), pixels of the image as it is sent.
    """
    about = client.get_model_metadata(MODEL)
    shapes = {each["name"]: [int(length) for length in each["shape"]] for each in about["inputs"]}
    _, height, width, _ = shapes["image"]
    intrinsic = np.eye(4, dtype=np.float32)
    intrinsic[:3, :3] = camera
    arrays = {
        "image": read_image(image, (width, height))[None],
        "frustum_mask": frustum_mask(camera, (width, height), shapes["frustum_mask"][-1])[None],
        "intrinsic": intrinsic[None],
    }
    inputs = []
    for name, array in arrays.items():
        inputs.append(triton.InferInput(name, list(array.shape), triton_type(array)))
        inputs[-1].set_data_from_numpy(array)
    answer = client.infer(MODEL, inputs)
    return {each["name"]: answer.as_numpy(each["name"]) for each in about["outputs"]}


def triton_type(array: NDArray[Any]) -> str:
    """The server's name for the type of an array."""
    return {"uint8": "UINT8", "bool": "BOOL", "float32": "FP32"}[array.dtype.name]


def read_image(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(height, width, 3) uint8, upright, in ``size`` = (width, height)."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
        return np.array(upright.resize(size, Image.Resampling.BICUBIC))


def frustum_mask(camera: NDArray[np.float64], size: tuple[int, int], grid: int) -> NDArray[np.bool_]:
    """Which voxels an image sees: (grid, grid, grid), axes to the image's right, down, and with depth.

    The cube has the frustum from 0.4 m to 6 m in its middle.
    """
    voxel_m = SPACE_M / grid
    middle = (NEAR_M + FAR_M) / 2 / voxel_m  # from the camera to the middle of the cube, voxels
    x = np.arange(grid) - grid / 2
    z = np.arange(grid) - (grid / 2 - middle)
    seen = (z * voxel_m >= NEAR_M) & (z * voxel_m <= FAR_M)
    u = camera[0, 0] * x[:, None] + camera[0, 2] * z  # pixels, times depth: no division by 0
    v = camera[1, 1] * x[:, None] + camera[1, 2] * z
    columns, rows = ((at >= 0) & (at < length * z) for at, length in zip((u, v), size, strict=True))
    inside: NDArray[np.bool_] = columns[:, None] & rows[None] & seen
    return inside


if __name__ == "__main__":
    main()
