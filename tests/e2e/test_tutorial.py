"""The DIB-R tutorial, as it stands in ``examples``, at a small size."""

import runpy
import sys
from pathlib import Path

import pytest

from scenemill.trainers.timelapse import TimelapseParser
from scenemill.trainers.usd.records import MeshData

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "dibr_tutorial.py"


def test_the_tutorial_bends_and_paints_a_sphere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tutorial", "--views", "12", "--size", "32", "--epochs", "6", "--out", str(tmp_path)])
    told = runpy.run_path(str(SCRIPT))
    losses = told["losses"]
    assert len(losses) == 6 and losses[-1] < 0.95 * losses[0]
    found = TimelapseParser(tmp_path / "logs")
    last = found.read("mesh", "optimized_mesh", 0, 6).prims[0]
    assert isinstance(last, MeshData) and len(last.vertices) == 642
    assert "rgb" in last.materials
