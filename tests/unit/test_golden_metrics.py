"""The golden numbers of the published metrics, on the real views: 29 cases in 3D to 1e-9, 18 in 2D to 1e-7 percent."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenemill.trainers.metrics import STUFF, THINGS, Tally, panoptic_reconstruction_quality
from scenemill.trainers.panoptic import panoptic_quality, pq_averages, relative_depth_error
from scenemill.trainers.segments import segments_from_labels, segments_from_panoptic
from scenemill.transforms.geometry import front3d_frustum
from scenemill.transforms.sources import Listed, open_source, read_sample
from tests.unit.recipes import Volume, cook_image, cook_volume

pytestmark = pytest.mark.real


@lru_cache(maxsize=2)
def read_view(root: Path, dataset: str, key: str) -> Mapping[str, Volume]:
    source = open_source(dataset, root / "data" / dataset, [Listed(key, ())])
    sample, findings = read_sample(source, Listed(key, ()))
    assert not [finding for finding in findings if finding.blocks]
    return dict(sample.arrays)


def view_of(real_data: Path, view: Mapping[str, str]) -> Mapping[str, Volume]:
    return read_view(real_data, view["dataset"], f"{view['scene']}/{view['image']}")


def panoptic_of(semantic: Volume, instance: Volume, stuff: tuple[int, ...]) -> tuple[Volume, dict[int, int]]:
    """Panoptic ids and classes as the references number them: stuff first, then things by ascending id."""
    panoptic, classes = np.zeros(semantic.shape, np.int32), {}
    for rank, name in enumerate(np.unique(instance[instance > 0]).tolist(), len(stuff) + 1):
        panoptic[instance == name] = rank
        labels = semantic[instance == name]
        labels = labels[(labels != 0) & ~np.isin(labels, stuff)]
        if labels.size:
            classes[rank] = int(np.bincount(labels).argmax())
    for rank, label in enumerate(stuff, 1):
        if (semantic == label).any():
            panoptic[semantic == label] = rank
            classes[rank] = label
    return panoptic, classes


def test_volumes_score_the_golden_numbers(real_data: Path) -> None:
    cases = json.loads((real_data / "golden" / "metrics" / "prq.json").read_text())["cases"]
    assert len(cases) >= 29
    for case in cases:
        total, dataset = Tally(), case["samples"][0]["view"]["dataset"]
        stuff = STUFF[dataset]
        for entry in case["samples"]:
            view = view_of(real_data, entry["view"])
            distance = np.minimum(np.abs(view["geometry"]), 12)
            panoptic, classes = panoptic_of(view["semantic_3d"], view["instance_3d"], stuff)
            told, told_distance, told_classes = cook_volume(entry["recipe"], panoptic, distance, classes)
            order = sorted(told_classes, reverse=case["prediction_order"] == "descending")
            predicted = segments_from_panoptic(told, {name: told_classes[name] for name in order})
            true = segments_from_labels(view["semantic_3d"], view["instance_3d"], stuff)
            frustum = front3d_frustum(256) if dataset == "front3d" else ~view["outside"]
            total += panoptic_reconstruction_quality(true, distance, predicted, told_distance, frustum, dataset)["reference"]
        compare_volumes(case, total, stuff)


def compare_volumes(case: Mapping[str, Any], total: Tally, stuff: tuple[int, ...]) -> None:
    expected = case["expected"]
    for group, classes in (("all", None), ("things", THINGS), ("stuff", stuff)):
        average = total.average(classes)
        if expected[group] is None:
            assert average.quality is None, case["id"]
        else:
            observed = [average.quality, average.segmentation, average.recognition, average.classes]
            wanted = [expected[group][name] for name in ("prq", "rsq", "rrq", "classes")]
            assert observed == pytest.approx(wanted, abs=1e-9), (case["id"], group)
    assert {str(label) for label in total.classes} == set(expected["per_class"])
    for label, wanted in expected["per_class"].items():
        counts = total[int(label)]
        assert (counts.tp, counts.fp, counts.fn) == (wanted["tp"], wanted["fp"], wanted["fn"]), (case["id"], label)
        assert counts.iou_sum == pytest.approx(wanted["iou_sum"], abs=1e-9), (case["id"], label)


def test_images_score_the_golden_numbers(real_data: Path) -> None:
    cases = json.loads((real_data / "golden" / "metrics" / "pq2d.json").read_text())["cases"]
    assert len(cases) >= 18
    for case in cases:
        totals = {limit: Tally() for limit in ("-1.0", "0.5", "0.25", "0.1")}
        for entry in case["samples"]:
            view, source = view_of(real_data, entry["view"]), entry["view"]["dataset"]
            semantic, instance, depth = view["semantic_2d"], view["instance_2d"], view["depth"].astype(np.float64)
            if source == "matterport":
                depth = np.rint(depth * 4000) / 4000
                depth[(depth < 0.4) | (depth > 6.0)] = 0
            names = np.unique(instance[semantic != 0]).tolist()
            of = {name: rank for rank, name in enumerate(names, 1)}
            segments, classes = np.zeros(instance.shape, np.int32), {}
            for name, rank in of.items():
                inside = (instance == name) & (semantic != 0)
                segments[inside] = rank
                classes[rank] = int(np.bincount(semantic[inside]).argmax())
            told, held, true, told_depth = cook_image(entry["recipe"], segments, classes, of, semantic, depth)
            error = relative_depth_error(depth, told_depth)
            for limit in totals:
                bound = None if limit == "-1.0" else float(limit)
                totals[limit] += panoptic_quality(true, instance, told, held, source, "reference", error, bound)
        for limit, total in totals.items():
            expected, averages = case["expected"][limit], pq_averages(total, "reference")
            for group, name in (("all", "dpq"), ("things", "dpq_th"), ("stuff", "dpq_st")):
                assert 100 * (averages[group].quality or 0) == pytest.approx(expected[name], abs=1e-7), (case["id"], limit, group)
            for label, wanted in expected["per_class"].items():
                counts = total[int(label)]
                assert (counts.tp, counts.fp, counts.fn) == (wanted["tp"], wanted["fp"], wanted["fn"]), (case["id"], limit, label)
