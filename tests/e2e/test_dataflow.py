"""Submitting to Dataflow, against a stand-in on loopback that runs the very graph it was sent. The real service was never asked."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("google.cloud.dataflow", reason="the extra gcp is not installed")

from scenemill.pipelines.ingest import ingest
from scenemill.pipelines.runners.dataflow import run_on_dataflow
from scenemill.pipelines.runners.options import RunnerConfig
from scenemill.pipelines.runners.template import main
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import SceneMillError
from scenemill.schemas.places import Remote
from scenemill.transforms import object_clients
from scenemill.transforms.objects import place_of
from scenemill.transforms.store import open_store
from scenemill.transforms.verify import verify_store
from tests.forked import CommandLine
from tests.unit.dataflow_stand_in import Service, dataflow, graph_of
from tests.unit.gcs_double import gcs_service
from tests.unit.object_services import use
from tests.unit.store_sums import sums_of


@pytest.fixture(scope="module")
def local_store(front3d_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("local") / "store"
    ingest(IngestConfig("front3d", front3d_world, store, samples_per_part=2))
    return store


def runner_of(service: Service, folder: Path) -> RunnerConfig:
    (folder / "temp" / "staging").mkdir(parents=True)
    return RunnerConfig(
        "dataflow",
        project="p-id",
        region="us-central1",
        temp_location=str(folder / "temp"),
        image="registry/scenemill:1",
        machine_type="n2-standard-8",
        max_workers=4,
        beam_options=(f"dataflow_endpoint={service.url}", "no_auth", "num_workers=2", "disk_size_gb=50"),
    )


def test_the_submitted_graph_makes_the_store_that_a_local_run_makes(front3d_world: Path, local_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    config = IngestConfig("front3d", front3d_world, store, samples_per_part=2)
    with dataflow(run=True) as service:
        job = run_on_dataflow(config, runner_of(service, tmp_path))
        assert (job.id, job.state, service.message) == ("job-1", "DONE", "")
        assert service.log[0] == "POST /v1b3/projects/p-id/locations/us-central1/jobs"
    assert sums_of(store) == sums_of(local_store)
    (row,) = open_store(store).runs.to_pylist()
    assert (row["runner"], row["stored"], row["parts_built"]) == ("dataflow", 6, 3)


@pytest.mark.full
@pytest.mark.parametrize("by", ["command", "template"])
def test_raw_folder_and_store_may_be_in_a_bucket(
    by: str, front3d_world: Path, local_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore", reason="obstore is not installed: pip install 'scenemill[cloud]'")
    with gcs_service("mill") as url, dataflow(run=True) as service:
        use(monkeypatch, url)
        raw, store = place_of("gs://mill/raw"), place_of("gs://mill/store")
        assert isinstance(raw, Remote)
        for path in sorted(path for path in front3d_world.rglob("*") if path.is_file()):
            (raw / path.relative_to(front3d_world).as_posix()).create(path)
        if by == "command":
            run_on_dataflow(IngestConfig("front3d", raw, store, samples_per_part=2), runner_of(service, tmp_path))
        else:
            main(["--source=front3d", f"--input={raw}", f"--output={store}", "--samples_per_part=2", "--runner=FnApiRunner"])
        opened = open_store(store)
        assert opened.version == open_store(local_store).version
        assert verify_store(store).broken == ()
    object_clients._connect.cache_clear()


@pytest.mark.full
def test_a_job_that_fails_is_told_with_its_last_word(front3d_world: Path, tmp_path: Path) -> None:
    config = IngestConfig("matterport", front3d_world, tmp_path / "store")
    with dataflow(run=True) as service, pytest.raises(SceneMillError, match=r"job-1.*FAILED[\s\S]*ConfigError"):
        run_on_dataflow(config, runner_of(service, tmp_path))
    assert not (tmp_path / "store" / "zarr.json").exists()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel by name: staging looks no further."""
    path = tmp_path_factory.mktemp("wheel") / "scenemill-0.1.0-py3-none-any.whl"
    path.write_bytes(b"PK wheel")
    return path


def test_what_is_submitted_is_what_was_asked_for(wheel: Path, tmp_path: Path) -> None:
    config = IngestConfig("front3d", place_of("gs://bucket/raw"), place_of("gs://bucket/store"), limit=7)
    with dataflow(run=False) as service:
        job = run_on_dataflow(config, replace(runner_of(service, tmp_path), package=str(wheel)))
        (body,) = service.jobs
    assert body["name"] == job.name
    (pool,) = body["environment"]["workerPools"]
    assert (pool["machineType"], pool["numWorkers"], pool["diskSizeGb"]) == ("n2-standard-8", 2, 50)
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 4
    assert [image["containerImage"] for image in pool["sdkHarnessContainerImages"]] == ["registry/scenemill:1"]
    assert wheel.name in {package["name"] for package in pool["packages"]}
    assert (tmp_path / "temp" / "staging" / wheel.name).read_bytes() == wheel.read_bytes()
    told = body["environment"]["sdkPipelineOptions"]["options"]
    assert (told["project"], told["region"], told["labels"]) == ("p-id", "us-central1", ["tool=scenemill"])
    graph = graph_of(body)
    environments = [environment.payload for environment in graph.components.environments.values()]
    assert environments and all(b"registry/scenemill:1" in payload for payload in environments)


def test_the_command_shows_the_job_without_a_network(command_line: CommandLine) -> None:
    command = [
        *("ingest", "front3d", "--input", "gs://b-1/raw", "--output", "gs://b-1/s"),
        *("--runner", "dataflow", "--project", "p-id", "--region", "us-central1", "--temp-location", "gs://b-1/tmp"),
        *("--image", "registry/scenemill:1", "--dry-run"),
    ]
    shown, told = command_line.call(*command), command_line.call(*command, "--json")
    assert (shown.code, told.code) == (0, 0), shown.said + told.said
    for line in ("gs://b-1/raw", "Build parts", "staging_location=gs://b-1/tmp/staging", "not submitted"):
        assert line in shown.out
    document: dict[str, Any] = json.loads(told.out)
    assert (document["input"], document["steps"][-1], document["id"]) == ("gs://b-1/raw", "Publish", None)


def test_the_program_of_the_template_makes_the_same_store(front3d_world: Path, local_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    main(["--source=front3d", f"--input={front3d_world}", f"--output={store}", "--samples_per_part=2", "--runner=FnApiRunner"])
    assert sums_of(store) == sums_of(local_store)


def test_the_program_of_the_template_leaves_a_job_for_the_launcher(tmp_path: Path) -> None:
    """A launcher names a file for the job's description; nothing is submitted."""
    (tmp_path / "staging").mkdir()
    with dataflow(run=False) as service:
        main(
            [
                *("--source=front3d", "--input=gs://bucket/raw", "--output=gs://bucket/store", "--max_rejected=1%"),
                *("--runner=DataflowRunner", "--project=p-id", "--region=us-central1", "--job_name=from-template"),
                *(f"--temp_location={tmp_path}", f"--staging_location={tmp_path / 'staging'}", "--no_auth"),
                *("--sdk_container_image=registry/scenemill:1", "--sdk_location=container"),
                *(f"--template_location={tmp_path / 'job.json'}", f"--dataflow_endpoint={service.url}"),
            ]
        )
        assert service.log == []
    body = json.loads((tmp_path / "job.json").read_bytes())
    assert body["name"] == "from-template"
    names = {held.unique_name for held in graph_of(body).components.transforms.values()}
    assert {"List parts", "Build parts", "Publish"} <= names
