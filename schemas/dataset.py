"""What a model is asked to look at: the settings of images, targets and augmentation, named as in NvPanoptix3D's documentation."""

from dataclasses import dataclass, field
from typing import Final

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fields import ROOM_SOURCES
from scenemill.schemas.settings import About, refuse, settle

FLIPS: Final = ("", "horizontal", "vertical")
REFERENCE, MEASURED = GEOMETRIES = ("reference", "measured")
_GRID: Final = 256  # voxels a side of the files
_SURFACE_BAND: Final = 3.0  # voxels: occupancy of BUOL and Uni-3D, where the truncation of stage 2's distances lies as well


@dataclass(frozen=True)
class SplitConfig:
    """The samples of one split, and how they are read."""

    base_dir: str = field(default="", metadata=About(help="A store; or a raw folder, the one above data/; empty for no samples."))
    json_path: str = field(default="", metadata=About(help="Name or path of the split list; empty for all samples."))
    batch_size: int = field(default=1, metadata=About(help="Samples in a batch, per process.", least=1))
    num_workers: int = field(default=1, metadata=About(help="Processes that read.", least=0))

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class AugmentationConfig:
    """How training images are varied. Sizes in pixels; ``crop_size`` is (height, width).

    Raises:
        ConfigError: a value of another type or out of its range.
    """

    train_min_size: tuple[int, ...] = field(
        default=(448,),
        metadata=About(help="Lengths of the shorter edge, one drawn per batch.", least=1, words="lengths above 0"),
    )
    train_max_size: int = field(default=768, metadata=About(help="Cap of the longer edge when training.", least=32, most=960))
    test_min_size: int = field(default=240, metadata=About(help="Shorter edge everywhere else.", least=32, most=960))
    test_max_size: int = field(default=960, metadata=About(help="Cap of the longer edge everywhere else.", least=32, most=960))
    enable_crop: bool = field(default=False, metadata=About(help="Random crop; for images without volumes."))
    crop_size: tuple[int, int] = field(
        default=(240, 240), metadata=About(help="Size of the crop.", least=1, words="(height, width), each above 0")
    )
    single_category_max_area: float = field(
        default=1.0, metadata=About(help="Share of a crop that one class may fill; 1 is no limit.", least=0, most=1)
    )
    color_aug_ssd: bool = field(default=False, metadata=About(help="Vary brightness, contrast, saturation and hue."))
    random_flip: str = field(
        default="", metadata=About(help="Direction of random flips; for images without volumes.", options=FLIPS)
    )
    random_flip_prob: float = field(default=0.5, metadata=About(help="How often images are flipped.", least=0, most=1))
    size_divisibility: float = field(
        default=-1, metadata=About(help="Pad right and down to a multiple of this; 1 or less is off.", most=4096)
    )
    gen_aug_weight: float = field(
        default=0.0, metadata=About(help="Loss weight of generated images; 0 does not load them.", least=0, most=1)
    )
    train_crop_size: tuple[int, ...] = field(default=(240, 240), metadata=About(help="Size of the training crop.", dead=True))

    def __post_init__(self) -> None:
        settle(self)
        refuse(not self.train_min_size, "train_min_size", self.train_min_size, "lengths above 0")


