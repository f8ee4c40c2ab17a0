"""Every documented setting is there, with its default; what is out of range, of another type or at odds is refused when it is made."""

import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from scenemill.schemas.dataset import AugmentationConfig, DatasetConfig
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import (
    ACTIONS,
    BackboneConfig,
    EvaluateConfig,
    ExperimentConfig,
    ExportConfig,
    Frustum3dConfig,
    InferenceConfig,
    MaskFormerConfig,
    ModelConfig,
    OptimConfig,
    SemSegHeadConfig,
    TensorrtConfig,
    TrainConfig,
    gpus_of,
    ignored_settings,
    results_folder,
)
from scenemill.schemas.settings import walk

# The documentation's tables, and last what is ours: every setting and its default, in the order of the tables.
DOCUMENTED: dict[str, Any] = {
    "model_name": None,
    "encryption_key": None,
    "results_dir": "",
    "wandb.enable": True,
    "wandb.project": "TAO Toolkit",
    "wandb.entity": "",
    "wandb.group": "",
    "wandb.run_id": "",
    "wandb.tags": ("training", "tao-toolkit"),
    "wandb.name": "TAO Toolkit training experiment",
    "wandb.reinit": False,
    "wandb.sync_tensorboard": False,
    "wandb.save_code": False,
    **{
        f"dataset.{split}.{name}": default
        for split in ("train", "val", "test")
        for name, default in {"base_dir": "", "json_path": "", "batch_size": 1, "num_workers": 1}.items()
    },
    "dataset.name": "front3d",
    "dataset.label_map": "",
    "dataset.contiguous_id": False,
    "dataset.downsample_factor": 1,
    "dataset.iso_value": 1.0,
    "dataset.frustum_mask_path": "meta/frustum_mask.npz",
    "dataset.ignore_label": 255,
    "dataset.min_instance_pixels": 200,
    "dataset.img_format": "RGB",
    "dataset.target_size": (320, 240),
    "dataset.reduced_target_size": (160, 120),
    "dataset.depth_size": (120, 160),
    "dataset.depth_bound": False,
    "dataset.depth_min": 0.4,
    "dataset.depth_max": 6.0,
    "dataset.depth_scale": 25.0,
    "dataset.occ_truncation_lvl": (8.0, 6.0),
    "dataset.truncation_range": (0.0, 12.0),
    "dataset.enable_3d": False,
    "dataset.enable_mp_occ": True,
    "dataset.num_thing_classes": 9,
    "dataset.workers": 8,
    "dataset.pin_memory": True,
    "dataset.augmentation.train_min_size": (448,),
    "dataset.augmentation.train_max_size": 768,
    "dataset.augmentation.test_min_size": 240,
    "dataset.augmentation.test_max_size": 960,
    "dataset.augmentation.enable_crop": False,
    "dataset.augmentation.crop_size": (240, 240),
    "dataset.augmentation.single_category_max_area": 1.0,
    "dataset.augmentation.color_aug_ssd": False,
    "dataset.augmentation.random_flip": "",
    "dataset.augmentation.random_flip_prob": 0.5,
    "dataset.augmentation.size_divisibility": -1.0,
    "dataset.augmentation.gen_aug_weight": 0.0,
    "dataset.augmentation.train_crop_size": (240, 240),
    "model.mode": "panoptic",
    "model.object_mask_threshold": 0.4,
    "model.overlap_threshold": 0.5,
    "model.test_topk_per_image": 100,
    "model.backbone.backbone_type": "vggt",
    "model.backbone.pretrained_model_path": "",
    "model.sem_seg_head.common_stride": 4,
    "model.sem_seg_head.transformer_enc_layers": 6,
    "model.sem_seg_head.convs_dim": 256,
    "model.sem_seg_head.mask_dim": 256,
    "model.sem_seg_head.depth_dim": 256,
    "model.sem_seg_head.num_classes": 13,
    "model.sem_seg_head.norm": "GN",
    "model.sem_seg_head.deformable_transformer_encoder_in_features": ("res3", "res4", "res5"),
    "model.sem_seg_head.ignore_value": 255,
    "model.sem_seg_head.in_features": ("res2", "res3", "res4", "res5"),
    "model.mask_former.dropout": 0.0,
    "model.mask_former.nheads": 8,
    "model.mask_former.num_object_queries": 100,
    "model.mask_former.hidden_dim": 256,
    "model.mask_former.transformer_dim_feedforward": 1024,
    "model.mask_former.dim_feedforward": 2048,
    "model.mask_former.dec_layers": 10,
    "model.mask_former.pre_norm": False,
    "model.mask_former.class_weight": 2.0,
    "model.mask_former.mask_weight": 5.0,
    "model.mask_former.dice_weight": 5.0,
    "model.mask_former.depth_weight": 5.0,
    "model.mask_former.mp_occ_weight": 5.0,
    "model.mask_former.train_num_points": 12544,
    "model.mask_former.oversample_ratio": 3.0,
    "model.mask_former.importance_sample_ratio": 0.75,
    "model.mask_former.deep_supervision": True,
    "model.mask_former.no_object_weight": 0.1,
    "model.mask_former.size_divisibility": 32,
    "model.frustum3d.truncation": 3.0,
    "model.frustum3d.iso_recon_value": 2.0,
    "model.frustum3d.completion_weights": (50.0, 25.0, 10.0),
    "model.frustum3d.panoptic_weight": 25.0,
    "model.frustum3d.surface_weight": 5.0,
    "model.frustum3d.unet_features": 16,
    "model.frustum3d.unet_output_channels": 16,
    "model.frustum3d.use_multi_scale": False,
    "model.frustum3d.grid_dimensions": 256,
    "model.frustum3d.frustum_dims": 256,
    "model.frustum3d.signed_channel": 3,
    "model.projection.voxel_size": 0.03,
    "model.projection.sign_channel": True,
    "model.projection.depth_feature_dim": 256,
    "train.num_gpus": 1,
    "train.gpu_ids": (0,),
    "train.num_nodes": 1,
    "train.seed": 1234,
    "train.cudnn.benchmark": False,
    "train.cudnn.deterministic": True,
    "train.num_epochs": 10,
    "train.checkpoint_interval": 1,
    "train.checkpoint_interval_unit": "epoch",
    "train.validation_interval": 1,
    "train.resume_training_checkpoint_path": None,
    "train.results_dir": "",
    "train.checkpoint_2d": "",
    "train.checkpoint_3d": "",
    "train.freeze": (),
    "train.clip_grad_norm": 0.1,
    "train.clip_grad_norm_type": 2.0,
    "train.clip_grad_type": "full",
    "train.is_dry_run": False,
    "train.precision": "fp32",
    "train.distributed_strategy": "ddp",
    "train.activation_checkpoint": True,
    "train.iters_per_epoch": None,
    "train.val_check_interval": 5,
    "train.verbose": False,
    "train.optim.type": "AdamW",
    "train.optim.lr": 2e-4,
    "train.optim.backbone_multiplier": 0.1,
    "train.optim.momentum": 0.9,
    "train.optim.weight_decay": 0.05,
    "train.optim.lr_scheduler": "MultiStep",
    "train.optim.milestones": (88, 96),
    "train.optim.gamma": 0.1,
    "train.optim.max_steps": 160000,
    "train.optim.warmup_factor": 1.0,
    "train.optim.warmup_iters": 0,
    "train.optim.monitor_name": "val_loss",
    "evaluate.num_gpus": 1,
    "evaluate.gpu_ids": (0,),
    "evaluate.num_nodes": 1,
    "evaluate.checkpoint": "",
    "evaluate.results_dir": None,
    "evaluate.trt_engine": None,
    "evaluate.batch_size": -1,
    "inference.num_gpus": 1,
    "inference.gpu_ids": (0,),
    "inference.num_nodes": 1,
    "inference.checkpoint": "",
    "inference.results_dir": None,
    "inference.trt_engine": "",
    "inference.batch_size": -1,
    "inference.mode": "panoptic",
    "inference.images_dir": "",
    "export.results_dir": None,
    "export.gpu_id": 0,
    "export.checkpoint": "",
    "export.onnx_file_2d": "",
    "export.onnx_file_3d": "",
    "export.onnx_file": "",
    "export.on_cpu": False,
    "export.input_width": 320,
    "export.input_height": 256,
    "export.opset_version": 17,
    "export.batch_size": -1,
    "export.verbose": False,
    "export.input_channel": 3,
    "export.format": "onnx",
    "export.max_voxels": 700000,
    "gen_trt_engine.results_dir": None,
    "gen_trt_engine.gpu_id": 0,
    "gen_trt_engine.onnx_file": "",
    "gen_trt_engine.trt_engine": "",
    "gen_trt_engine.timing_cache": None,
    "gen_trt_engine.batch_size": -1,
    "gen_trt_engine.verbose": False,
    "gen_trt_engine.tensorrt.workspace_size": 1024,
    "gen_trt_engine.tensorrt.min_batch_size": 1,
    "gen_trt_engine.tensorrt.opt_batch_size": 1,
    "gen_trt_engine.tensorrt.max_batch_size": 1,
    "gen_trt_engine.tensorrt.layers_precision": (),
    "gen_trt_engine.tensorrt.data_type": "FP32",
}
OURS: dict[str, Any] = {
    "dataset.stuff_classes": None,
    "dataset.geometry": "reference",
    "model.backbone.input_width": 448,
    "model.backbone.embed_dim": 1024,
    "model.backbone.num_heads": 16,
    "model.backbone.depth": 24,
    "model.backbone.patch_depth": 24,
    "model.backbone.patch_heads": 16,
    "model.backbone.pos_grid": 37,
    "model.backbone.tap_layers": (4, 11, 17, 23),
    "model.backbone.camera_depth": 4,
    "model.backbone.dpt_features": 256,
    "model.backbone.dpt_channels": (256, 512, 1024, 1024),
    "model.backbone.pixel_channels": (256, 512, 1024, 2048),
    "model.mp_occ.num_planes": 100,
}
DEAD = {
    "dataset.workers",
    "dataset.pin_memory",
    "dataset.augmentation.train_crop_size",
    "model.test_topk_per_image",
    "model.sem_seg_head.ignore_value",
    "model.sem_seg_head.in_features",
    "model.frustum3d.signed_channel",
    "train.val_check_interval",
    "train.verbose",
    "evaluate.batch_size",
    "inference.batch_size",
    "inference.mode",
    "export.onnx_file",
    "export.input_channel",
    "export.format",
    "export.max_voxels",
}


