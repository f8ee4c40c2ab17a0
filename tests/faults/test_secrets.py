"""No verb says, writes or keeps a secret: not one that stands where it should not, and not one that stands where it should."""

import base64
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.main import get_command

from scenemill.pipelines import cli
from scenemill.pipelines.experiments.specs import load_spec
from scenemill.pipelines.jobs.client import JobClient
from scenemill.pipelines.jobs.server import JobService, JobServiceConfig
from scenemill.pipelines.jobs.token import TOKEN_VARIABLE
from scenemill.pipelines.schedule.files import load_schedule
from scenemill.schemas.errors import SceneMillError
from scenemill.trainers.checkpoint import load_checkpoint
from scenemill.transforms.objects import place_of

MARK: Final = "pl4nt3d"
"""Of every secret here."""

PLACE: Final = f"s3://someone:{MARK}-of-a-place@bucket/scenes"
KEY: Final = f"{MARK}-passphrase"
ENVIRONMENT: Final = {
    "AWS_ACCESS_KEY_ID": f"AKIA{MARK}",
    "AWS_SECRET_ACCESS_KEY": f"{MARK}-of-s3",
    "AWS_SESSION_TOKEN": f"{MARK}-of-a-session",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_REGION": "us-east-1",
    "GOOGLE_BEARER_TOKEN": f"{MARK}-of-gs",
    "GOOGLE_BASE_URL": "http://127.0.0.1:9",
    "HTTPS_PROXY": f"http://someone:{MARK}-of-a-proxy@127.0.0.1:9",
    "SCENEMILL_TIMEOUT_S": "1",
    "WANDB_API_KEY": f"{MARK}-of-curves",
    "WANDB_MODE": "disabled",
    "MY_HOOK": f"http://127.0.0.1:9/{MARK}-of-a-hook",
    TOKEN_VARIABLE: f"{MARK}ofjobs".ljust(40, "0"),
}
"""Where nobody listens, too."""

STORES: Final = "verify show versions clean runs bench-loader order card export-raw export-coco export-mesh"
EXPERIMENTS: Final = "train tune evaluate inference export gen-trt-engine"
_SPEC: Final = "-e tiny_front3d_2d results_dir={out} encryption_key={key} dataset.train.base_dir={uri}"
REFUSED: Final[dict[str, list[str]]] = {
    **{verb: ["{uri}"] for verb in STORES.split()},
    **{verb: [_SPEC, "-e spec.yaml"] for verb in EXPERIMENTS.split()},
    "synth": ["front3d {uri}"],
    "convert-views": ["{uri} {out}", "{out} {uri}"],
    "plan": ["front3d --input {uri} --output {out}", "front3d --input {out} --output {uri}"],
    "ingest": [
        "front3d --input {uri} --output {out}",
        "front3d --input {out} --output {uri}",
        "front3d --input {out} --output {out} --splits a={uri}",
    ],
    "validate": ["front3d --input {uri}", "front3d --input {out} --report {uri}"],
    "default-specs": ["{uri}"],
    "schema": ["{uri}"],
    "export-triton": ["-e tiny_front3d_3d {out}/repository export.checkpoint={uri} encryption_key={key}"],
    "fit": ["views {uri}", "views {out} --template {uri}", "views {out} --out {uri}", "views {out} --tables {uri}"],
    "selfcheck": ["{uri}"],
    "score": ["{uri} {out} --tables {out}", "{out} {uri} --tables {out}", "{out} {out} --tables {uri}"],
    "query": ["{uri} SELECT", "{out} {uri}"],
    "report": ["{uri}"],
    "view": ["{uri}", "--logdir {uri}", "{out} --token {uri}"],
    "mock-checkpoints": ["{out} --test_objs {uri}"],
    "demo": ["{uri}"],
    "serve-jobs": ["--root {uri}", "--root {out} --home {uri}"],
    "jobs": ["--url http://someone:{key}@127.0.0.1:9 list", "--url http://127.0.0.1:9 create ingest input={uri}"],
    "schedule": ["run {uri} --once", "list {uri}", "convert {schedule}", "run {schedule} --once"],
}
"""Every verb -> words with a secret in them, all of which are refused, or fail."""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, secrets all about; afterwards none of them is anywhere in it."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "SCENEMILL_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    given = {
        "daily.yaml": f"source: front3d\ninput: {PLACE}\noutput: out/store\nstart: 2026-01-01\nevery: 1d\n",
        "spec.yaml": f"dataset: {{train: {{base_dir: {PLACE}}}}}\nresults_dir: out\nencryption_key: {KEY}\n",
    }
    for name, text in given.items():
        (tmp_path / name).write_text(text)
    yield tmp_path
    for name in given:
        (tmp_path / name).unlink()
    assert kept_below(tmp_path) == []


