"""Settings of batches and of augmentation are refused where they are made: the field, its value, and what is allowed."""

import pickle
import re
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from scenemill.schemas.dataset import FLIPS, AugmentationConfig, DatasetConfig
from scenemill.schemas.errors import ConfigError

NAN = float("nan")


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("train_min_size", (), "lengths above 0"),
        ("train_min_size", (240, 0), "lengths above 0"),
        ("train_max_size", 31, "32..960"),
        ("train_max_size", 961, "32..960"),
        ("test_min_size", 0, "32..960"),
        ("test_min_size", 1000, "32..960"),
        ("test_max_size", -1, "32..960"),
        ("crop_size", (240,), "(height, width), each above 0"),
        ("crop_size", (240, 0), "(height, width), each above 0"),
        ("crop_size", (240, 240, 3), "(height, width), each above 0"),
        ("crop_size", (240.0, 240), "(height, width), each above 0"),
        ("single_category_max_area", -0.1, "0..1"),
        ("single_category_max_area", 1.1, "0..1"),
        ("single_category_max_area", NAN, "0..1"),
        ("random_flip_prob", -1, "0..1"),
        ("random_flip_prob", 2.0, "0..1"),
        ("random_flip", "both", "'', 'horizontal', 'vertical'"),
        ("random_flip", "Horizontal", "'', 'horizontal', 'vertical'"),
    ],
)
def test_augmentation_out_of_its_range_is_refused(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{field}={value!r}: allowed is {allowed}")):
        AugmentationConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("target_size", (320, 0), "two lengths above 0"),
        ("target_size", (320,), "two lengths above 0"),
        ("reduced_target_size", (-160, 120), "two lengths above 0"),
        ("depth_size", (120, 160, 1), "two lengths above 0"),
        ("depth_size", (120.5, 160), "two lengths above 0"),
        ("occ_truncation_lvl", (8.0, 0.0), "two distances above 0"),
        ("occ_truncation_lvl", (-8.0, 6.0), "two distances above 0"),
        ("truncation_range", (0.0, 0.0), "[1] above 0, at most 12"),
        ("truncation_range", (0.0, -3.0), "[1] above 0, at most 12"),
        ("truncation_range", (0.0, 12.5), "[1] above 0, at most 12"),
        ("truncation_range", (0.0, NAN), "[1] above 0, at most 12"),
        ("ignore_label", -1, "0..255"),
        ("ignore_label", 256, "0..255"),
        ("min_instance_pixels", -1, "0 or more"),
    ],
)
def test_a_dataset_out_of_its_range_is_refused(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{field}={value!r}: allowed is {allowed}")):
        DatasetConfig(**{field: value})


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-0.4, 6.0), (6.0, 6.0), (6.0, 0.4), (NAN, 6.0), (0.4, NAN)])
def test_depths_that_bound_nothing_are_refused(low: float, high: float) -> None:
    said = re.escape(f"depth_min, depth_max=({low!r}, {high!r}): allowed is 0 < min < max")
    with pytest.raises(ConfigError, match=said):
        DatasetConfig(depth_min=low, depth_max=high)


@pytest.mark.parametrize(
    "changed",
    [
        {"train_min_size": (1,)},
        {"train_min_size": (240, 480, 7)},
        {"train_max_size": 32},
        {"test_max_size": 960},
        {"single_category_max_area": 0.0},
        {"random_flip_prob": 1.0},
        {"size_divisibility": 32},
        *({"random_flip": flip} for flip in FLIPS),
    ],
)
def test_augmentation_at_the_ends_of_its_range_is_accepted(changed: dict[str, Any]) -> None:
    made = AugmentationConfig(**changed)
    assert {name: getattr(made, name) for name in changed} == changed


@pytest.mark.parametrize(
    "changed",
    [
        {"truncation_range": (0.0, 12.0)},
        {"truncation_range": (0.0, 3.0)},
        {"ignore_label": 0},
        {"min_instance_pixels": 0},
        {"occ_truncation_lvl": (20.0, 0.5)},
        {"target_size": (1, 1)},
    ],
)
def test_a_dataset_at_the_ends_of_its_range_is_accepted(changed: dict[str, Any]) -> None:
    made = DatasetConfig(**changed)
    assert {name: getattr(made, name) for name in changed} == changed


@pytest.mark.parametrize("moved", [{"enable_crop": True}, {"random_flip": "horizontal"}, {"random_flip": "vertical"}])
@pytest.mark.parametrize(("enable_3d", "enable_mp_occ"), [(True, True), (True, False), (False, True)])
def test_flips_and_crops_are_refused_where_volumes_lie_behind_the_image(
    moved: dict[str, Any], enable_3d: bool, enable_mp_occ: bool
) -> None:
    said = "move the image but not the volumes behind it: use them with enable_3d=False and enable_mp_occ=False"
    with pytest.raises(ConfigError, match=said):
        DatasetConfig(enable_3d=enable_3d, enable_mp_occ=enable_mp_occ, augmentation=AugmentationConfig(**moved))


@pytest.mark.parametrize("moved", [{"enable_crop": True}, {"random_flip": "horizontal"}, {"random_flip": "vertical"}])
def test_images_alone_may_be_flipped_and_cropped(moved: dict[str, Any]) -> None:
    made = DatasetConfig(enable_3d=False, enable_mp_occ=False, augmentation=AugmentationConfig(**moved))
    assert {name: getattr(made.augmentation, name) for name in moved} == moved


def test_settings_never_change_and_pass_between_processes() -> None:
    config = DatasetConfig(enable_3d=True, augmentation=AugmentationConfig(color_aug_ssd=True))
    assert pickle.loads(pickle.dumps(config)) == config and hash(config) == hash(pickle.loads(pickle.dumps(config)))
    for made in (config, config.augmentation):
        for field in fields(made):
            with pytest.raises(FrozenInstanceError):
                setattr(made, field.name, None)


def test_the_documented_defaults_are_the_defaults() -> None:
    config, varied = DatasetConfig(), AugmentationConfig()
    assert (config.enable_3d, config.enable_mp_occ) == (False, True)
    assert (config.target_size, config.reduced_target_size, config.depth_size) == ((320, 240), (160, 120), (120, 160))
    assert (config.depth_bound, config.depth_min, config.depth_max) == (False, 0.4, 6.0)
    assert (config.occ_truncation_lvl, config.truncation_range) == ((8.0, 6.0), (0.0, 12.0))
    assert (config.ignore_label, config.min_instance_pixels, config.num_thing_classes) == (255, 200, 9)
    assert (varied.test_min_size, varied.test_max_size, varied.size_divisibility) == (240, 960, -1)
    assert (varied.enable_crop, varied.color_aug_ssd, varied.random_flip) == (False, False, "")
