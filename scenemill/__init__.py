"""scenemill: the data mill for 3D indoor scenes.

Raw folders of 3D-Front and Matterport3D become checked samples, a sharded Zarr/Arrow store, batches, predictions and tables.
The names below are the public ones; each is imported when it is first used, so that ``import scenemill`` costs nothing.
"""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_root = _Path(__file__).resolve().parent.parent
if (_root / "setup.cfg").is_file() and (_root / "pipelines" / "__init__.py").is_file():
    __path__.append(str(_root))  # a source checkout: scenemill.<folder> is importable without installing
del _Path, _root

if TYPE_CHECKING:
    from scenemill.pipelines.conformance import broken_promises as broken_promises
    from scenemill.pipelines.experiments.fitting import FitJob as FitJob
    from scenemill.pipelines.experiments.fitting import run_fit as run_fit
    from scenemill.pipelines.ingest import ingest as ingest
    from scenemill.pipelines.jobs.client import JobClient as JobClient
    from scenemill.pipelines.predictions import Prediction as Prediction
    from scenemill.pipelines.predictions import write_prediction as write_prediction
    from scenemill.pipelines.query import query as query
    from scenemill.pipelines.score import ScoreConfig as ScoreConfig
    from scenemill.pipelines.score import score as score
    from scenemill.pipelines.viewer.server import serve as serve
    from scenemill.schemas.config import IngestConfig as IngestConfig
    from scenemill.schemas.dataset import AugmentationConfig as AugmentationConfig
    from scenemill.schemas.dataset import DatasetConfig as DatasetConfig
    from scenemill.schemas.errors import SceneMillError as SceneMillError
    from scenemill.schemas.errors import SourceError as SourceError
    from scenemill.schemas.fields import Field as Field
    from scenemill.schemas.forms import Form as Form
    from scenemill.schemas.forms import Listed as Listed
    from scenemill.schemas.forms import RawFile as RawFile
    from scenemill.schemas.forms import fill as fill
    from scenemill.schemas.labels import Label as Label
    from scenemill.schemas.sample import Sample as Sample
    from scenemill.schemas.sample import SampleKey as SampleKey
    from scenemill.schemas.tables import Finding as Finding
    from scenemill.trainers.batches import SceneDataset as SceneDataset
    from scenemill.trainers.batches import SceneLoader as SceneLoader
    from scenemill.trainers.timelapse import Timelapse as Timelapse
    from scenemill.trainers.timelapse import TimelapseParser as TimelapseParser
    from scenemill.transforms.objects import place_of as place_of
    from scenemill.transforms.store import Store as Store
    from scenemill.transforms.store import open_store as open_store
    from scenemill.transforms.worlds import write_world as write_world

_HOMES = {
    "AugmentationConfig": "scenemill.schemas.dataset",
    "DatasetConfig": "scenemill.schemas.dataset",
    "Field": "scenemill.schemas.fields",
    "Finding": "scenemill.schemas.tables",
    "FitJob": "scenemill.pipelines.experiments.fitting",
    "Form": "scenemill.schemas.forms",
    "IngestConfig": "scenemill.schemas.config",
    "JobClient": "scenemill.pipelines.jobs.client",
    "Label": "scenemill.schemas.labels",
    "Listed": "scenemill.schemas.forms",
    "Prediction": "scenemill.pipelines.predictions",
    "RawFile": "scenemill.schemas.forms",
    "Sample": "scenemill.schemas.sample",
    "SampleKey": "scenemill.schemas.sample",
    "SceneDataset": "scenemill.trainers.batches",
    "SceneLoader": "scenemill.trainers.batches",
    "SceneMillError": "scenemill.schemas.errors",
    "ScoreConfig": "scenemill.pipelines.score",
    "SourceError": "scenemill.schemas.errors",
    "Store": "scenemill.transforms.store",
    "Timelapse": "scenemill.trainers.timelapse",
    "TimelapseParser": "scenemill.trainers.timelapse",
    "broken_promises": "scenemill.pipelines.conformance",
    "fill": "scenemill.schemas.forms",
    "ingest": "scenemill.pipelines.ingest",
    "open_store": "scenemill.transforms.store",
    "place_of": "scenemill.transforms.objects",
    "query": "scenemill.pipelines.query",
    "run_fit": "scenemill.pipelines.experiments.fitting",
    "score": "scenemill.pipelines.score",
    "serve": "scenemill.pipelines.viewer.server",
    "write_prediction": "scenemill.pipelines.predictions",
    "write_world": "scenemill.transforms.worlds",
}
__all__ = [
    "AugmentationConfig",
    "DatasetConfig",
    "Field",
    "Finding",
    "FitJob",
    "Form",
    "IngestConfig",
    "JobClient",
    "Label",
    "Listed",
    "Prediction",
    "RawFile",
    "Sample",
    "SampleKey",
    "SceneDataset",
    "SceneLoader",
    "SceneMillError",
    "ScoreConfig",
    "SourceError",
    "Store",
    "Timelapse",
    "TimelapseParser",
    "__version__",
    "broken_promises",
    "fill",
    "ingest",
    "open_store",
    "place_of",
    "query",
    "run_fit",
    "score",
    "serve",
    "write_prediction",
    "write_world",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(_import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'scenemill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