def test_every_documented_setting_is_there_with_its_default() -> None:
    found = {name: value for name, _, value in walk(ExperimentConfig())}
    assert found == DOCUMENTED | OURS
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in (DOCUMENTED | OURS).items()
    }


def test_every_setting_has_help_in_one_line() -> None:
    helps = [setting.about.get("help", "") for _, setting, _ in walk(ExperimentConfig())]
    assert all(help and "\n" not in help and help.rstrip()[-1] in ".;" for help in helps)


def test_flags_mark_what_nothing_reads_and_what_a_search_may_vary() -> None:
    flagged = list(walk(ExperimentConfig()))
    assert {name for name, setting, _ in flagged if setting.about.get("dead")} == DEAD
    assert {name for name, setting, _ in flagged if setting.about.get("automl")} == {
        "train.optim.lr",
        "train.optim.backbone_multiplier",
        "train.optim.weight_decay",
    }
    assert [name for name, setting, _ in flagged if setting.about.get("secret")] == ["encryption_key"]


@pytest.mark.parametrize(
    ("kind", "field", "value", "allowed"),
    [
        (OptimConfig, "lr", 0.1, "1e-06..0.01"),
        (OptimConfig, "lr", 1e-7, "1e-06..0.01"),
        (OptimConfig, "lr", float("nan"), "1e-06..0.01"),
        (OptimConfig, "backbone_multiplier", 0.001, "0.01..1"),
        (OptimConfig, "momentum", 0.4, "0.5..0.999"),
        (OptimConfig, "weight_decay", 0.6, "0.0001..0.5"),
        (OptimConfig, "max_steps", 0, "1 or more"),
        (OptimConfig, "warmup_iters", -1, "0 or more"),
        (OptimConfig, "type", "Adam", "'AdamW', 'SGD'"),
        (OptimConfig, "lr_scheduler", "cosine", "'MultiStep', 'WarmupPoly'"),
        (OptimConfig, "monitor_name", "loss", "'val_loss', 'train_loss'"),
        (TrainConfig, "seed", -2, "-1 or more"),
        (TrainConfig, "num_gpus", 0, "1 or more"),
        (TrainConfig, "gpu_ids", (-1,), "0 or more"),
        (TrainConfig, "gpu_ids", (), "one GPU or more, each once"),
        (TrainConfig, "gpu_ids", (1, 1), "one GPU or more, each once"),
        (TrainConfig, "precision", "fp64", "'fp32', 'bf16', 'fp16'"),
        (TrainConfig, "distributed_strategy", "dp", "'ddp', 'fsdp'"),
        (TrainConfig, "clip_grad_norm", 0.0, "above 0"),
        (TrainConfig, "clip_grad_norm_type", "big", "a number above 0, or inf"),
        (TrainConfig, "clip_grad_norm_type", -1.0, "a number above 0, or inf"),
        (TrainConfig, "checkpoint_interval", 11, "1..10 (num_epochs)"),
        (TrainConfig, "validation_interval", 11, "1..10 (num_epochs)"),
        (ModelConfig, "mode", "semantic", "'panoptic'"),
        (BackboneConfig, "tap_layers", (4, 11, 17, 24), "four blocks, ascending, from 0 to 23"),
        (BackboneConfig, "tap_layers", (4, 4, 17, 23), "four blocks, ascending, from 0 to 23"),
        (BackboneConfig, "num_heads", 7, "a divisor of embed_dim=1024"),
        (BackboneConfig, "input_width", 450, "14 or more, a multiple of 14"),
        (SemSegHeadConfig, "convs_dim", 48, "1 or more, a multiple of 32"),
        (SemSegHeadConfig, "common_stride", 1, "2 or more"),
        (SemSegHeadConfig, "norm", "BN", "'', 'GN', 'LN', 'SyncBN'"),
        (SemSegHeadConfig, "ignore_value", 256, "0..255"),
        (MaskFormerConfig, "dropout", 1.5, "0..1"),
        (MaskFormerConfig, "oversample_ratio", 0.5, "1 or more"),
        (MaskFormerConfig, "importance_sample_ratio", 2.0, "0..1"),
        (MaskFormerConfig, "nheads", 3, "a divisor of hidden_dim=256"),
        (Frustum3dConfig, "frustum_dims", 128, "grid_dimensions=256: set both"),
        (EvaluateConfig, "trt_engine", "model.engine", "nothing: engines run outside of this program"),
        (EvaluateConfig, "batch_size", -2, "-1 or more"),
        (InferenceConfig, "trt_engine", "model.engine", "nothing: engines run outside of this program"),
        (InferenceConfig, "mode", "depth", "'semantic', 'instance', 'panoptic'"),
        (ExportConfig, "onnx_file_3d", "model.onnx", "nothing: stage 2 is not exported"),
        (ExportConfig, "input_width", 31, "32 or more"),
        (ExportConfig, "input_channel", 2, "1, 3"),
        (TensorrtConfig, "data_type", "INT8", "'FP32', 'FP16'"),
        (DatasetConfig, "downsample_factor", 3, "a whole number that divides 256"),
        (DatasetConfig, "name", "scannet", "'front3d'"),
        (DatasetConfig, "geometry", "guessed", "'reference', 'measured'"),
        (AugmentationConfig, "gen_aug_weight", 1.1, "0..1"),
    ],
)
def test_a_value_out_of_range_is_refused(kind: type, field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**{field: value})
    assert str(caught.value).startswith(f"{field}={value!r}: allowed is ")
    assert allowed in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "field", "value", "allowed"),
    [
        (OptimConfig, "lr", "1e-3", "a number, 1e-06..0.01"),
        (OptimConfig, "lr", True, "a number, 1e-06..0.01"),
        (OptimConfig, "lr", 10**400, "a number, 1e-06..0.01"),
        (TrainConfig, "seed", 1.0, "a whole number, -1 or more"),
        (TrainConfig, "seed", 2**70, "a whole number, -1 or more"),
        (TrainConfig, "iters_per_epoch", "all", "a whole number, 1 or more, or null"),
        (TrainConfig, "gpu_ids", 0, "a list of whole numbers, each 0 or more"),
        (TrainConfig, "gpu_ids", ("0",), "a list of whole numbers, each 0 or more"),
        (TrainConfig, "results_dir", 3, "text, in quotes"),
        (TrainConfig, "results_dir", None, "text"),
        (TrainConfig, "is_dry_run", 1, "true or false"),
        (TrainConfig, "optim", {"lr": 1e-3}, "a group of settings"),
        (Frustum3dConfig, "completion_weights", (1.0, 2.0), "a list of 3 numbers, each 0 or more"),
    ],
)
def test_a_value_of_another_type_is_refused(kind: type, field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**{field: value})
    assert str(caught.value).endswith(f": allowed is {allowed}")
    assert len(str(caught.value)) < 300


