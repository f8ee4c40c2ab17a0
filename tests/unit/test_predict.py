"""What stage 1 finds in images: the settings' rules, the sizes, the preparation, and a model that is left as it was."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scenemill.pipelines.experiments.specs import load_spec
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.trainers.augment import resize_rgb
from scenemill.trainers.nvpanoptix3d.postprocess import PanopticImage, Rules, postprocess, postprocess_reduced
from scenemill.trainers.nvpanoptix3d.stage1 import Stage1, Stage1Output
from scenemill.trainers.predict import evaluating, images_of, predict_images, predict_reduced, prepare_image, rules_of, stack_images

SPEC = Path(__file__).resolve().parents[2] / "pipelines" / "experiments" / "shipped" / "tiny_front3d_2d.yaml"
KEEP_ALL = ("model.object_mask_threshold=0", "model.overlap_threshold=0")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads of a small model spend their time waiting for each other where other work shares the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(*overrides: str) -> ExperimentConfig:
    return load_spec(SPEC, list(overrides))


@pytest.fixture(scope="module")
def config() -> ExperimentConfig:
    return config_of(*KEEP_ALL)


@pytest.fixture(scope="module")
def model(config: ExperimentConfig) -> Stage1:
    torch.manual_seed(3)
    return Stage1(config.model, config.dataset.depth_size)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (2, 3, 256, 320), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


UNPADDED = [(240, 320), (200, 300)]


def check_same(found: list[PanopticImage], expected: list[PanopticImage]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.segments == other.segments
        for name in ("panoptic_seg", "depth", "semantic"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def output_of(model: Stage1, images: Tensor) -> Stage1Output:
    with evaluating(model), torch.no_grad():
        output: Stage1Output = model(images)
        return output


def test_rules_are_those_of_the_settings() -> None:
    config = config_of(
        "model.object_mask_threshold=0.3", "model.overlap_threshold=0.6", "dataset.num_thing_classes=7", "dataset.depth_scale=9"
    )
    assert rules_of(config) == Rules(0.3, 0.6, 7, 9.0)


def test_rules_take_the_things_of_a_label_map(tmp_path: Path) -> None:
    entries = [
        {"id": id, "trainId": id, "isthing": thing, "name": f"no {id}", "color": [0, 0, id]} for id, thing in ((2, 0), (11, 1))
    ]
    (tmp_path / "map.json").write_text(json.dumps(entries))
    settings = (f"dataset.label_map={tmp_path / 'map.json'}", "dataset.contiguous_id=false", "dataset.num_thing_classes=4")
    rules = rules_of(config_of(*settings))
    assert rules.things == (1, 3, 4, 11)
    assert [label for label in range(14) if rules.is_thing(label)] == [1, 3, 4, 11]


def test_images_are_predicted_at_their_own_sizes(model: Stage1, images: Tensor, config: ExperimentConfig) -> None:
    found = predict_images(model, images, UNPADDED, config)
    output = output_of(model, images)
    expected = postprocess(
        output.pred_logits, output.pred_masks, output.pred_depths, (256, 320), UNPADDED, rules=Rules(0.0, 0.0, 9, 25.0)
    )
    assert [tuple(image.depth.shape) for image in found] == UNPADDED
    assert all(image.segments for image in found)
    check_same(found, expected)


def test_files_have_the_reduced_size_whatever_the_image_has(model: Stage1, images: Tensor) -> None:
    config = config_of(*KEEP_ALL, "dataset.reduced_target_size=[160,120]")
    found = predict_reduced(model, images, UNPADDED, config)
    output = output_of(model, images)
    expected = postprocess_reduced(
        output.pred_logits, output.pred_masks, output.pred_depths, (256, 320), UNPADDED, (120, 160), rules=rules_of(config)
    )
    assert [tuple(image.panoptic_seg.shape) for image in found] == [(120, 160)] * 2
    check_same(found, expected)


@pytest.mark.parametrize("height", [240, 225])
def test_padding_by_the_network_is_as_padding_by_the_loader(
    model: Stage1, images: Tensor, config: ExperimentConfig, height: int
) -> None:
    cut, sizes = images[:, :, :height], [(height, 320)] * 2
    padded = torch.zeros_like(images)
    padded[:, :, :height] = cut
    for predict in (predict_images, predict_reduced):
        check_same(predict(model, cut, sizes, config), predict(model, padded, sizes, config))


def test_depth_outside_the_room_is_zero_at_every_size(model: Stage1, images: Tensor, config: ExperimentConfig) -> None:
    room = torch.zeros(2, 256, 320, dtype=torch.bool)
    room[:, :240, 80:160] = True
    for size in (None, (120, 160)):
        sizes = [(240, 320)] * 2
        bare = predict_images(model, images, sizes, config, size=size)
        found = predict_images(model, images, sizes, config, room, size=size)
        for image, other in zip(found, bare, strict=True):
            step = 1 if size is None else 2
            inside = torch.zeros(image.depth.shape, dtype=torch.bool)
            inside[:, 80 // step : 160 // step] = True
            assert torch.equal(image.depth, torch.where(inside, other.depth, 0)) and (other.depth > 0).any()
    (reduced, _) = predict_reduced(model, images, sizes, config, room[:, :240])
    assert not reduced.depth[:, :10].any() and not reduced.depth[:, 20:].any() and reduced.depth.shape == (30, 40)


def test_numbers_of_mixed_precision_are_taken_in_full(model: Stage1, images: Tensor, config: ExperimentConfig) -> None:
    output = output_of(model, images)
    halved = output._replace(
        pred_logits=output.pred_logits.bfloat16(),
        pred_masks=output.pred_masks.bfloat16(),
        pred_depths=output.pred_depths.bfloat16(),
    )
    assert all(image.depth.dtype == torch.float32 for image in images_of(halved, (256, 320), UNPADDED, config))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_model_in_training_is_left_as_it_was(images: Tensor, config: ExperimentConfig, recompute: bool) -> None:
    torch.manual_seed(3)
    model = Stage1(config.model, config.dataset.depth_size, recompute=recompute).train()
    model.sem_seg_head.pixel_decoder.eval()  # a part that a user has frozen
    before = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    predict_images(model, images, UNPADDED, config)
    assert {name: module.training for name, module in model.named_modules()} == before and before["sem_seg_head"]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model(images).pred_masks.sum().backward()  # nothing kept from prediction stands in the way of training


def test_modes_return_also_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    model[1].eval()
    with pytest.raises(ValueError, match="lost"), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise ValueError("lost")
    assert [module.training for module in model.modules()] == [True, True, False]


def test_an_image_of_any_size_is_prepared_as_the_loader_does(config: ExperimentConfig) -> None:
    rgb = np.random.default_rng(2).integers(0, 256, (480, 500, 3), dtype=np.uint8)
    view = prepare_image(rgb, config.dataset)
    assert view.rgb.shape == (256, 320, 3) and view.unpadded_shape == (240, 320)
    assert np.array_equal(view.rgb[:240], resize_rgb(rgb, (320, 240), "bicubic")) and (view.rgb[240:] == 128).all()
    stacked = stack_images([view.rgb, view.rgb])
    assert stacked.shape == (2, 3, 256, 320) and np.array_equal(stacked[1].permute(1, 2, 0).numpy(), view.rgb)
