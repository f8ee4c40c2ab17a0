"""From a job's spec to its command: nothing is told to a command but what was checked, in the place where it belongs."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scenemill.pipelines.experiments.specs import load_spec, spec_text
from scenemill.pipelines.jobs.roots import JobRoots
from scenemill.pipelines.jobs.specs import SPEC_FILE, check_spec, make_command, results_left, schema_of, without_secrets
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.jobs import KINDS, JobRequest
from scenemill.schemas.settings import walk

JOB = "0123456789abcdef"
EXPERIMENTS = ("train", "evaluate", "inference", "export")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "raw").mkdir(parents=True)
    return (tmp_path / "root").resolve()


@pytest.fixture
def roots(root: Path) -> JobRoots:
    return JobRoots([root], root.parent / "home")


def command(roots: JobRoots, kind: str, spec: dict[str, Any], given: dict[str, str] | None = None) -> Any:
    return make_command(kind, spec, roots, roots.folder(JOB), given or {})


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_of_a_kind_is_one_and_its_default_fits_it(kind: str, roots: JobRoots) -> None:
    schema = schema_of(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(schema["default"])
    check_spec(kind, schema["default"], roots, None)
    assert json.loads(json.dumps(schema)) == schema


def test_every_setting_that_names_a_file_or_folder_is_known_as_a_path() -> None:
    words = re.compile(r"(_dir|_path|_file|_file_2d|checkpoint(_[23]d)?|timing_cache|label_map|engine)$")
    never = {"model.mode"} | {name for name, setting, _ in walk(ExperimentConfig()) if "options" in setting.about}
    named = {
        name
        for name, setting, _ in walk(ExperimentConfig())
        if setting.hint in (str, str | None) and words.search(name) and name not in never
    }
    assert named == set(KINDS["train"].paths) - never
    for kind in KINDS.values():
        assert set(kind.paths) <= {name for name, _, _ in walk(kind.settings())}


@pytest.mark.parametrize("kind", EXPERIMENTS)
@pytest.mark.parametrize("name", [name for name in KINDS["train"].paths if name != "gen_trt_engine.trt_engine"])
def test_no_path_of_an_experiment_leads_outside(roots: JobRoots, kind: str, name: str) -> None:
    spec: dict[str, Any] = {}
    *groups, last = name.split(".")
    tree = spec
    for group in groups:
        tree = tree.setdefault(group, {})
    for text in ("/etc/passwd", "../../token"):
        tree[last] = text
        with pytest.raises(ConfigError, match=re.escape(last)):
            check_spec(kind, spec, roots, None)
        with pytest.raises(ConfigError, match=re.escape(last)):
            command(roots, kind, spec)


@pytest.mark.parametrize("kind", ["ingest", "fit"])
def test_no_path_of_an_ingest_or_a_fit_leads_outside(roots: JobRoots, kind: str) -> None:
    for name in KINDS[kind].paths:
        with pytest.raises(ConfigError, match=name):
            check_spec(kind, {name: "/etc/passwd"}, roots, None)
    for split in ("train=/etc/passwd", "train=list.json", "../train", "a,b=/etc/passwd", "=/etc/passwd", ""):
        with pytest.raises(ConfigError, match="splits"):
            check_spec("ingest", {"splits": [split]}, roots, None)


def test_an_ingest_is_told_by_options_that_no_value_can_leave(roots: JobRoots, root: Path) -> None:
    spec = {
        "source": "matterport",
        "input": str(root / "raw" / ".." / "raw"),
        "splits": ["val", f"train={root}/a.json"],
        "limit": 3,
        "max_rejected": "1%",
        "repair": True,
    }
    made = command(roots, "ingest", spec)
    store = f"{roots.folder(JOB)}/results/store"
    assert made.arguments[:4] == (sys.executable, "-m", "scenemill.pipelines.cli", "ingest")
    assert list(made.arguments[4:]) == [
        "matterport",
        f"--input={root}/raw",
        f"--output={store}",
        "--limit=3",
        "--workers=1",
        "--max-rejected=1%",
        "--precision=float32",
        "--splits=val",
        f"--splits=train={root}/a.json",
        "--repair",
    ]
    assert (made.spec, dict(made.results)) == (None, {"store": store})


def test_a_fit_is_told_what_differs_from_its_defaults(roots: JobRoots, root: Path) -> None:
    spec = {"store": str(root), "name": "--help", "settings": {"epochs": 2, "scale": 0.5, "vertex_lr": 1e-5}}
    made = command(roots, "fit", spec)
    assert made.arguments[4:6] == ("views", str(root))
    assert made.arguments[6:9] == ("epochs=2", "vertex_lr=1e-05", "scale=0.5")
    assert f"--out={roots.folder(JOB)}/results" in made.arguments and "--name=--help" in made.arguments
    assert not any(argument.startswith(("--truth", "--tables")) for argument in made.arguments)


def test_what_the_command_line_reads_is_what_was_asked_for(roots: JobRoots, root: Path, tmp_path: Path) -> None:
    spec = {
        "train": {"num_epochs": 3, "checkpoint_2d": f"{root}/raw/../a.pth"},
        "dataset": {"train": {"base_dir": str(root / "raw")}},
    }
    made = command(roots, "train", spec)
    assert made.arguments[3:] == ("train", "-e", str(roots.folder(JOB) / SPEC_FILE))
    (tmp_path / SPEC_FILE).write_text(json.dumps(made.spec))
    config = load_spec(tmp_path / SPEC_FILE)
    assert (config.train.num_epochs, config.train.checkpoint_2d) == (3, f"{root}/a.pth")
    assert config.results_dir == f"{roots.folder(JOB)}/results"
    assert dict(made.results) == {name: f"{roots.folder(JOB)}/results/train" for name in ("results", "checkpoint")}
    assert spec["train"] == {"num_epochs": 3, "checkpoint_2d": f"{root}/raw/../a.pth"}  # as it was given


def test_an_own_folder_for_results_counts(roots: JobRoots, root: Path) -> None:
    made = command(roots, "evaluate", {"evaluate": {"results_dir": str(root / "out")}})
    assert made.results == {"results": str(root / "out")} and "results_dir" not in made.spec


def test_files_beside_the_samples_may_be_named_from_there(roots: JobRoots, root: Path) -> None:
    (root / "raw" / "link.json").symlink_to("/etc/passwd")
    spec = {"dataset": {"label_map": "meta/labels.json", "train": {"base_dir": str(root / "raw"), "json_path": "train.json"}}}
    made = command(roots, "train", spec)
    assert made.spec["dataset"]["label_map"] == "meta/labels.json" and made.spec["dataset"]["train"]["json_path"] == "train.json"
    spec["dataset"]["label_map"] = "link.json"
    with pytest.raises(ConfigError, match="label_map"):
        command(roots, "train", spec)


def test_a_child_takes_what_its_parent_left_and_nothing_else(roots: JobRoots, root: Path) -> None:
    spec = {"train": {"checkpoint_2d": "{parent.checkpoint}"}, "dataset": {"train": {"base_dir": "{parent.results}/more"}}}
    check_spec("train", spec, roots, "train")
    made = command(roots, "train", spec, {"checkpoint": str(root / "a.pth"), "results": str(root / "out")})
    assert made.spec["train"]["checkpoint_2d"] == str(root / "a.pth")
    assert made.spec["dataset"]["train"]["base_dir"] == str(root / "out" / "more")
    for parent in (None, "ingest", "evaluate"):
        with pytest.raises(ConfigError, match="checkpoint_2d"):
            check_spec("train", {"train": {"checkpoint_2d": "{parent.checkpoint}"}}, roots, parent)
    for text in ("{parent.id}", "{parent.checkpoint", "{parent.checkpoint}x"):
        with pytest.raises(ConfigError, match=re.escape("{parent.checkpoint}")):
            check_spec("train", {"train": {"checkpoint_2d": text}}, roots, "train")
    with pytest.raises(ConfigError, match="left no checkpoint"):
        command(roots, "train", {"train": {"checkpoint_2d": "{parent.checkpoint}"}}, {"results": str(root)})


def test_a_child_cannot_leave_what_its_parent_left(roots: JobRoots, root: Path) -> None:
    spec = {"dataset": {"train": {"base_dir": "{parent.store}/../../../outside"}}}
    check_spec("train", spec, roots, "ingest")
    with pytest.raises(ConfigError, match="base_dir"):
        command(roots, "train", spec, {"store": str(root / "store")})


def test_only_the_newest_checkpoint_that_is_there_is_left(tmp_path: Path) -> None:
    promised = {"results": str(tmp_path), "checkpoint": str(tmp_path), "store": str(tmp_path / "none")}
    assert results_left(promised) == {"results": str(tmp_path)}
    (tmp_path / "model_epoch_003.pth").touch()
    (tmp_path / "net_latest.pth").symlink_to("model_epoch_003.pth")
    assert results_left(promised)["checkpoint"] == str((tmp_path / "model_epoch_003.pth").resolve())
    (tmp_path / "other_latest.pth").symlink_to("model_epoch_003.pth")
    assert "checkpoint" not in results_left(promised)  # of two networks: nobody can tell which


def test_secrets_are_taken_out_of_what_is_shown_alone(roots: JobRoots) -> None:
    spec = {"encryption_key": "open sesame", "results_dir": ""}
    assert without_secrets("train", spec) == {"results_dir": ""}
    assert command(roots, "train", spec).spec["encryption_key"] == "open sesame"
    assert "sesame" not in " ".join(command(roots, "train", spec).arguments)
    with pytest.raises(ConfigError) as refused:
        check_spec("train", {"encryption_key": ["open sesame"]}, roots, None)
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize(
    "spec",
    [
        {"wandb": {"name": "\ud800"}},
        {"wandb": {"name": "a\0b"}},
        {"dataset": {"depth_min": float("nan")}},
        {"dataset": {"depth_max": float("inf")}},
        {"\ud800": 1},
        {"train": {"num_epochs": 0}},
        {"train": 5},
        {"dataset": {"name": "front3d", "nmae": "x"}},
    ],
)
def test_what_no_command_could_read_is_refused_at_once(roots: JobRoots, spec: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        check_spec("train", spec, roots, None)
    str(refused.value).encode()


def test_an_ingest_that_cannot_be_is_refused_at_once(roots: JobRoots) -> None:
    for spec in (
        {"source": "views", "precision": "float16"},
        {"max_rejected": "many"},
        {"source": "lidar"},
        {"samples_per_part": 0},
    ):
        with pytest.raises(ConfigError):
            check_spec("ingest", spec, roots, None)


def test_shipped_experiments_are_taken(roots: JobRoots) -> None:
    import yaml

    for name in ("front3d_2d", "tiny_matterport_3d"):
        check_spec("train", yaml.safe_load(spec_text(name)), roots, None)


def test_a_request_names_a_kind_and_is_called_by_plain_signs() -> None:
    with pytest.raises(ConfigError, match="use one of ingest"):
        JobRequest("rm")
    for name in ("\x1b[31m", "a/b", " a", "x" * 101, "ä"):
        with pytest.raises(ConfigError, match="name"):
            JobRequest("train", name=name)
    assert JobRequest("train", name="stage 1, no".replace(",", "")).name == "stage 1 no"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("/etc"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["train", "dataset", "results_dir", "input", "splits", "store", "settings", "output", "wandb", "template"])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(sorted(KINDS)), spec=st.dictionaries(NAMES, JSON, max_size=3))
def test_any_spec_is_taken_or_refused_in_words(roots: JobRoots, kind: str, spec: dict[str, Any]) -> None:
    try:
        check_spec(kind, spec, roots, None)
        made = command(roots, kind, spec)
    except ConfigError as error:
        str(error).encode()
        return
    assert "/etc" not in " ".join(made.arguments).split("=") and all("\0" not in argument for argument in made.arguments)


@pytest.mark.parametrize(
    ("kind", "name"), [("ingest", "input"), ("ingest", "splits"), ("train", "encryption_key"), ("fit", "store")]
)
@pytest.mark.parametrize("depth", [100, 500])  # deeper ones are no plain JSON, by how deep the caller is
def test_lists_in_lists_without_end_are_no_value(kind: str, name: str, depth: int, roots: JobRoots) -> None:
    value = json.loads("[" * depth + '"a"' + "]" * depth)
    with pytest.raises(ConfigError, match=name):
        check_spec(kind, {name: value}, roots, None)