@dataclass(frozen=True)
class DatasetConfig:
    """What one training, validation or test batch holds.

    ``target_size`` and ``reduced_target_size`` are (width, height), ``depth_size`` is (height, width): the documentation's order.

    Raises:
        ConfigError: a value of another type or out of its range, or two that do not fit.
    """

    train: SplitConfig = field(default_factory=SplitConfig, metadata=About(help="Samples to train on."))
    val: SplitConfig = field(default_factory=SplitConfig, metadata=About(help="Samples to validate on while training."))
    test: SplitConfig = field(default_factory=SplitConfig, metadata=About(help="Samples to evaluate on."))
    name: str = field(
        default="front3d",
        metadata=About(help="The data set; hospital and warehouse are laid out as 3D-Front.", options=ROOM_SOURCES),
    )
    label_map: str = field(
        default="", metadata=About(help="JSON list of categories (name, id, trainId, isthing, color); empty for the built-in list.")
    )
    contiguous_id: bool = field(default=False, metadata=About(help="The label map counts 1..n already; else entries go by id."))
    downsample_factor: int = field(
        default=1,
        metadata=About(
            help="The metric's grid is coarser by this; 2 for Matterport3D.",
            options=tuple(2**power for power in range(9)),
            words=f"a whole number that divides {_GRID}",
        ),
    )
    iso_value: float = field(default=1.0, metadata=About(help="Surface band of the truth in the metric, voxels.", above=0))
    frustum_mask_path: str = field(
        default="meta/frustum_mask.npz", metadata=About(help="Frustum mask of 3D-Front; empty to build it from the camera.")
    )
    ignore_label: int = field(default=255, metadata=About(help="Label of pixels that teach nothing.", least=0, most=255))
    min_instance_pixels: int = field(
        default=200, metadata=About(help="Instances with this many pixels or fewer are dropped.", least=0)
    )
    img_format: str = field(default="RGB", metadata=About(help="Order of colours, for colour augmentation.", options=("RGB",)))
    target_size: tuple[int, int] = field(
        default=(320, 240), metadata=About(help="[width, height] of the image.", least=1, words="two lengths above 0")
    )
    reduced_target_size: tuple[int, int] = field(
        default=(160, 120),
        metadata=About(help="[width, height] of the plane that stage 2 lifts from.", least=1, words="two lengths above 0"),
    )
    depth_size: tuple[int, int] = field(
        default=(120, 160),
        metadata=About(help="[height, width] of the plane that occupancy planes lie in.", least=1, words="two lengths above 0"),
    )
    depth_bound: bool = field(default=False, metadata=About(help="Clip true depth to depth_min..depth_max."))
    depth_min: float = field(default=0.4, metadata=About(help="Near end of the frustum, metres; above 0."))
    depth_max: float = field(default=6.0, metadata=About(help="Far end of the frustum, metres; above depth_min."))
    depth_scale: float = field(default=25.0, metadata=About(help="Predicted depth is clamped to this, metres.", above=0))
    occ_truncation_lvl: tuple[float, float] = field(
        default=(8.0, 6.0),
        metadata=About(
            help="Thresholds of occupancy at a quarter and at half of the grid, in voxels of the full grid.",
            above=0,
            words="two distances above 0",
        ),
    )
    truncation_range: tuple[float, float] = field(
        default=(0.0, 12.0),
        metadata=About(
            help="[1] is where distances are clipped and the full grid's threshold of occupancy, voxels; the files end at 12.",
            words="[1] above 0, at most 12",
        ),
    )
    enable_3d: bool = field(default=False, metadata=About(help="Stage 2: volumes and their targets. False is stage 1, images."))
    enable_mp_occ: bool = field(
        default=True, metadata=About(help="Read the geometry volume for multi-plane occupancy; stage 1 trains with it only.")
    )
    num_thing_classes: int = field(default=9, metadata=About(help="Class c is a thing where 1 <= c <= this.", least=0))
    stuff_classes: tuple[int, ...] | None = field(
        default=None, metadata=About(help="Classes that get one mask each; null for those of the data set.", least=0)
    )
    geometry: str = field(
        default=REFERENCE,
        metadata=About(
            help="reference: camera offsets, occupancy band and corner sampling that released weights have learned. "
            "measured: the camera where walls show it to be, a band of 3 voxels, whole maps; for new training.",
            options=GEOMETRIES,
        ),
    )
    workers: int = field(default=8, metadata=About(help="Processes that read.", least=1, dead=True))
    pin_memory: bool = field(default=True, metadata=About(help="Pin memory; it is pinned where there is a GPU.", dead=True))
    augmentation: AugmentationConfig = field(
        default_factory=AugmentationConfig, metadata=About(help="How images are resized, padded and varied.")
    )

    def __post_init__(self) -> None:
        settle(self)
        refuse(not 0 < self.depth_min < self.depth_max, "depth_min, depth_max", (self.depth_min, self.depth_max), "0 < min < max")
        refuse(not 0 < self.truncation_range[1] <= 12, "truncation_range", self.truncation_range, "[1] above 0, at most 12")
        volumes = self.enable_3d or self.enable_mp_occ
        moved = self.augmentation.enable_crop or self.augmentation.random_flip
        if volumes and moved:
            raise ConfigError(
                "random_flip and enable_crop move the image but not the volumes behind it: use them with enable_3d=False and "
                "enable_mp_occ=False"
            )

    @property
    def occupancy_band(self) -> float:
        """Voxels nearer to a surface than this, in voxels of the full grid, are occupied there and in the occupancy planes.

        Source: NvPanoptix3D takes ``truncation_range[1]``, 12 by default; BUOL, the origin of the planes, and Uni-3D take 3.
        """
        return self.truncation_range[1] if self.geometry == REFERENCE else min(_SURFACE_BAND, self.truncation_range[1])
