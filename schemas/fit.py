"""Settings of a fit: how a textured mesh is bent until it looks like the views of an object.

Source: the two versions of Kaolin's DIB-R tutorial, whose numbers are the presets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from scenemill.schemas.settings import About, settings, settle


@dataclass(frozen=True)
class FitConfig:
    """One fit. Learning rates and the Laplacian term are lengths of a scene in which the template has the radius ``radius``: scenes of
    any other size are scaled to it, and results scaled back.

    Raises:
        ConfigError: a value of another type or out of range.
    """

    epochs: int = field(default=50, metadata=About(help="Passes over the views.", least=1))
    batch_size: int = field(default=2, metadata=About(help="Views of a step.", least=1))
    image_weight: float = field(default=0.1, metadata=About(help="Weight of the mean absolute difference of images.", least=0))
    mask_weight: float = field(default=1.0, metadata=About(help="Weight of 1 - IoU of the soft masks.", least=0))
    laplacian_weight: float = field(default=0.03, metadata=About(help="Weight of uneven moves of vertices.", least=0))
    flat_weight: float = field(default=0.0, metadata=About(help="Weight of folds at edges; needs a closed template.", least=0))
    vertex_lr: float = field(default=5e-4, metadata=About(help="Learning rate of vertices and shift.", above=0))
    texture_lr: float = field(default=5e-2, metadata=About(help="Learning rate of the texture.", above=0))
    lr_step: int = field(default=20, metadata=About(help="Epochs after which learning rates are multiplied by gamma.", least=1))
    gamma: float = field(default=0.5, metadata=About(help="See lr_step.", above=0, most=1))
    texture_size: int = field(default=400, metadata=About(help="Texels a side of the texture.", least=2, most=8192))
    radius: float = field(default=0.375, metadata=About(help="Of the template, to which the scene is scaled.", above=0))
    scale: float | None = field(
        default=None,
        metadata=About(
            help="Of the template as its file has it, around the origin; null to place it by masks and cameras.", above=0
        ),
    )
    sigmainv: float = field(default=7000.0, metadata=About(help="Sharpness of the soft mask.", above=0))
    boxlen: float = field(default=0.02, metadata=About(help="Reach of the soft mask, image units.", above=0))
    knum: int = field(default=30, metadata=About(help="Faces that count at a pixel of the soft mask.", least=1))
    patience: int = field(
        default=0, metadata=About(help="Epochs without a better held-out IoU after which a fit ends; 0 for never.", least=0)
    )
    seed: int = field(default=0, metadata=About(help="Of the order of views.", least=0))

    def __post_init__(self) -> None:
        settle(self)


PRESETS: Final[Mapping[str, FitConfig]] = {
    "current": FitConfig(),
    "original": FitConfig(epochs=40, laplacian_weight=0.1, flat_weight=0.001, vertex_lr=5e-2, lr_step=15, radius=37.5),
}
"""By name: the tutorial as it is, and as it first was."""


def told(config: FitConfig) -> dict[str, Any]:
    """The settings by name, as JSON takes them.

    >>> told(PRESETS["original"])["laplacian_weight"]
    0.1
    """
    return {setting.name: getattr(config, setting.name) for setting in settings(FitConfig)}
