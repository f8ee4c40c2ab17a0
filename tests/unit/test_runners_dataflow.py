"""A job for Dataflow before it is sent: options that the service would refuse, the graph, and the flex template's parameters."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.portability.api import beam_runner_api_pb2

from scenemill.pipelines.runners.graph import ingest_graph
from scenemill.pipelines.runners.options import RunnerConfig
from scenemill.pipelines.runners.portable import beam_options
from scenemill.pipelines.runners.template import parser
from scenemill.schemas.config import PRECISIONS, IngestConfig, parse_max_rejected
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fields import SOURCES
from scenemill.transforms.objects import place_of

pytest.importorskip("google.cloud.dataflow", reason="the extra gcp is not installed")
from scenemill.pipelines.runners.dataflow import Job, dataflow_options, run_on_dataflow

SHIPPED = Path(__file__).resolve().parents[2] / "pipelines" / "runners" / "flex_template"
CONFIG = IngestConfig("synthetic_hospital", place_of("gs://bucket/raw"), place_of("gs://bucket/store"))
RUNNER = RunnerConfig(
    "dataflow",
    project="p-id",
    region="us-central1",
    temp_location="gs://bucket/tmp",
    image="registry/scenemill:1",
    machine_type="n2-standard-8",
    max_workers=4,
    dry_run=True,
)


@pytest.fixture(scope="module")
def job() -> Job:
    return run_on_dataflow(CONFIG, RUNNER)


def test_a_dry_run_says_what_would_be_submitted(job: Job) -> None:
    assert re.fullmatch(r"scenemill-ingest-synthetic-hospital-[0-9a-f]{8}", job.name)
    assert (job.project, job.region, job.image) == ("p-id", "us-central1", "registry/scenemill:1")
    assert (job.input, job.output) == ("gs://bucket/raw", "gs://bucket/store")
    assert (job.id, job.state) == (None, "not submitted")
    expected = {
        "temp_location": "gs://bucket/tmp",
        "staging_location": "gs://bucket/tmp/staging",
        "machine_type": "n2-standard-8",
        "max_num_workers": 4,
        "sdk_container_image": "registry/scenemill:1",
        "sdk_location": "container",
        "number_of_worker_harness_threads": 1,
        "labels": ["tool=scenemill"],
    }
    assert expected.items() <= job.options.items()


def test_the_steps_of_a_job_read_as_the_line_they_are(job: Job) -> None:
    line = ("Take the settings", "List parts", "Spread over workers", "Build parts", "Wait for all parts", "Publish")
    assert job.steps == line


def test_a_job_of_another_store_has_another_name_and_the_same_store_the_same(job: Job) -> None:
    assert run_on_dataflow(replace(CONFIG, limit=3), RUNNER).name == job.name
    assert run_on_dataflow(replace(CONFIG, output=place_of("gs://bucket/other")), RUNNER).name != job.name


def graph_of(config: IngestConfig) -> beam_runner_api_pb2.Pipeline:
    pipeline = beam.Pipeline(options=beam_options([], []))
    ingest_graph(pipeline, config)
    return pipeline.to_runner_api()


def test_the_graph_does_not_grow_with_the_data() -> None:
    small, large = (graph_of(replace(CONFIG, limit=limit)).ByteSize() for limit in (1, 1_000_000))
    assert abs(small - large) < 100


def test_only_plans_and_names_of_parts_cross_a_shuffle() -> None:
    """The two steps that regroup are fed by the listing and by the ids of built parts: arrays live and die within a step."""
    graph = graph_of(CONFIG).components
    regroup = {name: held for name, held in graph.transforms.items() if held.spec.urn == "beam:transform:group_by_key:v1"}
    above = {name.split("/")[0] for name in (held.unique_name for held in regroup.values())}
    assert above == {"Spread over workers", "Wait for all parts"}
    feeds = {"Spread over workers": "List parts", "Wait for all parts": "Build parts"}
    made_by = {output: held.unique_name for held in graph.transforms.values() for output in held.outputs.values()}
    for step, fed_by in feeds.items():
        (whole,) = (held for held in graph.transforms.values() if held.unique_name == step)
        assert all(made_by[name].startswith(fed_by) for name in whole.inputs.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"temp_location": "/tmp/here"}, "--temp-location '/tmp/here': give gs://BUCKET/FOLDER"),
        ({"temp_location": "gs://Bucket/tmp"}, "--temp-location"),
        ({"beam_options": ("staging_location=nowhere",)}, "--staging-location 'nowhere'"),
        ({"project": "123456"}, "not project number"),
        ({"project": "My Project"}, "not project description"),
        ({"beam_options": ("num_workers=5",)}, r"num_workers \(5\) cannot exceed max_num_workers \(4\)"),
        ({"beam_options": ("num_workers=many",)}, "argument --num_workers: invalid int value: 'many'"),
        ({"beam_options": ("num_wokers=5",)}, "Beam has no option 'num_wokers'; did you mean num_workers?"),
        ({"beam_options": ("job_name=Big Job",)}, "Invalid job_name"),
        ({"beam_options": ("dataflow_endpoint=somewhere",)}, "Invalid url"),
        ({"package": "no/such.whl"}, "no wheel there"),
    ],
)
def test_a_job_that_the_service_would_refuse_is_refused_before(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run_on_dataflow(CONFIG, replace(RUNNER, **change))


def test_folders_of_this_machine_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--input {tmp_path}: workers of Dataflow cannot reach"):
        run_on_dataflow(replace(CONFIG, input=tmp_path), RUNNER)
    with pytest.raises(ConfigError, match=f"--output {tmp_path}: workers of Dataflow cannot reach"):
        run_on_dataflow(replace(CONFIG, output=tmp_path), RUNNER)


def test_a_repair_is_not_for_the_service() -> None:
    with pytest.raises(ConfigError, match="--repair"):
        dataflow_options(replace(CONFIG, repair=True), RUNNER)


# --- the flex template


@pytest.fixture(scope="module")
def parameters() -> dict[str, dict[str, Any]]:
    listed = json.loads((SHIPPED / "metadata.json").read_bytes())["parameters"]
    return {parameter["name"]: parameter for parameter in listed}


def matches(parameter: dict[str, Any], value: str) -> bool:
    return all(re.search(pattern, value) for pattern in parameter["regexes"])


def test_the_templates_parameters_are_those_of_its_program(parameters: dict[str, dict[str, Any]]) -> None:
    actions = {action.dest: action for action in parser()._actions if action.dest != "help"}
    assert {*actions, "sdk_container_image"} == set(parameters)  # the image is an option of Beam
    for name, action in actions.items():
        assert parameters[name].get("isOptional", False) == (not action.required), name
    settings = {field.name for field in fields(IngestConfig)}
    assert settings - set(actions) == {"workers", "repair"}


def test_the_templates_patterns_allow_what_the_settings_do(parameters: dict[str, dict[str, Any]]) -> None:
    assert all(matches(parameters["source"], source) for source in SOURCES)
    assert all(matches(parameters["precision"], precision) for precision in PRECISIONS)
    assert not matches(parameters["source"], "kitti") and not matches(parameters["precision"], "float64")
    for text in ("1%", "0.5%", "20", "100%"):
        assert matches(parameters["max_rejected"], text) and parse_max_rejected(text) >= 0
    for text in ("many", "-1", "1 %%"):
        assert not matches(parameters["max_rejected"], text)
    for name in ("input", "output"):
        assert matches(parameters[name], "gs://bucket/a/b") and not matches(parameters[name], "/a/b")
    for name in ("limit", "samples_per_part"):
        assert matches(parameters[name], "10") and not matches(parameters[name], "0")


def test_the_image_is_built_with_the_release_of_beam_that_is_tested() -> None:
    text = (SHIPPED / "Dockerfile").read_text()
    assert f"ARG BEAM={beam.__version__}" in text
    assert "COPY main.py /template/main.py" in text and "FLEX_TEMPLATE_PYTHON_PY_FILE=/template/main.py" in text
