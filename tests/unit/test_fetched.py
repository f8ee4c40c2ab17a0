"""Checkpoints that a URI names: fetched once, again where they changed, and refused in words where there are none."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'scenemill[cloud]'")
pytest.importorskip("moto", reason="moto is not installed: pip install 'moto[server]'")

from scenemill.pipelines.experiments.fetched import with_fetched
from scenemill.pipelines.experiments.specs import read_spec, spec_text
from scenemill.pipelines.experiments.training import begun
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.places import Remote
from scenemill.transforms.objects import place_of
from tests.unit.object_services import SECRET, Proxy, used_by_proxy


@pytest.fixture
def net(services: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Proxy]:
    monkeypatch.setenv("SCENEMILL_CACHE", str(tmp_path / "cache"))
    with used_by_proxy(monkeypatch, services["s3"]) as between:
        yield between


@pytest.fixture
def training(net: Proxy, tmp_path: Path) -> Remote:
    """A folder of two checkpoints in the bucket."""
    folder = place_of(f"s3://mill/{tmp_path.name}")
    assert isinstance(folder, Remote)
    for epoch in (0, 1):
        (folder / f"model_epoch_00{epoch}.pth").create(bytes([epoch]) * 100_000)
    return folder


def experiment(*settings: str) -> ExperimentConfig:
    return read_spec(spec_text("tiny_front3d_2d"), settings, "tiny")


def evaluated(uri: object) -> Path:
    return Path(with_fetched(experiment(f"evaluate.checkpoint={uri}"), "evaluate").evaluate.checkpoint)


def test_a_checkpoint_is_fetched_once_and_again_where_it_changed(training: Remote, net: Proxy) -> None:
    place = training / "model_epoch_001.pth"
    path = evaluated(place)
    assert (path.name, path.read_bytes()) == ("model_epoch_001.pth", b"\1" * 100_000)
    before = path.stat().st_mtime_ns
    assert evaluated(place) == path
    assert path.stat().st_mtime_ns == before
    place.swap(b"\2" * 100_000, b"\1" * 100_000)
    assert evaluated(place).read_bytes() == b"\2" * 100_000
    assert {found.name for found in path.parent.iterdir()} == {path.name, f".{path.name}.json"}


def test_a_folder_of_checkpoints_is_fetched_as_it_now_is(training: Remote) -> None:
    folder = evaluated(training)
    assert sorted(path.name for path in folder.glob("model*")) == ["model_epoch_000.pth", "model_epoch_001.pth"]
    (training / "model_epoch_000.pth").unlink()
    assert evaluated(training) == folder
    assert [path.name for path in folder.glob("model*")] == ["model_epoch_001.pth"]


def test_a_half_fetched_checkpoint_is_fetched_again(training: Remote) -> None:
    path = evaluated(training / "model_epoch_000.pth")
    path.write_bytes(b"half")
    assert evaluated(training / "model_epoch_000.pth").read_bytes() == b"\0" * 100_000


@pytest.mark.parametrize(
    ("action", "setting", "said"),
    [
        ("evaluate", "evaluate.checkpoint=s3://mill/nothing", "evaluate.checkpoint='s3://mill/nothing': no checkpoint there"),
        ("train", "train.checkpoint_2d=s3://mill/nothing/x.pth", "train.checkpoint_2d="),
        ("inference", "inference.checkpoint=s3://nobodys/x.pth", "no such bucket"),
    ],
)
def test_what_is_not_there_is_told_by_name(action: str, setting: str, said: str, net: Proxy) -> None:
    with pytest.raises(ConfigError, match=said) as told:
        with_fetched(experiment(setting), action)
    assert SECRET not in str(told.value)


def test_settings_of_other_actions_and_of_disks_stay_as_they_are(net: Proxy) -> None:
    config = experiment("evaluate.checkpoint=s3://mill/nothing", "train.checkpoint_2d=out/model.pth")
    assert with_fetched(config, "train") == config


def test_results_in_a_bucket_begin_with_the_experiment_as_it_was_given(training: Remote, net: Proxy) -> None:
    config = experiment(f"results_dir={training.parent}/out/")
    with begun(config, "inference") as results:
        (results.folder / "picture.png").write_bytes(b"a picture")
    assert results.place == training.parent / "out/inference"
    assert f"results_dir: {training.parent}/out/" in (results.place / "experiment.yaml").read_bytes().decode()
    assert (results.place / "picture.png").read_bytes() == b"a picture"


def test_a_training_of_several_machines_has_its_results_on_a_disk(net: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for more, world in (("train.num_nodes=2", "1"), ("train.num_nodes=1", "2")):
        monkeypatch.setenv("WORLD_SIZE", world)
        with (
            pytest.raises(ConfigError, match="of several machines, or by torchrun"),
            begun(experiment("results_dir=s3://mill/out", more), "train"),
        ):
            pass
