"""A training, an evaluation, predictions, an export, a search and a fit whose results go to a bucket: what a disk would hold."""

import hashlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'scenemill[cloud]'")
pytest.importorskip("moto", reason="moto is not installed: pip install 'moto[server]'")

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # type: ignore[import-untyped]
from typer.testing import CliRunner

from scenemill.pipelines.cli import app
from scenemill.pipelines.experiments.evaluation import run_evaluation
from scenemill.pipelines.experiments.fetched import with_fetched
from scenemill.pipelines.experiments.fitting import FitJob, run_fit
from scenemill.pipelines.experiments.specs import read_spec, spec_text
from scenemill.pipelines.experiments.training import run_inference, run_training
from scenemill.pipelines.experiments.tuning import tune
from scenemill.pipelines.ingest import ingest
from scenemill.pipelines.mirrored import OWNER
from scenemill.pipelines.progress import no_progress
from scenemill.pipelines.tables import read_table
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.fit import FitConfig
from scenemill.schemas.places import Place, Remote
from scenemill.transforms.objects import place_of
from tests.forked import CommandLine
from tests.unit.object_services import SECRET, Fault, Proxy, be_nobody, environment, used_by_proxy

pytestmark = pytest.mark.full  # short forms of all but the loop itself are in tests/unit/test_mirrored.py

STEPS: Final = 4
SIZES: Final = (
    *(
        f"dataset.augmentation.{name}"
        for name in ("train_min_size=[64]", "train_max_size=96", "test_min_size=64", "test_max_size=96")
    ),
    *("dataset.target_size=[80,60]", "model.backbone.input_width=56", "dataset.train.num_workers=0"),
    *("train.validation_interval=100", f"train.optim.max_steps={STEPS}", "train.checkpoint_interval=2"),
)
"""A step of a tenth of a second."""