def test_values_take_their_declared_form() -> None:
    optim = OptimConfig(type="adamw", lr_scheduler="Warmuppoly", milestones=[1, 2])  # type: ignore[arg-type]
    assert (optim.type, optim.lr_scheduler, optim.milestones) == ("AdamW", "WarmupPoly", (1, 2))
    weight = MaskFormerConfig(class_weight=3).class_weight
    assert (weight, type(weight)) == (3.0, float)
    assert TrainConfig(clip_grad_norm_type="inf").clip_grad_norm_type == "inf"


def test_all_faults_of_one_group_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        OptimConfig(lr=1.0, momentum=0.0, gamma="x")  # type: ignore[arg-type]
    assert [line.partition("=")[0] for line in str(caught.value).split("\n")] == ["lr", "momentum", "gamma"]


def test_a_secret_is_never_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        ExperimentConfig(encryption_key=20202020)  # type: ignore[arg-type]
    assert "2020" not in str(caught.value) and "encryption_key: allowed is text or null" in str(caught.value)


def test_a_key_every_precision_and_both_strategies_are_accepted() -> None:
    assert ExperimentConfig(encryption_key="hush").encryption_key == "hush"
    assert [TrainConfig(precision=name).precision for name in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]
    assert [TrainConfig(distributed_strategy=name).distributed_strategy for name in ("ddp", "fsdp")] == ["ddp", "fsdp"]


