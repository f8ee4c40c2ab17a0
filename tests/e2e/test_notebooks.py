"""The notebooks in ``examples``: clean as they are kept, and run from the first cell to the last at a small size."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from scenemill import IngestConfig
from scenemill.pipelines.ingest import ingest

nbformat = pytest.importorskip("nbformat", reason="the extra dev is not installed")
nbclient = pytest.importorskip("nbclient", reason="the extra dev is not installed")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOKS = ("compare_runs", "explore_store", "fit_mesh")


def test_every_notebook_is_known_here() -> None:
    assert tuple(sorted(path.stem for path in EXAMPLES.glob("*.ipynb"))) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_valid_and_kept_without_outputs(name: str) -> None:
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", 4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown"
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)


@pytest.mark.parametrize(
    ("name", "pictures", "said"),
    [
        ("explore_store", ("explore/classes.png", "explore/sample.png", "explore/points.png"), "geometry"),
        ("compare_runs", ("compare/classes.png",), "mistakes chairs"),
        ("fit_mesh", ("fit/fit.png", "fit/out/views.png"), "mean distance to the true surface"),
    ],
)
def test_notebooks_run_as_they_stand(
    name: str, pictures: tuple[str, ...], said: str, front3d_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    if name != "fit_mesh":  # it makes these itself where they are not there
        shutil.copytree(front3d_world, tmp_path / "rooms" / "raw")
        ingest(IngestConfig("front3d", tmp_path / "rooms" / "raw", tmp_path / "rooms" / "store"))
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", 4)
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any(said in str(output) for output in outputs)
    assert not any(output.output_type == "error" for output in outputs)
    for picture in pictures:
        with Image.open(tmp_path / picture) as image:
            assert min(image.size) > 100 and len(image.convert("RGB").getcolors(1 << 24) or ()) > 10
