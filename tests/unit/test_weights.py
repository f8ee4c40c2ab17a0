"""Weights into the network: every name and shape, at full size; what is not the network's is named, and nothing is half loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scenemill.schemas.errors import ConfigError, Corrupt
from scenemill.schemas.experiment import BackboneConfig, MaskFormerConfig, ModelConfig, MpOccConfig, SemSegHeadConfig
from scenemill.trainers.checkpoint import PREFIXES, save_checkpoint
from scenemill.trainers.nvpanoptix3d.stage1 import Stage1
from scenemill.trainers.nvpanoptix3d.weights import load_all, load_stage1, load_stage2, load_vggt, restore

TINY = ModelConfig(
    backbone=BackboneConfig(
        input_width=112,
        embed_dim=64,
        num_heads=4,
        depth=4,
        patch_depth=2,
        patch_heads=4,
        pos_grid=16,
        tap_layers=(0, 1, 2, 3),
        camera_depth=1,
        dpt_features=32,
        dpt_channels=(16, 24, 32, 32),
        pixel_channels=(8, 16, 32, 64),
    ),
    sem_seg_head=SemSegHeadConfig(convs_dim=32, mask_dim=32, depth_dim=32, transformer_enc_layers=1),
    mask_former=MaskFormerConfig(
        num_object_queries=16, nheads=4, hidden_dim=32, dec_layers=4, transformer_dim_feedforward=64, dim_feedforward=64
    ),
    mp_occ=MpOccConfig(num_planes=24),
)
STAGE_2 = {"completion.input_encoders.0.conv1.weight": (27, 2, 16), "projector.conv_block1.0.weight": (256, 256, 3, 3)}


def tiny(seed: int) -> Stage1:
    torch.manual_seed(seed)
    model = Stage1(TINY, (30, 40)).eval()
    for buffer in model.buffers():
        if buffer.is_floating_point() and buffer.dim() == 1 and len(buffer) > 3:
            buffer.add_(torch.rand_like(buffer) * 0.1)
    return model


@pytest.fixture(scope="module")
def full() -> Stage1:
    """Every parameter of the network at full size, and not a byte of them."""
    with torch.device("meta"):
        return Stage1(ModelConfig(), (120, 160))


@pytest.fixture(scope="module")
def trained() -> Stage1:
    return tiny(1)


def stored(model: nn.Module, prefix: str = "model.") -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}


def meta(names: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in names.items()}


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_round_trip_gives_equal_outputs(trained: Stage1, tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "model.pth"
    save_checkpoint(path, {"state_dict": {**stored(trained, prefix), "criterion.empty_weight": torch.ones(14)}, "epoch": 1})
    model = tiny(2)
    assert not equal(model.state_dict(), trained.state_dict())
    load_all(model, path)
    assert equal(model.state_dict(), trained.state_dict())
    assert [each.requires_grad for each in model.parameters()] == [each.requires_grad for each in trained.parameters()]
    if not prefix:
        images = torch.randint(0, 256, (1, 3, 60, 80), dtype=torch.uint8)
        with torch.no_grad():
            one, other = trained(images), model(images)
        for name in ("pred_logits", "pred_masks", "pred_depths", "occupancy_preds"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_loaded_weights_are_the_models_own(trained: Stage1, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_checkpoint(path, {"state_dict": stored(trained)})
    model = tiny(2)
    load_all(model, path)
    path.write_bytes(b"")
    assert equal(model.state_dict(), trained.state_dict())


def test_stage_1_takes_the_depth_projector_and_leaves_stage_2_alone(trained: Stage1, tmp_path: Path) -> None:
    path = tmp_path / "stage2.pth"
    others = {f"model.{name}": torch.ones(shape) for name, shape in STAGE_2.items()}
    save_checkpoint(path, {"state_dict": stored(trained) | others})
    model = tiny(2)
    completion = nn.Linear(2, 2)
    model.add_module("completion", completion)
    before = completion.weight.clone()
    load_stage1(model, path)
    found = model.state_dict()
    projector = [name for name in found if name.startswith("sem_seg_head.depth_projector.")]
    assert len(projector) == 36
    assert all(torch.equal(found[name], tensor) for name, tensor in trained.state_dict().items())
    assert torch.equal(completion.weight, before)


def test_stage_2_takes_its_own_parts_alone(trained: Stage1, tmp_path: Path) -> None:
    path = tmp_path / "stage2.pth"
    source, model = nn.Module(), nn.Module()
    for each in (source, model):
        each.completion, each.projector, each.backbone = nn.Linear(2, 3), nn.Conv2d(2, 2, 1), nn.Linear(2, 2)
    before = model.state_dict()["backbone.weight"].clone()
    save_checkpoint(path, {"state_dict": stored(source)})
    load_stage2(model, path)
    for name in ("completion", "projector"):
        assert equal(model.get_submodule(name).state_dict(), source.get_submodule(name).state_dict())
    assert torch.equal(model.state_dict()["backbone.weight"], before)
    save_checkpoint(path, {"state_dict": stored(trained)})
    with pytest.raises(ConfigError, match=r"4 missing: completion\.weight, completion\.bias, projector\.weight, \.\.\."):
        load_stage2(model, path)


def test_every_weight_of_stage_1_is_asked_for_at_full_size(full: Stage1, tmp_path: Path) -> None:
    weights = stored(full)
    assert len(weights) == 1998
    path = tmp_path / "stage1.pth"
    save_checkpoint(path, {"state_dict": weights})
    load_all(full, path)
    load_stage1(full, path)
    del weights["model.sem_seg_head.depth_projector.proj_convs2.3.bias"]
    save_checkpoint(path, {"state_dict": weights})
    with pytest.raises(ConfigError, match=r"1 missing: sem_seg_head\.depth_projector\.proj_convs2\.3\.bias\. Check"):
        load_stage1(full, path)


def test_a_released_stage_2_file_gives_every_weight_of_stage_1(full: Stage1, tmp_path: Path) -> None:
    path = tmp_path / "released.pth"
    others: dict[str, tuple[int, ...]] = {f"model.completion.level.{place}.weight": (27, 16, 16) for place in range(88)}
    others |= {f"model.projector.conv_block1.{place}.weight": (256,) for place in range(9)}
    weights = stored(full) | meta(others)
    assert len(weights) == 2095
    save_checkpoint(path, {"state_dict": weights | meta({"criterion.empty_weight": (14,)}), "epoch": 9, "global_step": 100})
    load_stage1(full, path)
    with pytest.raises(ConfigError, match=r"97 unexpected: completion\.level\.0\.weight, .*, \.\.\."):
        load_all(full, path)


def test_released_vggt_weights_fit_at_full_size(full: Stage1, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    own = {name: tensor for name, tensor in full.backbone.state_dict().items() if not name.startswith("dpt2pixeldecoder.")}
    assert len(own) == 1210 + 69 + 62
    torch.save(own | meta({"point_head.norm.weight": (2048,), "track_head.tracker.a": (3,)}), path)
    load_vggt(full.backbone, path)


def test_vggt_weights_are_copied_and_the_pixel_decoders_stay(trained: Stage1, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    source = {name: value for name, value in trained.backbone.state_dict().items() if not name.startswith("dpt2pixel")}
    torch.save(source | {"track_head.a": torch.zeros(2)}, path)
    model = tiny(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_vggt(model.backbone, path)
    after = model.state_dict()
    for name, tensor in after.items():
        came = name.removeprefix("backbone.") in source and name.startswith("backbone.")
        assert torch.equal(tensor, source[name.removeprefix("backbone.")] if came else before[name]), name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"camera_head.trunk_norm.bias": None}, r"1 missing: camera_head\.trunk_norm\.bias"),
        ({"aggregator.extra": torch.zeros(1)}, r"1 unexpected: aggregator\.extra"),
        ({"other_head.a": torch.zeros(1)}, r"1 unexpected: other_head\.a"),
        ({"dpt2pixeldecoder.norm.bias": torch.zeros(128)}, r"1 unexpected: dpt2pixeldecoder\.norm\.bias"),
        ({"depth_head.norm.weight": torch.zeros(2, 3)}, r"1 of another shape: depth_head\.norm\.weight 2x3 for 128"),
        ({"depth_head.norm.weight": 7}, r"1 of another shape: depth_head\.norm\.weight int for 128"),
        ({"aggregator.camera_token": None, "a.b": torch.zeros(1)}, r"1 missing: aggregator\.camera_token; 1 unexpected: a\.b"),
    ],
)
def test_vggt_weights_that_do_not_fit_are_named_and_nothing_is_loaded(
    trained: Stage1, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "model.pt"
    weights: dict[str, Any] = {
        name: value for name, value in trained.backbone.state_dict().items() if not name.startswith("dpt2pixel")
    } | change
    torch.save({name: value for name, value in weights.items() if value is not None}, path)
    model = tiny(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match=rf"VGGT weights .*model\.pt: .*nothing was loaded\. {said}"):
        load_vggt(model.backbone, path)
    assert equal(model.state_dict(), before)


def test_weights_of_other_settings_are_counted_and_the_first_named(trained: Stage1, full: Stage1, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_checkpoint(path, {"state_dict": stored(trained)})
    with pytest.raises(ConfigError, match=r"\d+ missing: .*, \.\.\.; \d+ of another shape: backbone\.\S+ \S+ for \S+, "):
        load_stage1(full, path)


def test_a_part_of_no_stage_is_unexpected(trained: Stage1, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_checkpoint(path, {"state_dict": {**stored(trained), "model.projectors.a": torch.zeros(1)}})
    with pytest.raises(ConfigError, match=r"1 unexpected: projectors\.a"):
        load_stage1(tiny(2), path)


def test_a_document_that_was_read_already_is_restored(trained: Stage1) -> None:
    model = tiny(2)
    restore(model, {"state_dict": stored(trained)}, Path("model.pth"))
    assert equal(model.state_dict(), trained.state_dict())


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"state_dict": "AAAA"}, "state_dict is a str; a file that another tool encrypted"),
        ({"state_dict": {}}, r"model\.pth: no weights of this network: .*found nothing"),
        ({"epoch": 1}, r"model\.pth: no weights of this network: .*found epoch"),
    ],
)
def test_a_checkpoint_without_weights_says_so(tmp_path: Path, document: dict[str, Any], said: str) -> None:
    path = tmp_path / "model.pth"
    save_checkpoint(path, document)
    for load in (load_all, load_stage1, load_stage2):
        with pytest.raises(ConfigError, match=said):
            load(nn.Module(), path)


def test_paths_that_do_not_exist_or_are_broken_are_errors(tmp_path: Path) -> None:
    model = nn.Module()
    for load in (load_all, load_stage1, load_stage2):
        with pytest.raises(ConfigError, match="no such file"):
            load(model, tmp_path / "none.pth")
    with pytest.raises(ConfigError, match="no such file"):
        load_vggt(model, tmp_path / "none.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04" + bytes(40))
    with pytest.raises(Corrupt, match="truncated"):
        load_vggt(model, tmp_path / "cut.pt")