@pytest.fixture(params=["s3", "gs"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def net(services: dict[str, str], scheme: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Proxy]:
    monkeypatch.setenv("SCENEMILL_CACHE", str(tmp_path / "cache"))
    with used_by_proxy(monkeypatch, services[scheme]) as between:
        be_nobody(monkeypatch, between.url)
        yield between


@pytest.fixture
def bucket(net: Proxy, scheme: str) -> Remote:
    place = place_of(f"{scheme}://mill/{uuid4().hex[:8]}")
    assert isinstance(place, Remote)
    return place


@pytest.fixture(scope="module")
def store(front3d_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "front3d"
    ingest(IngestConfig("front3d", front3d_world, folder))
    return folder


def settings(store: Path, results: Place) -> list[str]:
    return [f"results_dir={results}", *(f"dataset.{split}.base_dir={store}" for split in ("train", "test")), *SIZES]


def experiment(store: Path, results: Place, *more: str) -> ExperimentConfig:
    return read_spec(spec_text("tiny_front3d_2d"), [*settings(store, results), *more], "tiny")


def silent(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training on a disk."""
    results = tmp_path_factory.mktemp("trained")
    run_training(experiment(store, results), silent, silent)
    return results


def sums_of(place: Place) -> dict[str, str]:
    """SHA-256 of the checkpoints; in a folder, not of links to them."""
    found: list[Any] = list(place.glob("model_*.pth"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def curves_of(folder: Path) -> dict[tuple[str, int], set[float]]:
    """(curve, step) -> the values drawn there, of all that do not tell time."""
    found: dict[tuple[str, int], set[float]] = {}
    for path in sorted(folder.glob("tensorboard/events.out.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag != "wait_ms":
                    found.setdefault((value.tag, event.step), set()).add(
                        value.tensor.float_val[0] if value.HasField("tensor") else value.simple_value
                    )
    return found


def mirror(cache: Path) -> Path:
    """The one folder of the cache that stands for a bucket."""
    (folder,) = (path for path in (cache / "results").iterdir() if path.is_dir())
    return folder


def test_a_training_in_a_bucket_is_that_on_a_disk(store: Path, trained: Path, bucket: Remote, net: Proxy, tmp_path: Path) -> None:
    net.faults += [
        Fault("PUT", "step_00002", "cut"),
        Fault("PUT", "step_00004", "lose answer"),
        Fault("PUT", "events", "slow down"),
    ]
    run_training(experiment(store, bucket), silent, silent)
    assert sums_of(bucket / "train") == sums_of(trained / "train")
    names = {path.below(bucket / "train") for path in (bucket / "train").walk()}
    assert {"status.json", "experiment.yaml", OWNER} < names
    written = [path for method, path in net.requests if method == "PUT" and ("model_epoch" in path or OWNER in path)]
    first = next(number for number, path in enumerate(written) if "step_00002" in path)
    assert any(OWNER in path for path in written[:first])
    assert any(OWNER in path for path in written[first : next(n for n, path in enumerate(written) if "step_00004" in path)])
    assert f"results_dir: {bucket}" in (bucket / "train/experiment.yaml").read_bytes().decode()
    assert curves_of(mirror(tmp_path / "cache")) == curves_of(trained / "train")


def command(command_line: CommandLine, net: Proxy, cache: Path, *words: str, kill_at: str = "") -> str:
    ended = command_line.call(
        *words, environment={**environment(net.url), "SCENEMILL_CACHE": str(cache), "SCENEMILL_KILL_AT": kill_at}
    )
    assert ended.code == (-signal.SIGKILL if kill_at else 0), ended.said
    return ended.said


@pytest.mark.parametrize("machines", [("one", "one"), ("one", "two")])
@pytest.mark.parametrize("kill_at", ["result sent:1", "result sent:2", "result sent:5", "results noted:1", "step taken:3"])
def test_a_training_killed_as_it_sends_is_gone_on_with_on_any_machine(
    kill_at: str,
    machines: tuple[str, str],
    command_line: CommandLine,
    store: Path,
    trained: Path,
    bucket: Remote,
    net: Proxy,
    tmp_path: Path,
) -> None:
    words = ["train", "-e", "tiny_front3d_2d", *settings(store, bucket)]
    command(command_line, net, tmp_path / machines[0], *words, kill_at=kill_at)
    said = command(command_line, net, tmp_path / machines[1], *words)
    assert f"{bucket}/train/model_epoch" in said and SECRET not in said
    assert sums_of(bucket / "train") == sums_of(trained / "train")
    command(command_line, net, tmp_path / "three", *words)  # nothing is left to do, and all of it is there
    assert curves_of(mirror(tmp_path / "three")) == curves_of(trained / "train")
    assert sums_of(bucket / "train") == sums_of(trained / "train")


def test_the_first_of_two_processes_sends(
    command_line: CommandLine, store: Path, bucket: Remote, net: Proxy, tmp_path: Path
) -> None:
    said = command(
        command_line, net, tmp_path / "cache", "train", "-e", "tiny_front3d_2d", *settings(store, bucket), "train.num_gpus=2"
    )
    assert f"{bucket}/train/model_epoch" in said
    assert sums_of(bucket / "train") == sums_of(mirror(tmp_path / "cache"))
    written = [path for method, path in net.requests if method == "PUT"]
    assert [sum(f"step_0000{step}" in path for path in written) for step in (2, STEPS)] == [1, 1]
    between = written[written.index(next(path for path in written if "step_00002" in path)) :]
    assert OWNER in "".join(between[: between.index(next(path for path in between if f"step_0000{STEPS}" in path))])


def test_what_is_made_of_a_training_goes_to_the_bucket_too(
    store: Path, trained: Path, front3d_world: Path, bucket: Remote, net: Proxy, tmp_path: Path
) -> None:
    (checkpoint,) = (trained / "train").glob(f"*_{STEPS:05d}.pth")
    (bucket / "train" / checkpoint.name).create(checkpoint)
    named = [f"{action}.checkpoint={bucket}/train/{checkpoint.name}" for action in ("evaluate", "inference", "export")]
    config = with_fetched(experiment(store, bucket, *named), "evaluate")
    beside = run_evaluation(experiment(store, tmp_path / "disk", f"evaluate.checkpoint={checkpoint}"), no_progress)
    evaluated = run_evaluation(config, no_progress)
    assert evaluated.kpi == beside.kpi
    assert evaluated.tables == bucket / "evaluate" / "tables"
    assert evaluated.run in read_table(evaluated.tables, "scores")["run"].to_pylist()
    local = {
        path.relative_to(tmp_path / "disk/evaluate").as_posix() for path in (tmp_path / "disk/evaluate/predictions").rglob("*.*")
    }
    sent = {path.below(bucket / "evaluate") for path in (bucket / "evaluate" / "predictions").walk()}
    assert sent and sent == {name for name in local if (tmp_path / "disk/evaluate" / name).is_file()}

    images = tmp_path / "images"
    images.mkdir()
    for number, image in enumerate(sorted(front3d_world.rglob("rgb_*"))[:2]):
        (images / f"{number}{image.suffix}").write_bytes(image.read_bytes())
    config = with_fetched(experiment(store, bucket, *named, f"inference.images_dir={images}"), "inference")
    assert f"2 written, 0 there already, 0 failed; in {bucket}/inference" in run_inference(config, no_progress)
    net_before = net.count("PUT", "inference/")
    assert "0 written, 2 there already" in run_inference(config, no_progress)
    assert net.count("PUT", "inference/") - net_before == 1  # whose the place is


def test_a_search_in_a_bucket_goes_on_elsewhere(
    store: Path, bucket: Remote, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    config = experiment(store, bucket, f"dataset.val.base_dir={store}")
    assert tune(config, 1, silent, silent).trials == 1
    monkeypatch.setenv("SCENEMILL_CACHE", str(tmp_path / "another"))
    tuned = tune(config, 2, silent, silent)
    assert (tuned.trials, tuned.folder) == (2, bucket / "tune")
    ours = {row["run"] for row in read_table(bucket / "tune/tables", "scores").to_pylist() if not row["published"]}
    assert len(ours) == 2


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    ended = CliRunner().invoke(
        app, ["synth", "views", str(folder / "raw"), "--object", "clock", "--views", "6", "--size", "32", "--seed", "7"]
    )
    assert ended.exit_code == 0, ended.output
    ingest(IngestConfig("views", folder / "raw", folder / "store"))
    return folder / "store"


def test_a_fit_in_a_bucket_goes_on_elsewhere(
    views: Path, bucket: Remote, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, net: Proxy
) -> None:
    monkeypatch.setattr("scenemill.pipelines.experiments.fitting._SEND_EVERY_S", 0.0)
    toy = FitConfig(epochs=3, texture_size=16)
    told: list[int] = []

    def stop(epoch: object) -> None:
        told.append(1)
        if len(told) == 3:
            raise KeyboardInterrupt

    job = FitJob(views, bucket / "fit", toy, device="cpu", tables=bucket / "numbers")
    with pytest.raises(KeyboardInterrupt):
        run_fit(job, stop)
    assert (bucket / "fit/fit.pth").is_file()
    monkeypatch.setenv("SCENEMILL_CACHE", str(tmp_path / "another"))
    fitted = run_fit(job, silent)
    assert len(told) == 3 and len(fitted.epochs) == 3
    whole = run_fit(FitJob(views, tmp_path / "whole", toy, device="cpu"), silent)
    assert [epoch.losses for epoch in fitted.epochs] == [epoch.losses for epoch in whole.epochs]
    assert (bucket / "fit/mesh.obj").read_bytes() == (tmp_path / "whole/mesh.obj").read_bytes()
    rows = [row for row in read_table(bucket / "numbers", "scores").to_pylist() if row["run"] == fitted.run]
    assert rows and {row["origin"] for row in rows} == {f"{bucket}/fit"}