def test_a_checkpoint_interval_in_steps_may_exceed_the_epochs() -> None:
    assert TrainConfig(checkpoint_interval=3000, checkpoint_interval_unit="step").checkpoint_interval == 3000


def test_batches_of_an_engine_are_in_order() -> None:
    with pytest.raises(ConfigError, match="allowed is min <= opt <= max"):
        TensorrtConfig(min_batch_size=2)


def test_settings_never_change_can_be_hashed_and_pass_between_processes() -> None:
    config = ExperimentConfig(train=TrainConfig(seed=3))
    assert pickle.loads(pickle.dumps(config)) == config != ExperimentConfig()
    assert hash(config) == hash(replace(config))
    with pytest.raises(FrozenInstanceError):
        config.train.seed = 4  # type: ignore[misc]


def test_what_nothing_reads_is_told_once_it_is_changed() -> None:
    assert ignored_settings(ExperimentConfig()) == []
    config = ExperimentConfig(train=TrainConfig(val_check_interval=1, seed=7), inference=InferenceConfig(mode="semantic"))
    assert ignored_settings(config) == [
        "train.val_check_interval=1: changed from 5, but nothing reads it",
        "inference.mode='semantic': changed from 'panoptic', but nothing reads it",
    ]


def test_what_is_read_is_not_told() -> None:
    generated = AugmentationConfig(gen_aug_weight=0.5)
    dataset = DatasetConfig(label_map="map.json", contiguous_id=True, frustum_mask_path="mask.npz", augmentation=generated)
    assert ignored_settings(ExperimentConfig(dataset=dataset)) == []


