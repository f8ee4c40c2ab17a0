"""Every reader and parser, on inputs that coverage has grown and on fresh ones: refused in words, or read right, and nothing else."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest

from tests.faults.fuzz_run import TARGETS

RUN: Final = Path(__file__).with_name("fuzz_run.py")
QUICK: Final = ("npz_member", "job_request")
"""Targets of two kinds that begin within seconds, for the short form."""

guided: Final = pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has no wheel for this machine or Python")


def fuzz(target: str, *how: str) -> list[dict[str, Any]]:
    """What became of the inputs of a target, or of all."""
    done = subprocess.run([sys.executable, str(RUN), "--target", target, *how], capture_output=True, text=True, check=False)
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, (reports, done.stderr[-2000:])
    return reports


def test_the_kept_inputs_and_fresh_ones_are_refused_or_read_right() -> None:
    reports = fuzz("all", "--light")
    assert [report["target"] for report in reports] == [*TARGETS]
    for report in reports:
        assert report["executions"] and not report["defects"], report


@guided
@pytest.mark.parametrize("target", QUICK)
def test_coverage_grows_inputs(target: str) -> None:
    """A second or two of each: the long form is for defects, this one for the fuzzing itself."""
    (report,) = fuzz(target, "--seconds", "2")
    assert report["executions"] > 10 and report["coverage"] > 10 and not report["defects"], report


@guided
@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", TARGETS)
def test_inputs_grown_by_coverage_are_refused_or_read_right(target: str) -> None:
    (report,) = fuzz(target, "--runs", "100000", "--seconds", "300")
    assert report["executions"] and not report["defects"], report
