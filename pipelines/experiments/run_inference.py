"""Prediction from a folder of images as a Beam graph: ``RunInference`` with a handler of our model.

What moves is names of files and what became of each; pixels stay within the step that reads, predicts and writes.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import apache_beam as beam
from apache_beam.ml.inference.base import ModelHandler, RunInference

from scenemill.pipelines.experiments.inference import Fact, Inferred, check_classes, infer_files, list_images, write_outcome
from scenemill.pipelines.runners.groups import local_options, local_runner
from scenemill.schemas.experiment import ExperimentConfig

if TYPE_CHECKING:
    from scenemill.trainers.nvpanoptix3d.stage1 import Stage1
    from scenemill.trainers.nvpanoptix3d.stage2 import Stage2

LoadModel = Callable[[], "Stage1 | Stage2"]


class ImageHandler(ModelHandler):  # type: ignore[misc]  # Beam has no types
    """From paths of images to facts; the predictions are written on the way.

    Args:
        config: how images are prepared, how many at once, and what is kept.
        load_model: called once by each worker process; importable there.
        results_dir: gets a folder for each image.
    """

    def __init__(self, config: ExperimentConfig, load_model: LoadModel, results_dir: Path) -> None:
        super().__init__(max_batch_size=config.dataset.test.batch_size)
        self._config = config
        self._load_model = load_model
        self._results_dir = results_dir

    def load_model(self) -> "Stage1 | Stage2":
        """The model; Beam calls this."""
        return self._load_model()

    def run_inference(
        self, batch: Sequence[str], model: "Stage1 | Stage2", inference_args: dict[str, Any] | None = None
    ) -> Iterable[dict[str, str]]:
        """Predict some images; Beam calls this.

        Returns:
            The facts, as dicts.
        """
        return [asdict(fact) for fact in infer_files(self._config, model, [Path(path) for path in batch], self._results_dir)]


def infer_folder_with_beam(
    config: ExperimentConfig, load_model: LoadModel, images_dir: Path, results_dir: Path, *, overwrite: bool = False
) -> Inferred:
    """The same files and outcome as ``infer_folder``, on Beam's runner on this machine.

    Args:
        config, images_dir, results_dir, overwrite: see ``infer_folder``.
        load_model: see ``ImageHandler``.

    Raises:
        ConfigError: no such folder, no image in it, or a model whose classes have no names.
    """
    check_classes(config)
    listed = list_images(config, images_dir, results_dir, overwrite=overwrite)
    facts = {fact.image: fact for fact in listed.facts}
    if listed.todo:
        options = local_options(workers=1)
        with TemporaryDirectory() as work:
            told = Path(work) / "facts.json"
            with beam.Pipeline(runner=local_runner(options), options=options) as pipeline:
                paths = pipeline | "List images" >> beam.Create([str(path) for path in listed.todo], reshuffle=False)
                spread = paths | "Spread over workers" >> beam.Reshuffle()
                found = spread | "Predict images" >> RunInference(ImageHandler(config, load_model, results_dir))
                found | "Gather facts" >> beam.combiners.ToList() | "Hand back facts" >> beam.Map(partial(_hand_back, told))
            facts |= {fact["image"]: Fact(**fact) for fact in json.loads(told.read_text())}
    return write_outcome(Inferred(results_dir, tuple(facts[name] for name in sorted(facts)), listed.passed_over))


def _hand_back(told: Path, facts: list[dict[str, str]]) -> None:
    told.write_text(json.dumps(facts))
