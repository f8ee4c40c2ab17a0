"""Checkpoints to evaluate: found by file, folder and pattern, each once, in the order of training."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from scenemill.pipelines.experiments.checkpoints import Checkpoint, find_checkpoints, names_several, read_checkpoint
from scenemill.schemas.errors import ConfigError, Corrupt
from scenemill.trainers.checkpoint import checkpoint_name, point_latest, save_checkpoint


def save(path: Path, key: str = "", **held: Any) -> Path:
    save_checkpoint(path, {"state_dict": {"a": torch.zeros(3)}, **held}, key)
    return path


def save_run(folder: Path, steps: list[int]) -> list[Path]:
    """Checkpoints as a training writes them, ten steps an epoch, and the link to the newest."""
    paths = [save(folder / checkpoint_name(step // 10, step, "step"), epoch=step // 10, global_step=step) for step in steps]
    point_latest(folder, paths[-1], "panoptic_recon_3d_model")
    return paths


def places(found: tuple[Checkpoint, ...]) -> list[tuple[int | None, int | None]]:
    return [(checkpoint.epoch, checkpoint.step) for checkpoint in found]


def test_a_folder_gives_each_checkpoint_once_and_in_the_order_of_training(tmp_path: Path) -> None:
    steps = [100_000, 5, 99_999, 10, 10_000, 7]  # names alone sort otherwise: five digits are not always enough
    save_run(tmp_path, random.Random(3).sample(steps, len(steps)))
    (tmp_path / "status.json").write_text("{}")
    found = find_checkpoints(str(tmp_path))
    assert places(found) == [(step // 10, step) for step in sorted(steps)]
    assert {checkpoint.training for checkpoint in found} == {str(tmp_path.resolve())}


@pytest.mark.parametrize("pattern", ["*.pth", "model_epoch_00[01]*", "*_latest.pth", "../**/model_epoch_00?_*.pth"])
def test_a_pattern_gives_the_files_of_such_names(tmp_path: Path, pattern: str) -> None:
    folder = tmp_path / "run" / "train"
    paths = save_run(folder, [5, 10, 15, 20])
    wanted = {"*.pth": 4, "model_epoch_00[01]*": 3, "*_latest.pth": 1, "../**/model_epoch_00?_*.pth": 4}[pattern]
    found = find_checkpoints(f"{folder}/{pattern}")
    assert len(found) == wanted
    assert [checkpoint.path.resolve() for checkpoint in found] == (paths[-1:] if wanted == 1 else paths[:wanted])


def test_a_file_goes_by_its_own_name_and_not_by_that_of_a_link(tmp_path: Path) -> None:
    paths = save_run(tmp_path, [5, 10])
    (tmp_path / "a_link.pth").symlink_to(paths[0].name)
    assert [checkpoint.path for checkpoint in find_checkpoints(f"{tmp_path}/*.pth")] == paths


def test_a_link_elsewhere_belongs_to_the_training_of_its_file(tmp_path: Path) -> None:
    (path,) = save_run(tmp_path / "train", [5])
    (tmp_path / "best.pth").symlink_to(path)
    (found,) = find_checkpoints(str(tmp_path / "best.pth"))
    assert (found.path.name, found.training) == ("best.pth", str((tmp_path / "train").resolve()))


@pytest.mark.parametrize(
    ("name", "held", "place"),
    [
        ("model_epoch_003_step_00040.pth", {"epoch": 7, "global_step": 80}, (7, 80)),
        ("model_epoch_003_step_00040.pth", {}, (3, 40)),
        ("model_epoch_003.pth", {}, (3, None)),
        ("model_epoch_003.tlt", {"global_step": 80}, (3, 80)),
        ("model_epoch_1000_step_123456.pth", {}, (1000, 123456)),
        ("weights.pth", {"epoch": 0, "global_step": 0}, (0, 0)),
        ("weights.pth", {"epoch": "seven"}, (None, None)),
        ("my_model_epoch_003.pth", {}, (None, None)),
    ],
)
def test_the_place_is_what_the_file_holds_and_else_what_its_name_says(
    tmp_path: Path, name: str, held: dict[str, Any], place: tuple[int | None, int | None]
) -> None:
    found = read_checkpoint(save(tmp_path / name, **held))
    assert (found.epoch, found.step) == place


def test_files_that_do_not_say_where_they_stand_come_first(tmp_path: Path) -> None:
    for name in ("b.pth", "a.pth"):
        save(tmp_path / name)
    save(tmp_path / "model_epoch_000.pth")
    save(tmp_path / "c.pth", epoch=0, global_step=0)
    assert [checkpoint.path.name for checkpoint in find_checkpoints(f"{tmp_path}/*")] == [
        "a.pth",
        "b.pth",
        "model_epoch_000.pth",
        "c.pth",
    ]


def test_encrypted_checkpoints_need_their_key(tmp_path: Path) -> None:
    save(tmp_path / "model_epoch_001.pth", key="sesame", epoch=1, global_step=30)
    assert places(find_checkpoints(str(tmp_path), "sesame")) == [(1, 30)]
    with pytest.raises(ConfigError, match="encrypted"):
        find_checkpoints(str(tmp_path))


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("", "evaluate.checkpoint is empty"),
        ("{folder}", "model_epoch_.* in it"),
        ("{folder}/*.pth", "files of such names"),
        ("{folder}/none.pth", "no such file"),
        ("{folder}/*.json", "not a name of a checkpoint"),
    ],
)
def test_what_names_no_checkpoint_is_refused(tmp_path: Path, named: str, said: str) -> None:
    (tmp_path / "status.json").write_text("{}")
    with pytest.raises(ConfigError, match=said):
        find_checkpoints(named.format(folder=tmp_path))


def test_a_damaged_checkpoint_is_found_before_any_is_evaluated(tmp_path: Path) -> None:
    paths = save_run(tmp_path, [5, 10, 15])
    paths[2].write_bytes(paths[2].read_bytes()[:-100])
    with pytest.raises(Corrupt, match=paths[2].name):
        find_checkpoints(str(tmp_path))


def test_a_file_with_signs_of_a_pattern_in_its_name_is_that_file(tmp_path: Path) -> None:
    path = save(tmp_path / "run[1]" / "a*.pth")
    assert not names_several(str(path))
    assert [checkpoint.path for checkpoint in find_checkpoints(str(path))] == [path]
    assert names_several(str(path.parent)) and names_several(f"{tmp_path}/*.pth")
    assert not names_several("") and not names_several(f"{tmp_path}/none.pth")


@pytest.mark.parametrize("form", ["own", "torch", "without sums", "no zip"])
def test_the_digest_follows_the_contents_and_not_the_name(tmp_path: Path, form: str, request: pytest.FixtureRequest) -> None:
    """A weight's last bit, its name and the step count; the name of the file does not, however it was written."""
    torch.serialization.set_crc32_options(form != "without sums")
    request.addfinalizer(lambda: torch.serialization.set_crc32_options(True))
    weights = torch.arange(7.0)
    other = torch.nextafter(weights, torch.tensor(1.0))
    digests = []
    for number, document in enumerate(
        ({"a": weights, "step": 1}, {"a": other, "step": 1}, {"b": weights, "step": 1}, {"a": weights, "step": 2})
    ):
        path = tmp_path / f"{number}.pth"
        if form == "own":
            save_checkpoint(path, document)
        else:
            torch.save(document, path, _use_new_zipfile_serialization=form != "no zip")
        copy = Path(shutil.copy(path, tmp_path / "copy.pth"))
        assert Checkpoint(copy, None, None).digest() == Checkpoint(path, None, None).digest()
        digests.append(Checkpoint(path, None, None).digest())
    assert len(set(digests)) == 4


def test_a_file_written_again_with_the_same_contents_is_the_same_checkpoint(tmp_path: Path) -> None:
    paths = [save(tmp_path / name, epoch=1) for name in ("a.pth", "b.pth")]
    assert read_checkpoint(paths[0]).digest() == read_checkpoint(paths[1]).digest()
