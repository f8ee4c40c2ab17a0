"""Memory that runs out: a clear end, nothing half published, and never other bytes or a sample rejected for it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from PIL import Image

from scenemill.transforms import images
from scenemill.transforms.shards import encode_chunk
from tests.faults.conftest import Mill
from tests.faults.quick import QuickMill, error_of, quick_mill

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="address space is limited and told by Linux alone")

ROOMS_MIB: Final = (16, 46, *(pytest.param(room, marks=pytest.mark.full) for room in (*range(18, 46, 2), *range(47, 120))))
"""In some of them a thread dies before it says that it has begun, for which Python itself would wait for ever."""


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QuickMill]:
    with quick_mill(tmp_path_factory.mktemp("logs")) as made:
        yield made


@pytest.fixture(scope="module")
def whole(quick: QuickMill, front3d_world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a store that was made with memory enough."""
    store = tmp_path_factory.mktemp("whole") / "store"
    done = quick.build(front3d_world, store)
    assert done.code == 0, done.said
    return Mill.sums_of(store)


@pytest.mark.parametrize("room_mib", ROOMS_MIB)
def test_ingest_without_memory_says_so_and_is_completed_by_one_with_it(
    room_mib: int, quick: QuickMill, whole: dict[str, str], front3d_world: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    done = quick.act(*Mill.ingest_args(front3d_world, store), room_mib=room_mib)
    if done.code:
        assert done.code == 1 and error_of(done).startswith("MemoryError: memory ran out"), done.said
        assert Mill.published(store) is None
        assert quick.build(front3d_world, store).code == 0
    assert Mill.sums_of(store) == whole


def test_image_that_finds_no_memory_is_no_broken_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "image.png")
    data = (tmp_path / "image.png").read_bytes()
    for told in (MemoryError(), OSError("out of memory error when reading image file")):

        def refuse(*args: object, told: Exception = told) -> None:
            raise told

        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(np, "asarray", refuse)
            images.read_png(data, (4, 5), {"RGB": "uint8"})


def test_chunk_is_not_written_uncompressed_for_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise MemoryError("Unable to allocate")

    chunk = np.zeros(1 << 12, np.uint8)
    settings = {"cname": "zstd", "clevel": 5, "shuffle": "noshuffle", "blocksize": 1 << 19, "typesize": 1}
    assert len(encode_chunk(chunk, settings)) < chunk.nbytes
    monkeypatch.setattr(np, "empty", refuse)
    with pytest.raises(MemoryError):
        encode_chunk(chunk, settings)
