"""Spec files become settings and back; what is wrong with one is told, all of it, by full name; hostile files are refused."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from scenemill.pipelines.experiments.specs import (
    LIMIT_BYTE,
    default_spec,
    json_schema,
    list_specs,
    load_spec,
    read_spec,
    resolved,
    spec_text,
)
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ACTIONS, ExperimentConfig, TrainConfig, WandbConfig, ignored_settings
from scenemill.schemas.settings import walk

SHIPPED = ("front3d_2d", "front3d_3d", "matterport_2d", "matterport_3d")
TINY = tuple(f"tiny_{name}" for name in SHIPPED)
BY_NAME = dict(zip(SHIPPED, range(4), strict=True))


def values(config: ExperimentConfig) -> dict[str, Any]:
    return {name: value for name, _, value in walk(config)}


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_spec(text, overrides)
    return str(caught.value)


def test_nothing_given_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    (tmp_path / "groups.yaml").write_text("train:\ndataset: {augmentation: }\n")
    assert load_spec(None) == load_spec(tmp_path / "empty.yaml") == load_spec(tmp_path / "groups.yaml") == ExperimentConfig()


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("train:\n  num_epochs: 3\n  optim: {lr: 1e-3, milestones: [1, 2]}\nresults_dir: out\n")
    document = {"train": {"num_epochs": 3, "optim": {"lr": 1e-3, "milestones": [1, 2]}}, "results_dir": "out"}
    for name in ("spec.json", "spec.txt"):
        (tmp_path / name).write_text(json.dumps(document, indent="\t"))
    config = load_spec(tmp_path / "spec.yaml")
    assert config == load_spec(str(tmp_path / "spec.json")) == load_spec(tmp_path / "spec.txt")
    assert (config.train.num_epochs, config.train.optim.lr, config.train.optim.milestones) == (3, 1e-3, (1, 2))


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "+1e-4", "0.0001", ".0001", "1.e-4"])
def test_every_way_to_write_a_small_number_is_a_number(text: str) -> None:
    assert read_spec(f"train: {{optim: {{lr: {text}}}}}").train.optim.lr == 1e-4
    assert read_spec("", [f"train.optim.lr={text}"]).train.optim.lr == 1e-4


def test_numbers_in_quotes_are_text() -> None:
    assert "train.optim.lr='1e-4': allowed is a number" in refusal('train: {optim: {lr: "1e-4"}}')
    assert "train.seed='1': allowed is a whole number" in refusal("train: {seed: '1'}")
    assert read_spec("wandb: {name: '1e-4'}").wandb.name == "1e-4"


def test_whole_numbers_are_accepted_for_numbers_but_not_the_other_way() -> None:
    assert read_spec("dataset: {depth_max: 5}").dataset.depth_max == 5.0
    assert "train.num_epochs=3.0: allowed is a whole number" in refusal("train: {num_epochs: 3.0}")


def test_all_problems_are_told_together_by_full_name() -> None:
    text = (
        "trian: {seed: 1}\n"
        "train: {seed: x, optim: {lr: 1, momentum: 2}}\n"
        "dataset: {depth_min: 7.0, augmentation: {train_max_siz: 960}}\n"
        "model: 3\n"
    )
    said = refusal(text, "evaluate.checkpoints=a", "nothing")
    assert said.split("\n")[0] == "spec: 9 problems"
    assert {line.strip() for line in said.split("\n")[1:]} >= {
        "trian: no such setting; did you mean train?",
        "train.seed='x': allowed is a whole number, -1 or more",
        "train.optim.lr=1: allowed is 1e-06..0.01",
        "train.optim.momentum=2: allowed is 0.5..0.999",
        "dataset.depth_min, depth_max=(7.0, 6.0): allowed is 0 < min < max",
        "dataset.augmentation.train_max_siz: no such setting; did you mean dataset.augmentation.train_max_size?",
        "model=3: allowed is a group of mode, object_mask_threshold, overlap_threshold, test_topk_per_image, backbone, "
        "sem_seg_head, mask_former, frustum3d, projection, mp_occ",
        "evaluate.checkpoints: no such setting; did you mean evaluate.checkpoint?",
        "'nothing': an override is key.sub=value, such as train.num_epochs=3",
    }


def test_a_setting_of_another_group_is_found() -> None:
    assert refusal("train: {lr: 1e-3}") == "spec: train.lr: no such setting; did you mean train.optim.lr?"
    assert "allowed here is benchmark, deterministic" in refusal("train: {cudnn: {xyzzy: 1}}")
    assert "3: no such setting" in refusal("3: 4")


def test_overrides_win_over_the_file_and_the_last_wins() -> None:
    given = ["train.num_epochs=4", "train.num_epochs=5", "train.freeze=[backbone, sem_seg_head]", "wandb.enable=false"]
    config = read_spec(
        "train: {num_epochs: 3, seed: 5}", [*given, "results_dir=/out/a", "dataset.train.base_dir=", "wandb.name='7'"]
    )
    assert (config.train.num_epochs, config.train.seed, config.train.freeze) == (5, 5, ("backbone", "sem_seg_head"))
    assert (config.wandb.enable, config.results_dir, config.dataset.train.base_dir, config.wandb.name) == (False, "/out/a", "", "7")


def test_an_override_heals_what_the_file_has_wrong() -> None:
    assert read_spec("train: {seed: x}", ["train.seed=3"]).train.seed == 3


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.seed", "an override is key.sub=value"),
        ("=3", "an override is key.sub=value"),
        ("train={seed: 3}", "set one setting at a time"),
        ("train.seed.deep=3", "train.seed.deep: seed is a value there, and holds no settings"),
        ("train.freeze=[a", "in quotes"),
        ("train.seed=*a", "anchors and aliases are not read"),
        ("train.seed=!!python/name:os.system", "could not determine a constructor"),
        ("train.sede=3", "did you mean train.seed?"),
        ("train.seed=three", "allowed is a whole number"),
        ("wandb.run_id=2024", "allowed is text, in quotes"),
    ],
)
def test_an_override_that_makes_no_sense_is_refused(override: str, said: str) -> None:
    assert said in refusal("train: {seed: 5}", override)


def test_values_left_to_be_filled_in_have_their_default_and_links_are_refused() -> None:
    assert read_spec("evaluate:\n  checkpoint: ???\n  num_gpus: ???\n") == ExperimentConfig()
    assert "${...} is not replaced" in refusal("train: {results_dir: '${results_dir}/train'}")
    assert "${...} is not replaced" in refusal("wandb: {tags: ['${name}']}")


def test_a_secret_is_neither_shown_nor_written() -> None:
    assert "hunter" not in refusal("encryption_key: [hunter2]")
    config = read_spec("encryption_key: 'hunter${2}'")
    assert config.encryption_key == "hunter${2}"
    assert "hunter" not in resolved(config)
    assert read_spec(resolved(config)) == replace(config, encryption_key=None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: !!python/object/apply:os.system ['touch pwned']", "could not determine a constructor for the tag"),
        ("!!python/object/new:os.system [id]", "could not determine a constructor for the tag"),
        ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]", "anchors and aliases are not read: write the value out (line 2"),
        ("x: &x {seed: 1}\ntrain: {<<: *x}", "anchors and aliases are not read"),
        ("[" * 50_000, "nested too deeply"),
        ('{"a":' * 50_000, "nested too deeply"),
        ("train: {seed: 1, seed: 2}", "'seed' twice (line 1, column 18)"),
        ('{"train": {"seed": 1, "seed": 2}}', "'seed' twice"),
        ('{"train": {"clip_grad_norm": Infinity}}', "Infinity is no number"),
        ("? [a, b]\n: 1", "not a spec in YAML"),
        ("a: 2024-02-31", "not a spec in YAML"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("train:\n\tseed: 1", "cannot start any token (line 2"),
        ("train: [", "not a spec in YAML"),
        ("a: \x00", "not a spec in YAML"),
        ("- train", "a spec is a mapping"),
        ("train", "a spec is a mapping"),
        ("train: {num_epochs: 0x" + "f" * 20_000 + "}", "allowed is a whole number"),
        ("results_dir: 2024-02-01", "allowed is text"),
        ("results_dir: !!binary aGk=", "allowed is text"),
    ],
)
def test_hostile_and_broken_text_is_refused_in_few_words(text: str, said: str) -> None:
    message = refusal(text)
    assert said in message
    assert len(message) < 500


def test_a_file_of_unknown_settings_is_refused_quickly() -> None:
    began = time.perf_counter()
    message = refusal("\n".join(f"setting_{number}: 1" for number in range(3000)))
    assert time.perf_counter() - began < 10
    assert "and 2960 more" in message and len(message) < 20_000


def test_files_that_are_no_specs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_text("#" * (LIMIT_BYTE + 1))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "not.json").write_text("train: {seed: 1}")
    for name, said in {
        "missing.yaml": "No such file",
        ".": "Is a directory",
        "large.yaml": "larger than 256 KiB",
        "binary.yaml": "not text in UTF-8",
        "not.json": "not JSON",
    }.items():
        with pytest.raises(ConfigError, match=said) as caught:
            load_spec(tmp_path / name)
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("action", ACTIONS)
def test_the_default_spec_is_the_defaults_and_explains_every_setting(action: str, tmp_path: Path) -> None:
    text = default_spec(action)
    (tmp_path / "default.yaml").write_text(text)
    assert load_spec(tmp_path / "default.yaml") == ExperimentConfig()
    assert list(yaml.safe_load(text))[3] == action  # behind the three settings that are in no group
    lines = text.split("\n")
    leaves = [number for number, line in enumerate(lines) if re.fullmatch(r" *\w+: .+", line)]
    assert len(leaves) == len(values(ExperimentConfig()))
    assert all(" Allowed: " in lines[number - 1] and " Default: " in lines[number - 1] for number in leaves)


def test_the_default_spec_names_help_range_and_default() -> None:
    said = "    # Learning rate. AutoML may vary it. Allowed: a number, 1e-06..0.01. Default: 0.0002\n    lr: 0.0002\n"
    assert said.replace("    ", "  " * 2) in default_spec("train")
    assert "# What follows is for other actions; evaluate does not read it." in default_spec("evaluate")
    for make in (default_spec, json_schema):
        with pytest.raises(ConfigError, match="action 'fly' is not known; use one of train"):
            make("fly")


@pytest.mark.parametrize(
    "name", ["plain", "1e-4", "yes", "a: b", 'it\'s "so"', "two\nlines", " # no", "übung ☃ 𝄞", "x" * 5000, "~"]
)
def test_what_is_written_reads_back_the_same(name: str) -> None:
    config = ExperimentConfig(
        model_name=name,
        wandb=WandbConfig(tags=(name, "other"), name=name),
        train=TrainConfig(clip_grad_norm=1e-7, clip_grad_norm_type="inf", seed=-1),
    )
    assert read_spec(resolved(config)) == config


def test_a_schema_is_valid_and_tells_what_the_settings_tell() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for action in ACTIONS:
        schema = json_schema(action)
        jsonschema.Draft202012Validator.check_schema(schema)
        validator = jsonschema.Draft202012Validator(schema)
        assert validator.is_valid(yaml.safe_load(default_spec(action)))
        for name in list_specs():
            assert validator.is_valid(yaml.safe_load(spec_text(name))), name
        assert list(schema["properties"])[3] == action
    wrong: tuple[dict[str, Any], ...] = (
        {"trian": {}},
        {"train": {"optim": {"lr": 1}}},
        {"train": {"seed": "x"}},
        {"train": {"seed": 1.5}},
        {"train": {"is_dry_run": 1}},
        {"train": {"clip_grad_norm": 0}},
        {"train": {"iters_per_epoch": 0}},
        {"dataset": {"depth_size": [120]}},
        {"model": {"mode": "semantic"}},
        {"model": {"sem_seg_head": {"convs_dim": 33}}},
        {"evaluate": {"trt_engine": "a"}},
    )
    for document in wrong:
        assert not validator.is_valid(document), document
        with pytest.raises(ConfigError):
            read_spec(json.dumps(document))
    for document in ({"evaluate": {"trt_engine": None}}, {"train": {"iters_per_epoch": 3, "clip_grad_norm_type": "inf"}}):
        assert validator.is_valid(document)
        read_spec(json.dumps(document))


def test_a_schema_carries_help_default_range_and_flags() -> None:
    train = json_schema("train")["properties"]["train"]["properties"]
    assert train["optim"]["properties"]["lr"] == {
        "description": "Learning rate.",
        "type": "number",
        "minimum": 1e-6,
        "maximum": 1e-2,
        "default": 2e-4,
        "automl_enabled": True,
    }
    assert train["verbose"]["deprecated"] is True
    assert train["precision"]["enum"] == ["fp32", "bf16", "fp16"]
    json.dumps(json_schema("train"))


def test_all_specs_come_along() -> None:
    assert list_specs() == tuple(sorted(SHIPPED + TINY))
    with pytest.raises(ConfigError, match="spec 'front4d' is not known; use one of front3d_2d"):
        spec_text("front4d")
    with pytest.raises(ConfigError, match="is not known"):
        spec_text("../specs")


COMMON = {
    "dataset.contiguous_id": True,
    "dataset.ignore_label": 255,
    "dataset.enable_mp_occ": True,
    "dataset.val.batch_size": 1,
    "dataset.val.num_workers": 2,
    "dataset.test.batch_size": 1,
    "dataset.test.num_workers": 2,
    "dataset.augmentation.train_min_size": (240,),
    "dataset.augmentation.train_max_size": 960,
    "dataset.augmentation.test_min_size": 240,
    "dataset.augmentation.test_max_size": 960,
    "train.precision": "fp32",
    "train.num_gpus": 1,
    "train.checkpoint_interval_unit": "step",
    "train.clip_grad_type": "full",
    "train.activation_checkpoint": False,
    "train.optim.type": "AdamW",
    "train.optim.weight_decay": 0.05,
    "train.optim.lr_scheduler": "WarmupPoly",
    "train.optim.warmup_factor": 1.0,
    "train.optim.warmup_iters": 0,
    "train.optim.monitor_name": "train_loss",
    "model.object_mask_threshold": 0.8,
    "model.overlap_threshold": 0.8,
    "export.input_width": 320,
    "export.input_height": 240,
    "export.batch_size": 1,
}
# columns: front3d_2d, front3d_3d, matterport_2d, matterport_3d
EITHER: dict[str, tuple[Any, Any, Any, Any]] = {
    "dataset.name": ("front3d", "front3d", "matterport", "matterport"),
    "dataset.enable_3d": (False, True, False, True),
    "dataset.downsample_factor": (1, 1, 2, 2),
    "dataset.iso_value": (1.0, 1.0, 2.0, 2.0),
    "dataset.frustum_mask_path": ("", "", "meta/frustum_mask.npz", "meta/frustum_mask.npz"),
    "dataset.augmentation.size_divisibility": (32.0, 32.0, -1.0, -1.0),
    "model.frustum3d.iso_recon_value": (1.0, 1.0, 2.0, 2.0),
    "model.frustum3d.surface_weight": (5.0, 5.0, 10.0, 10.0),
    "model.frustum3d.use_multi_scale": (True, True, False, False),
    "wandb.tags": tuple(("training", "nvpanoptix3d", "vggt", f"{name[-2:]}_{name[:-3]}") for name in SHIPPED),  # type: ignore[dict-item]
    "wandb.name": tuple(f"nvpanoptix3d_vggt_{name[-2:]}_{name[:-3]}" for name in SHIPPED),  # type: ignore[dict-item]
}
LARGE: dict[str, tuple[Any, Any, Any, Any]] = {
    "dataset.train.batch_size": (16, 1, 16, 1),
    "dataset.train.num_workers": (8, 2, 8, 2),
    "train.num_epochs": (30, 20, 20, 20),
    "train.optim.max_steps": (180000, 110000, 120000, 120000),
    "train.checkpoint_interval": (3000, 1000, 1000, 1000),
    "train.clip_grad_norm": (0.01, 0.01, 0.01, 0.01),
    "train.optim.lr": (1e-4, 1e-4, 1e-4, 1e-4),
}
SMALL: dict[str, Any] = {
    "dataset.depth_size": (30, 40),
    "dataset.reduced_target_size": (40, 30),
    "model.backbone.input_width": 168,
    "model.backbone.embed_dim": 64,
    "model.backbone.num_heads": 4,
    "model.backbone.depth": 4,
    "model.backbone.patch_depth": 2,
    "model.backbone.patch_heads": 4,
    "model.backbone.pos_grid": 16,
    "model.backbone.tap_layers": (0, 1, 2, 3),
    "model.backbone.camera_depth": 1,
    "model.backbone.dpt_features": 32,
    "model.backbone.dpt_channels": (16, 24, 32, 32),
    "model.backbone.pixel_channels": (8, 16, 32, 64),
    "model.sem_seg_head.convs_dim": 32,
    "model.sem_seg_head.mask_dim": 32,
    "model.sem_seg_head.depth_dim": 32,
    "model.sem_seg_head.transformer_enc_layers": 1,
    "model.mask_former.hidden_dim": 32,
    "model.mask_former.num_object_queries": 16,
    "model.mask_former.nheads": 4,
    "model.mask_former.dec_layers": 4,
    "model.mask_former.transformer_dim_feedforward": 64,
    "model.mask_former.dim_feedforward": 64,
    "model.mask_former.train_num_points": 1024,
    "model.mp_occ.num_planes": 24,
    "model.frustum3d.grid_dimensions": 64,
    "model.frustum3d.frustum_dims": 64,
    "dataset.truncation_range": (0.0, 3.0),
    "dataset.occ_truncation_lvl": (4.0, 3.0),
    "model.projection.voxel_size": 0.12,
    "model.projection.depth_feature_dim": 32,
    "train.optim.lr": 1e-3,
    "train.clip_grad_norm": 1.0,
}
STEPS: dict[str, tuple[Any, Any, Any, Any]] = {
    "dataset.train.batch_size": (2, 1, 2, 1),
    "dataset.train.num_workers": (2, 2, 2, 2),
    "train.num_epochs": (600, 600, 600, 600),  # so many that the steps end the training
    "train.optim.max_steps": (600, 600, 600, 600),
    "train.optim.backbone_multiplier": (1.0, 0.1, 1.0, 0.1),
    "train.validation_interval": (100, 100, 100, 100),
    "dataset.stuff_classes": ((10, 11, 12), (10, 11, 12), None, None),
    "train.checkpoint_interval": (100, 100, 100, 100),
    "model.frustum3d.unet_features": (4, 8, 4, 8),
    "model.frustum3d.unet_output_channels": (4, 16, 4, 16),
}


def changed(text: str) -> dict[str, Any]:
    defaults = values(ExperimentConfig())
    return {name: value for name, value in values(read_spec(text)).items() if value != defaults[name]}


def column(table: dict[str, tuple[Any, Any, Any, Any]], name: str) -> dict[str, Any]:
    return {setting: row[BY_NAME[name]] for setting, row in table.items()}


def differs(expected: dict[str, Any]) -> dict[str, Any]:
    defaults = values(ExperimentConfig())
    return {name: value for name, value in expected.items() if value != defaults[name]}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_spec_says_what_the_reference_says_and_no_more(name: str) -> None:
    expected = COMMON | column(EITHER, name) | column(LARGE, name)
    assert changed(spec_text(name)) == differs(expected)
    assert ignored_settings(read_spec(spec_text(name))) == []
    keys = {key for key in yaml.safe_load(spec_text(name))["train"] if key.startswith("checkpoint_") and key[-1] == "d"}
    assert keys == ({"checkpoint_2d", "checkpoint_3d"} if name.endswith("3d") else {"checkpoint_2d"})
    assert ("frustum_mask_path" in spec_text(name)) == name.startswith("front3d")


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_spec_differs_in_its_sizes_and_in_what_makes_it_learn_quickly(name: str) -> None:
    large = name.removeprefix("tiny_")
    expected = COMMON | column(EITHER, large) | SMALL | column(STEPS, large)
    assert changed(spec_text(name)) == differs(expected)
    assert ignored_settings(read_spec(spec_text(name))) == []


def test_no_spec_says_what_another_reader_of_yaml_would_take_for_something_else() -> None:
    for text in [*map(spec_text, list_specs()), *map(default_spec, ACTIONS)]:
        assert read_spec(json.dumps(yaml.safe_load(text))) == read_spec(text)
