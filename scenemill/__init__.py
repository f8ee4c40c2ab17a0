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
    from scenemill.schemas.sample import Sample as Sample
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
    "Finding": "scenemill.schemas.tables",
    "IngestConfig": "scenemill.schemas.config",
    "Sample": "scenemill.schemas.sample",
    "SceneDataset": "scenemill.trainers.batches",
    "SceneLoader": "scenemill.trainers.batches",
    "SceneMillError": "scenemill.schemas.errors",
    "Store": "scenemill.transforms.store",
    "Timelapse": "scenemill.trainers.timelapse",
    "TimelapseParser": "scenemill.trainers.timelapse",
    "open_store": "scenemill.transforms.store",
    "place_of": "scenemill.transforms.objects",
}
__all__ = [
    "AugmentationConfig",
    "DatasetConfig",
    "Finding",
    "IngestConfig",
    "Sample",
    "SceneDataset",
    "SceneLoader",
    "SceneMillError",
    "Store",
    "Timelapse",
    "TimelapseParser",
    "__version__",
    "open_store",
    "place_of",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(_import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'scenemill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
