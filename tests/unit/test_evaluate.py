"""Evaluation: the numbers of the metric tables, whatever the batches; arithmetic where it can be done by hand."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scenemill.pipelines.experiments.inference import infer_store
from scenemill.pipelines.experiments.specs import load_spec
from scenemill.pipelines.ingest import ingest
from scenemill.pipelines.score import ScoreConfig, score, score_sample
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.labels import LABELS, read_label_map
from scenemill.schemas.sample import Sample
from scenemill.trainers.batches import SceneDataset, SceneLoader
from scenemill.trainers.collate import Batch
from scenemill.trainers.evaluate import Evaluation, count_image, evaluate_images
from scenemill.trainers.metrics import Tally
from scenemill.trainers.nvpanoptix3d.postprocess import PanopticImage, Segment
from scenemill.trainers.nvpanoptix3d.stage1 import Stage1Output
from scenemill.trainers.order import hash_range
from scenemill.trainers.panoptic import METRICS, PIXEL_RULES
from scenemill.trainers.sidefiles import label_map_of
from scenemill.transforms.store import Store, open_store

SPEC = Path(__file__).resolve().parents[2] / "pipelines" / "experiments" / "shipped" / "tiny_front3d_2d.yaml"
QUERIES = 40
SOURCES = ("front3d", "matterport")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads of a small model spend their time waiting for each other where other work shares the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Teller(nn.Module):
    """A model that knows the truth of a store's images by heart, and tells it a little wrong."""

    def __init__(self, store: Store, padded: tuple[int, int] = (256, 320)) -> None:
        super().__init__()
        self.padded = padded
        self.known = {
            sample["rgb"].tobytes(): sample
            for sample in (store.read(key, ["rgb", "semantic_2d", "instance_2d", "depth"]) for key in store)
        }

    def forward(self, images: Tensor) -> Stage1Output:
        told = [self.tell(self.known[image[:, :240].permute(1, 2, 0).contiguous().numpy().tobytes()]) for image in images]
        logits, masks, depths = (torch.stack(tensors) for tensors in zip(*told, strict=True))
        nothing: Any = None
        return Stage1Output(logits, masks, depths, nothing, [], nothing, nothing, [], nothing)

    def tell(self, sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
        """Every instance, moved by a few pixels; every third of another class; depth too large by 0, 0.18, 0.36 or 0.54."""
        semantic, instance = sample["semantic_2d"].astype(int), sample["instance_2d"].astype(int)
        logits, masks = torch.zeros(QUERIES, 14), torch.full((QUERIES, *self.padded), -9.0)
        logits[:, 13] = 9.0
        for query, name in enumerate(np.unique(instance[instance > 0])[:QUERIES]):
            label = int(np.bincount(semantic[instance == name]).argmax())
            logits[query, 13] = 0.0
            logits[query, label if query % 3 else 1 + label % 12] = 9.0
            moved = np.roll(instance == name, 3 * query, axis=1)
            masks[query, :240][torch.from_numpy(moved)] = 9.0 - query / QUERIES
        depth = torch.zeros(1, *self.padded)
        depth[0, :240] = torch.from_numpy(sample["depth"] * (1 + np.float32(0.18) * (instance % 4)).astype(np.float32))
        return logits, masks, depth


@pytest.fixture(scope="module")
def stores(front3d_world: Path, matterport_world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    folder = tmp_path_factory.mktemp("evaluated")
    for source, raw in (("front3d", front3d_world), ("matterport", matterport_world)):
        ingest(IngestConfig(source, raw, folder / source))
    return {source: open_store(folder / source) for source in SOURCES}


def config_of(source: str, *overrides: str) -> ExperimentConfig:
    return load_spec(SPEC, [f"dataset.name={source}", "dataset.enable_mp_occ=false", *overrides])


def loader_of(store: Store, config: ExperimentConfig, batch_size: int = 2) -> SceneLoader:
    return SceneLoader(SceneDataset(store, None, config.dataset), batch_size, shuffle=False)


@pytest.mark.parametrize("source", SOURCES)
def test_the_numbers_are_those_of_the_metric_tables(source: str, stores: dict[str, Store], tmp_path: Path) -> None:
    store, config = stores[source], config_of(source)
    model = Teller(store)
    evaluation = evaluate_images(model, loader_of(store, config), config, source)
    outcome = infer_store(config, model, store, "", tmp_path / "told")  # type: ignore[arg-type]
    assert (outcome.count("written"), evaluation.samples) == (len(store), len(store))
    total: dict[tuple[str, str], Tally] = {}
    depths = []
    for key in store:
        tallies, errors = score_sample(store, key, tmp_path / "told")
        total = {name: total.get(name, Tally()) + tally for name, tally in tallies.items()}
        depths.extend([errors] if errors else [])
    assert evaluation.tallies == total
    assert total["pq", "reference"] != total["pq", "coco"] != total["dpq_0.1", "reference"]
    assert evaluation.depth is not None
    for name, mean in evaluation.depth.items():
        assert mean == pytest.approx(np.mean([errors[name] for errors in depths]), abs=1e-9), name
    scores = {
        (row["metric"], row["rule"], row["group"]): row["quality"]
        for row in score(ScoreConfig(tmp_path / "told", store.root, tmp_path / "tables")).scores.to_pylist()
    }
    found = evaluation.kpi("test")
    for group, name in (("all", "dpq"), ("things", "dpq_th"), ("stuff", "dpq_st")):
        for metric, told in (
            ("pq", "-1.0"),
            ("dpq_0.5", "0.5"),
            ("dpq_0.25", "0.25"),
            ("dpq_0.1", "0.1"),
            ("dpq_mean", "averages"),
        ):
            assert found.pop(f"test_{name}_{told}_epoch") == pytest.approx(100 * scores[metric, "reference", group], abs=1e-9)
    assert not found
    by_limit = [evaluation.kpi("val")[f"val_dpq_{limit}_epoch"] for limit in ("-1.0", "0.5", "0.25", "0.1")]
    assert by_limit[0] > by_limit[-1] > 0 and len(set(by_limit)) > 2


def test_batches_and_ranks_change_nothing(stores: dict[str, Store]) -> None:
    store, config = stores["front3d"], config_of("front3d")
    model = Teller(store)
    whole = evaluate_images(model, loader_of(store, config, 6), config, "front3d")
    single = [evaluate_images(model, [batch], config, "front3d") for batch in loader_of(store, config, 1)]
    assert len(single) == 6
    assert np.array_equal(sum((part.counts for part in reversed(single)), Evaluation.empty().counts), whole.counts)
    assert (single[0] + single[1]).samples == 2 and whole.counts.dtype == np.int64


def test_the_loss_is_the_mean_over_samples_whatever_the_batches(stores: dict[str, Store]) -> None:
    store, config = stores["front3d"], config_of("front3d")
    seen: list[tuple[str, int]] = []

    def compare(output: Stage1Output, batch: Batch, generator: torch.Generator) -> tuple[Tensor, None]:
        assert torch.is_inference_mode_enabled()
        assert output.pred_logits.shape == (1, QUERIES, 14) and output.pred_masks.shape[0] == batch["image"].shape[0] == 1
        ((key,), (visit,)) = batch.keys, batch.visits
        drawn = torch.rand((), generator=generator)
        seen.append((key, int(batch["gt_masks"].shape[0])))
        assert batch.instances[0].gt_classes.shape == (seen[-1][1],) and len(batch.masks_of) == 1
        return 10.0 * visit.sample + drawn, None

    found = [evaluate_images(Teller(store), loader_of(store, config, size), config, "front3d", compare) for size in (4, 1)]
    keys = [key for key, _ in seen]
    assert keys[:6] == keys[6:] == store.keys and seen[:6] == seen[6:] and len({masks for _, masks in seen}) > 1
    drawn = [float(torch.rand((), generator=torch.Generator().manual_seed(int(hash_range(1, n)[0] >> 1)))) for n in range(6)]
    assert found[0].loss == found[1].loss == pytest.approx(25 + np.mean(drawn), abs=1e-6)
    assert len(set(drawn)) == 6  # no two samples share their points
    assert next(iter(found[0].kpi("val"))) == "val_loss" and found[0].kpi("val")["val_loss"] == found[0].loss
    assert np.array_equal(found[0].counts, found[1].counts)


def test_without_a_comparison_there_is_no_loss(stores: dict[str, Store]) -> None:
    config = config_of("front3d")
    found = evaluate_images(Teller(stores["front3d"]), loader_of(stores["front3d"], config, 6), config, "front3d")
    assert found.loss is None and "test_loss" not in found.kpi("test")


def test_losses_add_up_in_any_order_and_one_without_number_is_not_hidden() -> None:
    losses = [0.1, 1e6, 3.25, 1e-7]
    whole = Evaluation.of_losses(losses)
    parts = [Evaluation.of_losses([loss]) for loss in reversed(losses)]
    assert whole.loss == sum(parts, Evaluation.empty()).loss == pytest.approx(math.fsum(losses) / 4, abs=1e-7)
    for lost in (math.nan, math.inf, -math.inf, 1.1e6):
        assert (mean := (whole + Evaluation.of_losses([lost])).loss) is not None and math.isnan(mean)


def test_resized_images_are_counted_at_the_size_of_the_truth(stores: dict[str, Store]) -> None:
    store = stores["front3d"]
    plain = config_of("front3d")
    halved = replace(plain, dataset=config_of("front3d", "dataset.augmentation.test_min_size=120").dataset)
    sizes = {batch.unpadded for batch in loader_of(store, halved, 6)}
    assert sizes == {((120, 160),) * 6}

    class Halved(Teller):
        def forward(self, images: Tensor) -> Stage1Output:
            assert images.shape[-2:] == (128, 160)
            told = super().forward(next(truth))
            return told._replace(pred_masks=told.pred_masks[..., ::2, ::2], pred_depths=told.pred_depths[..., ::2, ::2])

    truth = iter([batch["image"] for batch in loader_of(store, plain, 6)])
    usual = evaluate_images(Teller(store), loader_of(store, plain, 6), plain, "front3d")
    found = evaluate_images(Halved(store), loader_of(store, halved, 6), halved, "front3d")
    assert found.samples == 6 and found.depth is not None and usual.depth is not None
    assert found.depth["abs_rel"] == pytest.approx(usual.depth["abs_rel"], abs=0.02)
    assert found.kpi("val")["val_dpq_-1.0_epoch"] == pytest.approx(usual.kpi("val")["val_dpq_-1.0_epoch"], abs=2)


def test_a_label_map_is_learned_told_and_scored_alike(stores: dict[str, Store], tmp_path: Path) -> None:
    """Desks are tables, tables stuff, walls things; floor and bed change numbers; chairs teach nothing."""
    store = stores["front3d"]
    changed: dict[int, dict[str, Any]] = {
        2: {"trainId": 11},
        3: {"trainId": 0},
        5: {"isthing": 0},
        6: {"isthing": 0, "trainId": 5},
        10: {"isthing": 1},
        11: {"trainId": 2},
    }
    entries = [
        {"id": one.id, "trainId": one.id, "isthing": int(one.thing), "name": one.name, "color": list(one.color)}
        for one in LABELS[1:]
    ]
    path = tmp_path / "map.json"
    path.write_text(json.dumps([entry | changed.get(int(str(entry["id"])), {}) for entry in entries]))
    config = config_of("front3d", f"dataset.label_map={path}")
    labels = label_map_of(config.dataset)
    evaluation = evaluate_images(Teller(store), loader_of(store, config), config, "front3d")
    infer_store(config, Teller(store), store, "", tmp_path / "told")  # type: ignore[arg-type]
    scored = score(ScoreConfig(tmp_path / "told", store.root, tmp_path / "tables", labels=labels)).scores.to_pylist()
    plain = score(ScoreConfig(tmp_path / "told", store.root, tmp_path / "others")).scores.to_pylist()
    found = evaluation.averages("pq", "reference")
    classes = {"all": set(range(1, 13)) - {3, 6}, "things": {1, 4, 7, 8, 9, 10, 11}, "stuff": {2, 5, 12}}
    tally = evaluation.tallies["pq", "reference"]
    assert not {3, 6} & {*tally.true_classes} and tally[5].tp + tally[5].fn > 0
    for group, members in classes.items():
        mean = float(np.mean([tally[label].quality for label in sorted(members)]))
        assert found[group].quality == pytest.approx(mean) and found[group].classes == len(members)
        (row,) = (row for row in scored if (row["metric"], row["rule"], row["group"]) == ("pq", "reference", group))
        assert row["quality"] == pytest.approx(mean)
    assert {row["group"] for row in scored} >= {"wall", "bed", "floor"} and "chair" not in {
        row["group"] for row in scored if row["fn"] or row["tp"]
    }
    assert {row["run"] for row in scored} != {row["run"] for row in plain}  # another question, another run
    table = json.loads(next((tmp_path / "told").glob("*/segments.json")).read_bytes())["segments_2d"]
    assert all(
        segment["isthing"] == (segment["category_id"] in classes["things"])
        for segment in table
        if segment["category_id"] not in {3, 6}
    )


def image_of(panoptic: list[list[int]], classes: dict[int, int], depth: float) -> PanopticImage:
    segments = tuple(Segment(name, label < 10, label) for name, label in classes.items())
    shape = (len(panoptic), len(panoptic[0]))
    return PanopticImage(torch.tensor(panoptic, dtype=torch.int32), segments, torch.full(shape, depth), torch.zeros(13, *shape))


TRUE = (np.array([[3, 3, 10, 0]], np.uint8), np.array([[7, 7, 0, 0]]), np.full((1, 4), 2.0, np.float32))


def test_a_hand_counted_image() -> None:
    found = count_image(*TRUE, image_of([[1, 1, 2, 2]], {1: 3, 2: 10}, 2.4), "front3d")
    kpi = found.kpi("val")
    assert kpi["val_dpq_-1.0_epoch"] == kpi["val_dpq_0.5_epoch"] == kpi["val_dpq_0.25_epoch"] == pytest.approx(200 / 12)
    assert kpi["val_dpq_th_-1.0_epoch"] == pytest.approx(100 / 9) and kpi["val_dpq_st_-1.0_epoch"] == pytest.approx(100 / 3)
    assert kpi["val_dpq_0.1_epoch"] == 0  # 0.2 away: every pixel is dropped
    assert kpi["val_dpq_averages_epoch"] == pytest.approx(200 / 12 * 2 / 3)
    assert found.averages("pq", "coco")["all"].quality == 1.0
    assert found.depth == pytest.approx({"abs_rel": 0.2, "rmse_m": 0.4, "delta_1": 1.0}, abs=1e-6)


def test_a_hand_counted_image_under_a_label_map() -> None:
    """Chairs are stuff: by the rule of COCO two of them are one segment; walls are things, and two of them two."""
    entries = [{"id": 3, "trainId": 3, "isthing": 0, "name": "seat", "color": [1, 2, 3]}]
    entries += [{"id": 10, "trainId": 10, "isthing": 1, "name": "wall", "color": [4, 5, 6]}]
    labels = read_label_map(entries, "map.json", contiguous=False)
    truth = np.array([[3, 3, 10, 10]], np.uint8), np.array([[7, 8, 1, 2]]), np.full((1, 4), 2.0, np.float32)
    told = image_of([[1, 1, 2, 3]], {1: 3, 2: 10, 3: 10}, 2.0)
    found = count_image(*truth, told, "front3d", labels)
    counts = {rule: found.tallies["pq", rule] for rule in PIXEL_RULES}
    assert [(counts["coco"][label].tp, counts["coco"][label].fn) for label in (3, 10)] == [(1, 0), (2, 0)]
    assert [(counts["reference"][label].tp, counts["reference"][label].fn) for label in (3, 10)] == [(0, 2), (2, 0)]
    assert found.averages("pq", "reference")["things"].quality == pytest.approx(1 / 9)  # 1, 2, 4..10, of which 10 is whole
    assert found.averages("pq", "coco")["stuff"].quality == 1.0
    usual = count_image(*truth, told, "front3d").tallies["pq", "coco"]
    assert [(usual[label].tp, usual[label].fn) for label in (3, 10)] == [(0, 2), (1, 0)]


def test_depth_that_is_no_number_is_not_hidden_in_a_mean() -> None:
    good = count_image(*TRUE, image_of([[1, 1, 2, 2]], {1: 3, 2: 10}, 2.0), "front3d")
    lost = count_image(*TRUE, image_of([[0, 0, 0, 0]], {}, math.nan), "front3d")
    assert good.depth == {"abs_rel": 0.0, "rmse_m": 0.0, "delta_1": 1.0}
    assert (errors := (good + lost).depth) is not None and all(math.isnan(value) for value in errors.values())


def test_no_image_has_no_numbers() -> None:
    assert Evaluation.empty().depth is None
    with pytest.raises(ConfigError, match="no image was evaluated"):
        Evaluation.empty().kpi("test")
    assert list(Evaluation.empty().tallies) == [(metric, rule) for metric, rule, _ in METRICS]
