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

_HOMES = {
    "AugmentationConfig": "scenemill.schemas.dataset",
    "DatasetConfig": "scenemill.schemas.dataset",
    "Field": "scenemill.schemas.fields",
    "Finding": "scenemill.schemas.tables",
    "Form": "scenemill.schemas.forms",
    "IngestConfig": "scenemill.schemas.config",
    "Label": "scenemill.schemas.labels",
    "Listed": "scenemill.schemas.forms",
    "RawFile": "scenemill.schemas.forms",
    "Sample": "scenemill.schemas.sample",
    "SampleKey": "scenemill.schemas.sample",
    "SceneDataset": "scenemill.trainers.batches",
    "SceneLoader": "scenemill.trainers.batches",
    "SceneMillError": "scenemill.schemas.errors",
    "SourceError": "scenemill.schemas.errors",
    "Store": "scenemill.transforms.store",
    "Timelapse": "scenemill.trainers.timelapse",
    "TimelapseParser": "scenemill.trainers.timelapse",
    "fill": "scenemill.schemas.forms",
    "open_store": "scenemill.transforms.store",
    "place_of": "scenemill.transforms.objects",
}
__all__ = [
    "AugmentationConfig",
    "DatasetConfig",
    "Field",
    "Finding",
    "Form",
    "IngestConfig",
    "Label",
    "Listed",
    "RawFile",
    "Sample",
    "SampleKey",
    "SceneDataset",
    "SceneLoader",
    "SceneMillError",
    "SourceError",
    "Store",
    "Timelapse",
    "TimelapseParser",
    "__version__",
    "fill",
    "open_store",
    "place_of",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(_import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'scenemill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
