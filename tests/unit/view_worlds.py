"""Made-up things for the viewer to show: a store, predictions of its samples, and their scores."""

from pathlib import Path

import numpy as np

from scenemill import open_store
from scenemill.pipelines.ingest import ingest
from scenemill.pipelines.predictions import Prediction, write_prediction
from scenemill.pipelines.score import ScoreConfig, score
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.sample import Sample


def told_of(sample: Sample) -> Prediction:
    """The truth of a sample as a prediction of it; the first segment of the image is forgotten."""
    instance, labels = sample["instance_2d"].astype(np.int32), sample["semantic_2d"].astype(int)
    names = np.unique(instance[instance > 0]).tolist()
    instance[instance == names[0]] = 0
    classes = {name: int(np.bincount(labels[instance == name]).argmax()) for name in names[1:]}
    volume, held = sample["instance_3d"].astype(np.int32), sample["semantic_3d"].astype(int)
    classes_3d = {name: int(np.bincount(held[volume == name]).argmax()) for name in np.unique(volume[volume > 0]).tolist()}
    return Prediction(instance, classes, sample["depth"], volume, classes_3d, sample["geometry"])


def write_samples(raw: Path, folder: Path, predictions: int) -> None:
    """A store of a raw 3D-Front folder, predictions of its first samples, and the tables of a run: "store", "told", "tables"."""
    ingest(IngestConfig("front3d", raw, folder / "store"))
    store = open_store(folder / "store")
    for key in store.keys[:predictions]:
        write_prediction(folder / "told", key, told_of(store.read(key)))
    score(ScoreConfig(folder / "told", folder / "store", folder / "tables", model="ours"))
