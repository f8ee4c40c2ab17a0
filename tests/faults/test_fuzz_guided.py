"""Every reader and parser, on inputs that coverage has grown and on fresh ones: refused in words, or read right, and nothing else."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("fuzz_run.py")
RAW = ("npz", "npz_member", "npy", "exr", "png", "jpeg", "list_json", "list_txt", "metadata", "camera_set", "campose", "frustum")
SCENES = ("obj", "gltf", "log_labels", "log_names", "usd_text", "usd_crate")
TEXTS = ("spec", "schedule", "job_spec", "label_map", "place", "sql")


def fuzz(target: str, *how: str) -> list[dict[str, object]]:
    """What became of the inputs of a target, or of all."""
    done = subprocess.run([sys.executable, str(RUN), "--target", target, *how], capture_output=True, text=True, check=False)
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, (reports, done.stderr[-2000:])
    return reports


def test_the_kept_inputs_and_fresh_ones_are_refused_or_read_right() -> None:
    reports = fuzz("all", "--light")
    assert [report["target"] for report in reports] == [*RAW, *SCENES, *TEXTS]
    for report in reports:
        assert report["executions"] and not report["defects"], report


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed: pip install atheris")
@pytest.mark.parametrize("target", [*RAW, *SCENES, *TEXTS])
def test_inputs_grown_by_coverage_are_refused_or_read_right(target: str) -> None:
    (report,) = fuzz(target, *(("--runs", "100000") if target in RAW or target == "place" else ("--seconds", "120")))
    assert report["executions"] and not report["defects"], report