def kept_below(folder: Path) -> list[str]:
    """Files that hold a secret, as it is or as text is written elsewhere, also in compressed columns."""
    forms = {form.encode() for form in (MARK, quote(MARK), base64.b64encode(MARK.encode()).decode()[:8])}
    found = [path for path in folder.rglob("*") if path.is_file()]
    plain = {str(path) for path in found if any(form in path.read_bytes() for form in forms)}
    columns = {str(path) for path in found if path.suffix == ".parquet" and MARK in str(pq.read_table(path).to_pylist())}
    return sorted(plain | columns)


def said_by(words: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit code of a command, and all that it prints, a traceback included."""
    monkeypatch.setattr(sys, "argv", ["scenemill", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        code = 1
        traceback.print_exc()
    out, err = capfd.readouterr()
    return code, out + err


@contextmanager
def served(root: Path) -> Iterator[JobClient]:
    """A client of a service that runs nothing."""
    with (
        JobService(JobServiceConfig((root,), root / "home", port=0, slots=0)) as service,
        JobClient(service.url, ENVIRONMENT[TOKEN_VARIABLE]) as client,
    ):
        yield client


def test_every_verb_has_a_case() -> None:
    assert set(REFUSED) == set(get_command(cli.app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", sorted(REFUSED))
def test_a_secret_is_not_repeated_by_whoever_refuses_it(
    verb: str, planted: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for case in REFUSED[verb]:
        words = [word.format(uri=PLACE, out="out", key=KEY, schedule="daily.yaml") for word in case.split()]
        for more in ([], ["--verbose"]):
            code, said = said_by([*more, verb, *words], capfd, monkeypatch)
            assert code != 0 and said, case
            assert MARK not in re.sub(r"\s", "", said), f"{verb} {case}: {said}"


def test_a_passphrase_may_look_like_an_address(
    planted: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = "encryption_key=a://word@b"
    assert load_spec(None, [given]).encryption_key == "a://word@b"
    code, said = said_by(["train", "-e", "nothing.yaml", given], capfd, monkeypatch)
    assert code == 2 and "nothing.yaml: no such file" in said and "word" not in said


@pytest.mark.parametrize("name", ["place", "spec", "override", "schedule", "job"])
def test_a_secret_in_an_address_gets_nowhere_from_python_either(name: str, planted: Path) -> None:
    with pytest.raises(SceneMillError, match=r"a user or a password") as told:
        if name == "place":
            place_of(PLACE)
        elif name == "spec":
            load_spec("spec.yaml")
        elif name == "override":
            load_spec(None, [f"dataset.val.base_dir={PLACE}"])
        elif name == "schedule":
            load_schedule(planted / "daily.yaml")
        else:
            with served(planted) as client:
                client.create("ingest", {"input": PLACE})
    assert MARK not in "".join(traceback.format_exception(told.value))


@pytest.mark.full
def test_a_secret_in_its_place_is_used_and_not_told(
    planted: Path, front3d_world: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [f"dataset.{split}.base_dir={front3d_world}" for split in ("train", "val", "test")]
    given = ["-e", "tiny_front3d_2d", "results_dir=out", f"encryption_key={KEY}", "dataset.train.num_workers=0", *data]
    checkpoint = "out/train/panoptic_recon_3d_model_latest.pth"
    named = [f"{group}.checkpoint={checkpoint}" for group in ("evaluate", "inference", "export")]
    Path("photos").mkdir()
    Image.new("RGB", (32, 24)).save("photos/grey.png")
    for verb, more in {
        "train": ["train.is_dry_run=true", "wandb.enable=true"],
        "evaluate": named,
        "inference": [*named, "inference.images_dir=photos"],
        "export": [*named, "export.on_cpu=true"],
    }.items():
        code, said = said_by(["--verbose", verb, *given, *more], capfd, monkeypatch)
        assert code == 0 and MARK not in said, said
    with pytest.raises(SceneMillError, match="encrypted") as told:
        load_checkpoint(planted / checkpoint)
    assert MARK not in str(told.value) and load_checkpoint(planted / checkpoint, KEY)["global_step"] == 1
    Path("schedules").mkdir()
    text = f"source: front3d\ninput: {planted}/nothing\noutput: ../out/store\nstart: 2026-01-01\nevery: 1d\nretries: 0\n"
    Path("schedules/daily.yaml").write_text(f"{text}alerts: {{webhook_env: MY_HOOK}}\n")
    code, said = said_by(["--verbose", "schedule", "run", "schedules", "--once"], capfd, monkeypatch)
    assert code == 3 and "webhook" in said and MARK not in said


def test_a_passphrase_of_a_job_is_in_files_of_its_owner_alone(planted: Path) -> None:
    home = planted / "home"
    with served(planted) as client:
        job = client.create("train", {"encryption_key": KEY, "results_dir": str(planted / "out")})
        told = [str(client.show(job.id)), str(client.list()), "".join(client.logs(job.id, follow=False))]
    assert MARK not in "".join(told)
    holding = [Path(path) for path in kept_below(home)]
    assert [(path.parent, path.stat().st_mode & 0o077) for path in holding] == [(home / "jobs" / job.id, 0)]
    holding[0].unlink()