@pytest.mark.parametrize("action", ACTIONS)
def test_results_go_to_the_own_folder_else_into_the_common_one(action: str) -> None:
    config = ExperimentConfig(results_dir="out")
    assert results_folder(config, action) == f"out/{action}"
    own = replace(getattr(config, action), results_dir="mine")
    assert results_folder(replace(config, **{action: own}), action) == "mine"
    with pytest.raises(ConfigError, match=rf"set results_dir, or {action}\.results_dir"):
        results_folder(ExperimentConfig(), action)


def test_results_of_an_unknown_action_have_no_folder() -> None:
    with pytest.raises(ConfigError, match="action 'fly' is not known; use one of train, evaluate"):
        results_folder(ExperimentConfig(results_dir="out"), "fly")


@pytest.mark.parametrize(
    ("num_gpus", "gpu_ids", "expected"),
    [(1, (0,), (0,)), (1, (0, 1), (0, 1)), (4, (0,), (0, 1, 2, 3)), (2, (3, 5), (3, 5)), (1, (7,), (7,)), (3, (4, 5), (0, 1, 2))],
)
def test_gpus_are_as_many_as_the_larger_says(num_gpus: int, gpu_ids: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert gpus_of(num_gpus, gpu_ids) == expected


@pytest.mark.parametrize(
    ("geometry", "truncation", "band"),
    [("reference", 12.0, 12.0), ("reference", 2.0, 2.0), ("measured", 12.0, 3.0), ("measured", 2.0, 2.0)],
)
def test_the_measured_geometry_has_a_narrow_band_of_occupancy(geometry: str, truncation: float, band: float) -> None:
    assert DatasetConfig(geometry=geometry, truncation_range=(0.0, truncation)).occupancy_band == band


def test_the_configuration_needs_the_standard_library_alone() -> None:
    script = (
        "import sys; before = set(sys.modules)\n"
        "from scenemill.schemas.experiment import ExperimentConfig; ExperimentConfig()\n"
        "names = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(names - set(sys.stdlib_module_names) - {'scenemill'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
