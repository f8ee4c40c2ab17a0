"""The tiny experiments learn what they are shown: from nothing to nearly everything on a few made-up views, by both rules of counting."""

from pathlib import Path

import pytest

from scenemill.pipelines.experiments.evaluation import run_evaluation
from scenemill.pipelines.experiments.exporting import run_export
from scenemill.pipelines.experiments.specs import read_spec, spec_text
from scenemill.pipelines.experiments.training import run_training
from scenemill.pipelines.query import query
from scenemill.transforms.worlds import write_world

SOURCES = ("front3d", "matterport")
SURE_OF_LITTLE = "model.object_mask_threshold=0.4"  # a short training is not yet as sure as the experiment wants its queries
OCCURRING = """
    SELECT rule, avg(quality) AS quality
    FROM (
        SELECT rule, class_id, sum(iou_sum) / (sum(tp) + sum(fp) / 2 + sum(fn) / 2) AS quality
        FROM counts WHERE metric = 'pq' GROUP BY rule, class_id HAVING sum(tp) + sum(fn) > 0
    )
    GROUP BY rule
"""


def silent(*_: object) -> None:
    pass


def learned(source: str, raw: Path, results: Path, *more: str) -> dict[str, float]:
    """PQ by rule, over the classes that occur, of a model that was trained and is evaluated on all views of a folder."""
    settings = [f"results_dir={results}", f"dataset.train.base_dir={raw}", f"dataset.test.base_dir={raw}", *more]
    name = f"tiny_{source}_2d"
    trained = run_training(read_spec(spec_text(name), settings, name), silent, silent)
    config = read_spec(spec_text(name), [*settings, f"evaluate.checkpoint={trained.checkpoint}"], name)
    tables = run_evaluation(config, silent).tables
    return {row["rule"]: row["quality"] for row in query(tables, OCCURRING).to_pylist()}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCENEMILL_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("source", "steps", "least"), [pytest.param("front3d", 150, 0.4, marks=pytest.mark.full), ("matterport", 80, 0.9)]
)
def test_a_short_training_lifts_pq_far_above_the_untrained_model(tmp_path: Path, source: str, steps: int, least: float) -> None:
    """One view of nine classes, one of two."""
    raw = tmp_path / "raw"
    write_world(source, raw, scenes=1, views=1, seed=7, grid=64)
    more = ("dataset.train.batch_size=1", "dataset.train.num_workers=0", SURE_OF_LITTLE)
    before = learned(source, raw, tmp_path / "before", *more, "train.is_dry_run=true")
    after = learned(source, raw, tmp_path / "after", *more, f"train.optim.max_steps={steps}")
    assert max(before.values()) < 0.05
    assert min(after.values()) > least
    checkpoint = tmp_path / "after" / "train" / "panoptic_recon_3d_model_latest.pth"
    settings = [f"results_dir={tmp_path}", f"export.checkpoint={checkpoint}", "export.on_cpu=true"]
    *told, path = run_export(read_spec(spec_text(f"tiny_{source}_2d"), settings, source))  # logits of tens, held against PyTorch
    assert Path(path).is_file() and any("pred_masks" in line for line in told)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("source", SOURCES)
def test_a_training_as_shipped_lifts_pq_near_one_on_a_handful_of_views(tmp_path: Path, source: str) -> None:
    """Three views. Every true wall counts for itself by the reference rule, where a prediction has one: no model reaches 1."""
    write_world(source, tmp_path / "raw", scenes=3, views=1, seed=7, grid=64)
    found = learned(source, tmp_path / "raw", tmp_path / "results")
    assert found["coco"] > 0.95
    assert found["reference"] > 0.9
