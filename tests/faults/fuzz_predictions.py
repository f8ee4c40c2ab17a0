"""Fuzz targets: predictions on disk, as scoring reads them and as the viewer does.

An input is a digit that says which file of a whole prediction it takes the place of, and that file. Archives are also made here around what
lies in them, for damage would not get beyond their checksums.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.pipelines.predictions import Prediction, folder_of, read_prediction, write_prediction
from scenemill.pipelines.score import count_rows, score_sample
from scenemill.pipelines.viewer.cut import USUAL
from scenemill.pipelines.viewer.predictions import PredictionsRoot
from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.schemas.tables import COUNTS, table_of
from scenemill.transforms.store import open_store
from tests.faults.fuzz_raw import archive, framed, npy, picture, unframed
from tests.faults.fuzz_stores import GOLDEN
from tests.faults.fuzz_target import FuzzTarget, right

FILES: Final = ("segments.json", "panoptic_2d.npy", "depth_2d.npy", "panoptic.npz", "geometry.npz", "view.png")
CAMERA: Final = np.array([[4.0, 0, 4, 0], [0, 4, 3, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
"""Of images of 6 x 8 pixels."""

_WRAPPED: Final = {"6": "panoptic.npz", "7": "geometry.npz"}  # what lies in the archive
_MAPS: Final = "8"  # both maps, of the size that two bytes say
_WORDS: Final = (
    *(b'"segments_2d": ', b'"segments_3d": ', b'"id": ', b'"category_id": ', b'"isthing": ', b'"intrinsic": ', b'"stage": 2'),
    *(
        b"null",
        b"true",
        b"[]",
        b"{}",
        b"NaN",
        b"Infinity",
        b"-1",
        b"0",
        b"1e999",
        b"4294967296",
        b"9223372036854775808",
        b"1" * 40,
        b"[" * 60,
        b'"\\ud800"',
        b"1.0",
    ),
    *(
        b"'<i4'",
        b"'<i8'",
        b"'|u1'",
        b"'<u4'",
        b"'<f2'",
        b"'<f8'",
        b"'<f4'",
        b"True",
        b"(0, 8)",
        b"(6, 0)",
        b"(1, 1)",
        b"(16, 16, 16)",
    ),
    *(
        b"\xff\xff\xff\x7f",
        b"\x00\x00\x80\x7f",
        b"\x00\x00\xc0\x7f",
        b"\xff\xff\xff\xff",
        b"PK\x01\x02",
        b"data.npy",
        b"IHDR",
        b"iCCP",
    ),
)


class _Told:
    """A folder with one prediction, of which a file is written over and put back."""

    def __init__(self, folder: Path, grid: int) -> None:
        self.key = open_store(GOLDEN / "front3d").keys[0]
        self.root, self.grid = folder / "told", grid
        flat = np.arange(48, dtype=np.int32).reshape(6, 8) % 4
        volume = np.zeros((grid,) * 3, np.int32)
        volume[2:9, 3:8, 1:12], volume[10:14] = 1, 2
        depth = np.linspace(0, 5, 48, dtype=np.float32).reshape(6, 8)
        distance = np.where(volume > 0, 0.5, 3.0).astype(np.float32)
        made = Prediction(flat, {1: 3, 2: 10, 3: 12}, depth, volume, {1: 3, 2: 11}, distance)
        write_prediction(self.root, self.key, made, intrinsic=CAMERA, pictures={"view.png": picture("PNG")})
        self.folder = self.root / folder_of(self.key)
        self.whole = {name: (self.folder / name).read_bytes() for name in FILES}

    def write(self, data: bytes) -> None:
        """The prediction with the file of an input in it.

        Raises:
            ConfigError: the input names none.
        """
        number, given = data[:1].decode("latin-1"), data[1:]
        if number == _MAPS and len(given) >= 2:
            shape = given[0] % 12, given[1] % 12
            changed = {"panoptic_2d.npy": npy(np.ones(shape, np.int32)), "depth_2d.npy": npy(np.full(shape, 1e300))}
        elif number in _WRAPPED:
            changed = {_WRAPPED[number]: archive({"data.npy": framed(given)}, 0)}
        elif number.isascii() and number.isdigit() and int(number) < len(FILES):
            changed = {FILES[int(number)]: framed(given) if FILES[int(number)].endswith(".npy") else given}
        else:
            raise ConfigError("no file of a prediction")
        for name, held in {**self.whole, **changed}.items():
            if (self.folder / name).read_bytes() != held:
                (self.folder / name).write_bytes(held)

    def seeds(self) -> tuple[bytes, ...]:
        """The files of the whole prediction as inputs, and what may lie in their archives."""
        plain = tuple(str(number).encode() + self.whole[name] for number, name in enumerate(FILES))
        arrays: list[tuple[str, NDArray[Any]]] = [
            ("6", np.ones((self.grid,) * 3, np.uint8)),
            ("7", np.ones((self.grid,) * 3, "f2")),
        ]
        wrapped = tuple(number.encode() + npy(array) for number, array in arrays if self.grid <= 16)
        parted_files = tuple(bytes([one[0]]) + unframed(one[1:]) for one in (*plain[1:3], *wrapped))
        more = b'0{"segments_2d": [{"id": 7, "category_id": 1}], "segments_3d": []}'
        return (*plain, *wrapped, *parted_files, more, b"8ab")


def prediction(folder: Path) -> FuzzTarget:
    """A prediction that is scored."""
    told, store = _Told(folder, 16), open_store(GOLDEN / "front3d")

    def read(data: bytes) -> None:
        told.write(data)
        found = read_prediction(told.root, told.key, told.grid)
        right(found.panoptic_2d.shape == found.depth.shape and found.depth.dtype == np.float32, "maps of two sizes")
        right(found.panoptic_3d is None or found.panoptic_3d.shape == (16, 16, 16), "a volume of another grid")
        tallies, errors = score_sample(store, told.key, told.root)
        rows = count_rows(tallies)
        right(all(row["tp"] >= 0 and row["fp"] >= 0 and 0 <= row["iou_sum"] <= row["tp"] for row in rows), "counts out of range")
        right(errors is None or all(np.isfinite(value) or name != "pixels" for name, value in errors.items()), "no pixels")
        common = {"run": "a", "store_version": store.version, "key": told.key, "split": "train"}
        right(table_of(COUNTS, [{**common, **row} for row in rows]).num_rows == len(rows), "rows that are lost")

    return FuzzTarget("prediction", told.seeds(), read, (SourceError, ConfigError), _WORDS, 20_000, inside="told", light=80)


def prediction_view(folder: Path) -> FuzzTarget:
    """A prediction that is shown."""
    told = _Told(folder, 64)

    def read(data: bytes) -> None:
        told.write(data)
        root = PredictionsRoot("told", told.root)
        described = root.sample(told.key)
        right(json.loads(json.dumps(described, allow_nan=False)) == described, "no JSON")
        for shown in described["shows"]:
            if shown["kind"] == "scene":
                root.scene(told.key, shown["what"], 0, USUAL).encode(frozenset())
                continue
            frame = root.plane(told.key, shown["what"], "z", 5).encode()
            right(frame[:4] == b"SMF1", "no frame")

    return FuzzTarget("prediction_view", told.seeds(), read, (SourceError, ConfigError), _WORDS, 12_000, inside="told", light=40)


TARGETS: Final[dict[str, Callable[[Path], FuzzTarget]]] = {"prediction": prediction, "prediction_view": prediction_view}
