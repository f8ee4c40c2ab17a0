"""From an experiment to a training, an evaluation or predictions: finds the samples, makes the model, calls the trainers."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from scenemill.pipelines.experiments.inference import Inferred, Share, infer_folder, join_outcomes
from scenemill.pipelines.experiments.specs import resolved
from scenemill.pipelines.mirrored import Results, results_at
from scenemill.pipelines.progress import OnProgress, no_progress
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.dataset import SplitConfig
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig, results_folder
from scenemill.schemas.places import Place, Remote
from scenemill.trainers.batches import SceneDataset
from scenemill.trainers.devices import run_on_devices
from scenemill.trainers.nvpanoptix3d.stage1 import Stage1
from scenemill.trainers.nvpanoptix3d.stage2 import Stage2
from scenemill.trainers.nvpanoptix3d.weights import load_all
from scenemill.trainers.sidefiles import check_label_map
from scenemill.trainers.stages import make_stage1, make_stage2
from scenemill.trainers.train import Step, Trained, train
from scenemill.transforms.objects import place_of
from scenemill.transforms.publish import write_whole
from scenemill.transforms.store import open_store

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Samples:
    """Where the samples of a split are: a store, and the name of the split in it; None for all of the store."""

    store: Place
    split: str | None


def find_samples(config: ExperimentConfig, split: str, on_progress: OnProgress) -> Samples:
    """The store that holds a split: the one that ``base_dir`` names, or one made of the raw folder it names.

    A raw folder is ingested into a cache when it is first used, and checked for changes each time. Of several runs that do so at once
    one reads, and the others wait for it.

    Args:
        config: ``dataset.name`` and ``dataset.{train,val,test}`` count.
        split: "train", "val" or "test".
        on_progress: told of an ingest.

    Raises:
        ConfigError: nothing named, no such folder, or lists that cannot be told apart.
    """
    held: SplitConfig = getattr(config.dataset, split)
    if not held.base_dir:
        raise ConfigError(f"dataset.{split}.base_dir is empty: name a store, or a raw folder that holds data/")
    base = place_of(held.base_dir)
    if not base.is_dir():
        raise ConfigError(
            f"dataset.{split}.base_dir={held.base_dir!r}: no such folder; name a store, or a raw folder that holds data/"
        )
    name = Path(held.json_path).stem if held.json_path else None
    if (base / "zarr.json").is_file():
        return Samples(base, name)
    where = base.resolve() if isinstance(base, Path) else base
    from scenemill.pipelines.ingest import ingest  # needs Beam, which a machine that trains from a store need not have

    store = cache_folder() / hashlib.sha256(f"{config.dataset.name}:{where}".encode()).hexdigest()[:16]
    with _alone(store, on_progress):
        ingest(IngestConfig(config.dataset.name, base, store, splits=_lists(config, held.base_dir)), on_progress)
    return Samples(store, name)


@contextmanager
def _alone(store: Path, on_progress: OnProgress) -> Iterator[None]:
    """One at a time of those that use a cached store: others, such as the other machines of a training, wait until it is there."""
    store.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(store.with_name(f"{store.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        on_progress("Waiting for another run to read the raw folder", 0, 1)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def cache_folder() -> Path:
    """Where stores made of raw folders are kept: ``SCENEMILL_CACHE``, else the user's cache."""
    own = os.environ.get("SCENEMILL_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scenemill"


def _lists(config: ExperimentConfig, base_dir: str) -> tuple[str, ...]:
    """``name=path`` of every list that the splits of a raw folder name."""
    found: dict[str, str] = {}
    for split in _SPLITS:
        held: SplitConfig = getattr(config.dataset, split)
        if held.base_dir == base_dir and held.json_path:
            path = held.json_path if Path(held.json_path).is_file() else str(place_of(base_dir) / held.json_path)
            if found.setdefault(Path(path).stem, path) != path:
                raise ConfigError(f"dataset.{split}.json_path={held.json_path!r}: another list has that name; rename one")
    return tuple(f"{name}={path}" for name, path in found.items())


def open_dataset(config: ExperimentConfig, split: str, on_progress: OnProgress, *, training: bool = False) -> SceneDataset:
    """The samples of a split as a dataset; one for training has the generated images of ``base_dir`` besides, where they are asked for.

    Raises:
        ConfigError: as ``find_samples``; no samples in the split; or a label map, mask or folder of generated images that does not fit.
    """
    check_label_map(config)
    samples = find_samples(config, split, on_progress)
    store = open_store(samples.store)
    store.layout.check_built_in_classes(str(store.root))
    seed = max(0, config.train.seed)
    return SceneDataset(store, samples.split, config.dataset, training=training, seed=seed, planes=config.model.mp_occ.num_planes)


def run_training(config: ExperimentConfig, on_step: Callable[[Step], None], on_progress: OnProgress) -> Trained:
    """Train as configured; the results folder holds the resolved experiment, status, curves and checkpoints.

    Raises:
        ConfigError: the experiment does not fit the data or this machine, or the results cannot be written where they shall.
        Corrupt: a sample cannot be read.
        Conflict, TransientError: as ``results_at``.
    """
    with begun(config, "train") as results:
        training = open_dataset(config, "train", on_progress, training=True)
        validation = open_dataset(config, "val", on_progress) if config.dataset.val.base_dir else None
        return train(config, training, validation, results.folder, on_step, results.send_meanwhile)


@contextmanager
def begun(config: ExperimentConfig, action: str) -> Iterator[Results]:
    """Where the action writes, made or fetched, with the resolved experiment in it; results in a bucket are sent in the end.

    Raises:
        ConfigError: no place named, one that cannot be written, or a training of several machines whose results go to a bucket.
        Conflict, TransientError: as ``results_at``.
    """
    place = place_of(results_folder(config, action))
    if isinstance(place, Remote) and action == "train" and _has_more_machines(config):
        raise ConfigError(f"{place}: results of several machines, or by torchrun, go to a folder that all of them see; name one")
    with results_at(place, cache_folder()) as results:
        write_whole(results.folder / "experiment.yaml", resolved(config).encode())
        yield results


def _has_more_machines(config: ExperimentConfig) -> bool:
    """Whether other commands take part in a training."""
    return config.train.num_nodes > 1 or os.environ.get("WORLD_SIZE", "1") != "1"


def load_model(config: ExperimentConfig, checkpoint: str, action: str, device: Any) -> Stage1 | Stage2:
    """The network of the stage that ``dataset.enable_3d`` names, with the weights of a checkpoint, ready to predict.

    Raises:
        ConfigError: no checkpoint named, or one that does not fit.
    """
    if not checkpoint:
        raise ConfigError(f"{action}.checkpoint is empty: name a checkpoint that train wrote")
    model = make_stage2(config) if config.dataset.enable_3d else make_stage1(config)
    load_all(model, Path(checkpoint), config.encryption_key or "")
    model.to(device).eval()
    return model


def run_inference(config: ExperimentConfig, on_progress: OnProgress, *, overwrite: bool = False) -> str:
    """Predict a folder of images.

    Returns:
        What it came to, in a line.

    Raises:
        ConfigError: no checkpoint, no images, or weights that do not fit.
    """
    held = config.inference
    refuse_nodes("inference", held.num_nodes)
    if not held.images_dir:
        raise ConfigError("inference.images_dir is empty: name a folder of .jpg or .png images")
    with begun(config, "inference") as results:
        predict = partial(_infer_share, config, results.folder, on_progress, overwrite)
        done = join_outcomes(run_on_devices(predict, held.num_gpus, held.gpu_ids))
    figures = f"{done.count('written')} written, {done.count('skipped')} there already, {done.count('failed')} failed"
    failures = "".join(f"\n{failure.image}: {failure.reason}" for failure in done.failures)
    passed = f"\npassed over, not *.jpg or *.png: {', '.join(done.passed_over)}" if done.passed_over else ""
    return f"{len(done.facts)} images: {figures}; in {results.place}{failures}{passed}"


def _infer_share(
    config: ExperimentConfig, folder: Path, on_progress: OnProgress, overwrite: bool, number: int, of_all: int, device: str
) -> Inferred:
    """Predict one of several shares of a folder."""
    model = load_model(config, config.inference.checkpoint, "inference", device)
    images, told = Path(config.inference.images_dir), no_progress if number else on_progress
    return infer_folder(config, model, images, folder, told, overwrite=overwrite, share=Share(number, of_all))


def refuse_nodes(action: str, count: int) -> None:
    """Refuse several machines for what one alone does.

    Raises:
        ConfigError: there are several.
    """
    if count > 1:
        raise ConfigError(
            f"{action}.num_nodes={count}: allowed is 1. On several machines predict a folder each, or run the Beam pipeline of "
            "scenemill.pipelines.experiments.run_inference"
        )
