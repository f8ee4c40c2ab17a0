"""A store against a dict: ingest, append, change, remove, crash, verify, repair, clean, open an old version and read, in any order."""

import json
import os
import random
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from PIL import Image

from scenemill.schemas.errors import NotPublished
from scenemill.schemas.sample import Sample
from scenemill.schemas.steps import STEPS
from scenemill.transforms.store import Store, history, open_store
from scenemill.transforms.verify import verify_store
from tests.faults.quick import QuickMill, quick_mill

GRID: Final = 64
YOUR_DATA: Final = 3
SPLITS: Final = ("train", "val", "test")
CHOICES: Final = (("train",), ("val",), ("test",), ("train", "val"), SPLITS)
Colours = Mapping[str, int]
"""Key -> the red of the first pixel of its image: all in which the states of a sample differ here."""


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QuickMill]:
    with quick_mill(tmp_path_factory.mktemp("logs")) as made:
        yield made


@pytest.fixture(scope="module")
def truth(quick: QuickMill, front3d_world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sample]:
    """The samples of the untouched folder."""
    store = tmp_path_factory.mktemp("truth") / "store"
    done = quick.build(front3d_world, store)
    assert done.code == 0, done.said
    opened = open_store(store)
    return {key: opened.read(key) for key in opened}


class StoreMachine(RuleBasedStateMachine):
    """A raw folder and a store of it, and two dicts that say what is in them."""

    def __init__(self, quick: QuickMill, world: Path, truth: Mapping[str, Sample], folder: Path) -> None:
        super().__init__()
        self._quick, self._truth = quick, truth
        self._folder = folder / os.urandom(6).hex()
        self._world = Path(shutil.copytree(world, self._folder / "world"))
        self._store = self._folder / "store"
        self._lists: dict[str, list[str]] = {split: self._listed(split) for split in SPLITS}
        self._raw: dict[str, int | None] = {key: red_of(sample) for key, sample in truth.items()}
        self._versions: list[tuple[str, Colours]] = []
        self._held: tuple[Store, Colours] | None = None
        self._next_red = 0

    def _listed(self, split: str) -> list[str]:
        entries = json.loads((self._world / f"{split}.json").read_bytes())
        return [f"{entry['scene_id']}/{entry['image_id']}" for entry in entries]

    def _image(self, key: str) -> Path:
        scene, _, image = key.partition("/")
        return self._world / "data" / scene / f"rgb_{image}.png"

    def _ingest(self, splits: tuple[str, ...], *options: str, kill_at: str = "") -> tuple[int, str]:
        done = self._quick.build(self._world, self._store, "--splits", ",".join(splits), *options, kill_at=kill_at)
        return done.code, done.said

    @property
    def _colours(self) -> Colours:
        return self._versions[-1][1] if self._versions else {}

    def _after(self, splits: tuple[str, ...]) -> Colours:
        """What the store holds after an ingest of some lists: what they name as it is now, all else as it was."""
        covered = {key for split in splits for key in self._lists[split]}
        kept = {key: red for key, red in self._colours.items() if key not in covered}
        return kept | {key: red for key in covered if (red := self._raw[key]) is not None}

    def _publishes(self, splits: tuple[str, ...]) -> bool:
        return any(self._raw[key] is not None for split in splits for key in self._lists[split])

    def _note(self, expected: Colours) -> None:
        """Take note of the version that readers see now."""
        version = open_store(self._store).version
        if not self._versions or version != self._versions[-1][0]:
            self._versions.append((version, expected))
        assert self._colours == expected

    @initialize(splits=st.sampled_from(CHOICES))
    def begin(self, splits: tuple[str, ...]) -> None:
        self.ingest(splits)

    @rule(splits=st.sampled_from(CHOICES))
    def ingest(self, splits: tuple[str, ...]) -> None:
        code, said = self._ingest(splits)
        if self._publishes(splits):
            assert code == 0, said
            self._note(self._after(splits))
        else:
            assert code == YOUR_DATA, said

    @rule(key=st.integers(0, 5), keep_times=st.booleans())
    def change(self, key: int, keep_times: bool) -> None:
        """Give a view another image; a tool may have set the old time again."""
        name = sorted(self._raw)[key]
        if self._raw[name] is None:
            return
        path, self._next_red = self._image(name), (self._next_red + 1) % 256
        before = path.stat()
        pixels = np.array(Image.open(path))
        pixels[0, 0, 0] = self._next_red
        Image.fromarray(pixels).save(path)
        if keep_times:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        self._raw[name] = self._next_red

    @rule(key=st.integers(0, 5))
    def lose_or_find_a_raw_file(self, key: int) -> None:
        name = sorted(self._raw)[key]
        path = self._image(name)
        aside = self._folder / f"aside-{key}.png"
        if self._raw[name] is None:
            shutil.move(aside, path)
            self._raw[name] = int(np.array(Image.open(path))[0, 0, 0])
        else:
            shutil.move(path, aside)
            self._raw[name] = None

    @rule(splits=st.sampled_from(CHOICES), step=st.sampled_from((*STEPS["ingest"], *STEPS["file"])), times=st.integers(1, 12))
    def crash(self, splits: tuple[str, ...], step: str, times: int) -> None:
        before = self._versions[-1][0] if self._versions else None
        expected = self._after(splits)
        code, said = self._ingest(splits, kill_at=f"{step}:{times}")
        event(f"crash: {'killed' if code == -signal.SIGKILL else 'got through'}")
        assert code in (0, -signal.SIGKILL, *(() if self._publishes(splits) else (YOUR_DATA,))), said
        if published(self._store) != before:
            self._note(expected)
        elif code == 0:
            assert self._colours == expected

    @precondition(lambda self: self._versions)
    @rule()
    def verify(self) -> None:
        assert verify_store(self._store).broken == ()

    @precondition(lambda self: self._versions)
    @rule(keep=st.sampled_from((None, 1, 2)))
    def clean(self, keep: int | None) -> None:
        done = self._quick.act("clean", self._store, "--json", *(() if keep is None else ("--keep-versions", keep)))
        assert done.code == 0, done.said
        if keep is not None:
            gone, self._versions = self._versions[:-keep], self._versions[-keep:]
            self._held = None
            for version, _ in gone:
                with pytest.raises(NotPublished):
                    open_store(self._store, version)
        assert [store.version for store in history(self._store)] == [version for version, _ in reversed(self._versions)]

    @precondition(lambda self: self._versions and self._publishes(SPLITS))
    @rule(seed=st.integers(0, 1 << 16))
    def damage_and_repair(self, seed: int) -> None:
        rng = random.Random(seed)
        opened = open_store(self._store)
        receipts = [opened.receipt(part["id"]) for part in opened.manifest["parts"]]
        path = self._store / rng.choice(sorted(path for receipt in receipts for path in receipt.files))
        data = path.read_bytes()
        place = rng.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
        assert verify_store(self._store).broken
        code, said = self._ingest(SPLITS, "--repair")
        assert code == 0, said
        self._note(self._after(SPLITS))
        self.clean(1)  # older versions keep the broken part
        self.verify()

    @precondition(lambda self: self._versions)
    @rule()
    def hold(self) -> None:
        """Open the store, to read on from it while others write."""
        self._held = open_store(self._store), self._colours
        assert self._held[0].keys

    @precondition(lambda self: self._held)
    @rule()
    def read_what_is_held(self) -> None:
        assert self._held is not None
        self._compare(*self._held)

    @precondition(lambda self: self._versions)
    @rule(place=st.integers(0, 99))
    def open_an_old_version(self, place: int) -> None:
        version, colours = self._versions[place % len(self._versions)]
        self._compare(open_store(self._store, version), colours)

    @precondition(lambda self: self._colours)
    @rule(key=st.integers(0, 5), corners=st.lists(st.integers(0, GRID), min_size=6, max_size=6))
    def read_a_box(self, key: int, corners: list[int]) -> None:
        ends = [sorted(corners[axis : axis + 2]) for axis in (0, 2, 4)]
        box = [(low, high) if low < high else (min(low, GRID - 1), min(low, GRID - 1) + 1) for low, high in ends]
        name = sorted(self._colours)[key % len(self._colours)]
        read = open_store(self._store).read(name, ["geometry"], box=(box[0], box[1], box[2]))
        wanted = self._truth[name]["geometry"][tuple(slice(low, high) for low, high in box)]
        np.testing.assert_array_equal(read["geometry"], wanted)

    def _compare(self, store: Store, colours: Colours) -> None:
        assert store.keys == sorted(colours)
        for key, red in colours.items():
            assert red_of(store.read(key, ["rgb"])) == red

    @invariant()
    def reader_sees_the_newest_version_and_all_of_it(self) -> None:
        if self._versions:
            opened = open_store(self._store)
            assert opened.version == self._versions[-1][0]
            self._compare(opened, self._colours)

    def teardown(self) -> None:
        if self._versions:
            key = next(iter(self._colours))
            read, true = open_store(self._store).read(key), self._truth[key]
            assert all(np.array_equal(read[name], true[name]) for name in true.arrays if name != "rgb")
        shutil.rmtree(self._folder)


def red_of(sample: Sample) -> int:
    """The red of the first pixel of a sample's image."""
    return int(sample["rgb"][0, 0, 0])


def published(store: Path) -> str | None:
    try:
        return open_store(store).version
    except NotPublished:
        return None


@pytest.mark.parametrize(
    ("examples", "steps"), [pytest.param(2, 8, id="short"), pytest.param(100, 40, id="long", marks=pytest.mark.full)]
)
def test_store_and_dict_agree_whatever_is_done(
    examples: int, steps: int, quick: QuickMill, truth: dict[str, Sample], front3d_world: Path, tmp_path: Path
) -> None:
    run_state_machine_as_test(
        lambda: StoreMachine(quick, front3d_world, truth, tmp_path),  # type: ignore[arg-type]  # any callable that makes one
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=examples < 10,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
