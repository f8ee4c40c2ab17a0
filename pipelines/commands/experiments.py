"""The commands that take an experiment: train, evaluate, inference, export, and what helps to write one."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scenemill.pipelines.commands import completions
from scenemill.schemas.errors import ConfigError

if TYPE_CHECKING:
    from scenemill.schemas.experiment import ExperimentConfig

Spec = Annotated[
    Path,
    typer.Option(
        "-e",
        "--experiment",
        help="The experiment: a YAML or JSON file, or the name of a shipped one.",
        autocompletion=completions.experiments,
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings that replace the file's: train.optim.lr=1e-3", metavar="KEY=VALUE")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (train, tune, evaluate, inference, export):
        app.command()(command)
    app.command("export-triton")(export_triton)
    app.command("demo")(demo)
    app.command("gen-trt-engine")(gen_trt_engine)
    app.command("default-specs")(default_specs)
    app.command("schema")(schema)


def _load(spec: Path, overrides: list[str] | None, action: str) -> "ExperimentConfig":
    """The experiment, its action's checkpoints on a disk, with a line on standard error for every setting that nothing reads."""
    from scenemill.pipelines.experiments.fetched import with_fetched
    from scenemill.pipelines.experiments.specs import list_specs, load_spec, read_spec, spec_text
    from scenemill.schemas.experiment import ignored_settings

    if not spec.is_file() and str(spec) in list_specs():
        config = read_spec(spec_text(str(spec)), overrides or (), str(spec))
    elif not spec.is_file():
        raise ConfigError(f"{spec}: no such file; the shipped experiments are {', '.join(list_specs())}")
    else:
        config = load_spec(spec, overrides or ())
    for line in ignored_settings(config):
        print(line, file=sys.stderr)
    return with_fetched(config, action)


def train(spec: Spec, overrides: Overrides = None) -> None:
    """Train a model, or go on with a training: checkpoints, status.json and TensorBoard curves in the results folder."""
    from scenemill.pipelines.experiments.training import run_training
    from scenemill.pipelines.progress import log_lines, training_bar
    from scenemill.schemas.experiment import gpus_of, results_folder
    from scenemill.schemas.places import Remote
    from scenemill.transforms.objects import place_of

    config = _load(spec, overrides, "train")
    with training_bar(len(gpus_of(config.train.num_gpus, config.train.gpu_ids)) * config.train.num_nodes) as on_step:
        trained = run_training(config, on_step, log_lines)
    place = place_of(results_folder(config, "train"))
    checkpoint = place / trained.checkpoint.name if isinstance(place, Remote) else trained.checkpoint
    typer.echo(f"step {trained.step}, epoch {trained.epoch}: {checkpoint}")
    for name, value in trained.kpi.items():
        typer.echo(f"{name}  {value:.2f}")


def tune(
    spec: Spec,
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, earlier runs' included.")] = 20,
) -> None:
    """Search learning rate, backbone multiplier and weight decay for the best PQ on the validation split; run again, it goes on."""
    from scenemill.pipelines.experiments.tuning import tune as search
    from scenemill.pipelines.progress import log_lines, training_bar
    from scenemill.schemas.experiment import gpus_of

    config = _load(spec, overrides, "train")
    with training_bar(len(gpus_of(config.train.num_gpus, config.train.gpu_ids)) * config.train.num_nodes) as on_step:
        tuned = search(config, trials, on_step, log_lines)
    number, quality, settings = tuned.best
    typer.echo(f"{tuned.trials} trials in {tuned.folder}; best is trial {number}: PQ {quality:.2f}")
    for name, value in settings.items():
        typer.echo(f"{name}={value:.6g}")


def evaluate(spec: Spec, overrides: Overrides = None) -> None:
    """Evaluate checkpoints on the test split, into the metric tables: PRQ of stage 2; PQ, depth-aware PQ and the loss of stage 1.

    evaluate.checkpoint names a file; or a folder or a pattern, of which each checkpoint is evaluated once: run again, it goes on.
    """
    from rich.console import Console

    from scenemill.pipelines.experiments.checkpoints import names_several
    from scenemill.pipelines.experiments.evaluation import run_evaluation
    from scenemill.pipelines.progress import log_lines
    from scenemill.pipelines.reports.score_text import print_evaluated

    config = _load(spec, overrides, "evaluate")
    if names_several(config.evaluate.checkpoint):
        _evaluate_several(config)
    else:
        print_evaluated(Console(), run_evaluation(config, log_lines), volumes=config.dataset.enable_3d)


def _evaluate_several(config: "ExperimentConfig") -> None:
    """A line for each checkpoint as soon as it is known, then the curves on which they are."""
    from rich.console import Console

    from scenemill.pipelines.experiments.batch_evaluation import run_evaluations
    from scenemill.pipelines.progress import log_lines
    from scenemill.pipelines.reports.report_text import print_lineage
    from scenemill.pipelines.reports.score_text import print_step
    from scenemill.pipelines.reports.series import gather, lineages

    console, done = Console(), []
    for evaluated in run_evaluations(config, log_lines):
        print_step(console, evaluated, volumes=config.dataset.enable_3d)
        done.append(evaluated)
    for lineage in lineages(gather(row for evaluated in done for row in evaluated.scores.to_pylist())):
        print_lineage(console, lineage)
    new = sum(evaluated.new for evaluated in done)
    console.print(f"{new} evaluated, {len(done) - new} in the tables before: {done[0].tables}", soft_wrap=True)


def inference(
    spec: Spec,
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Predict again what has a prediction.")] = False,
) -> None:
    """Predict from a folder of images: panoptic map, depth and a picture of each. One bad image never ends the run."""
    from scenemill.pipelines.experiments.training import run_inference
    from scenemill.pipelines.progress import log_lines

    config = _load(spec, overrides, "inference")
    typer.echo(run_inference(config, log_lines, overwrite=overwrite))


def export(spec: Spec, overrides: Overrides = None) -> None:
    """Write stage 1 as ONNX, and hold it against PyTorch by ONNX Runtime."""
    from scenemill.pipelines.experiments.exporting import run_export

    config = _load(spec, overrides, "export")
    for line in run_export(config):
        typer.echo(line)


def export_triton(
    spec: Spec,
    repository: Annotated[Path, typer.Option(help="The model repository: a new or empty folder.")],
    overrides: Overrides = None,
    backend: Annotated[str, typer.Option(help="What runs stage 1 on the server: onnxruntime or python.")] = "onnxruntime",
    device: Annotated[str, typer.Option(help="What both stages run on there: cpu or gpu.")] = "cpu",
    max_batch_size: Annotated[int, typer.Option(help="Most images of stage 1 at once, with export.batch_size=-1.")] = 8,
) -> None:
    """Write a model repository for a Triton server: stage 1 as ONNX, stage 2 as a Python model that calls it."""
    from scenemill.pipelines.experiments.triton import export_triton as write_repository

    config = _load(spec, overrides, "export")
    for model in write_repository(config, repository, backend=backend, device=device, max_batch_size=max_batch_size):
        typer.echo(f"{model.name}: {model.backend}, {model.device}")
        for way, forms in (("in", model.inputs), ("out", model.outputs)):
            for form in forms:
                typer.echo(f"  {way:3} {form.name}  {form.dtype} {'x'.join(map(str, form.shape))}")
    typer.echo(f"{repository}: weights are not encrypted there")


def gen_trt_engine(spec: Spec, overrides: Overrides = None) -> None:
    """Build a TensorRT engine from the ONNX file; needs TensorRT and an NVIDIA GPU."""
    from scenemill.pipelines.experiments.exporting import run_gen_trt_engine

    typer.echo(run_gen_trt_engine(_load(spec, overrides, "export")))


def default_specs(
    name: Annotated[
        str,
        typer.Argument(
            help="train, evaluate, inference, export or gen_trt_engine; or a shipped experiment: front3d_2d, front3d_3d, "
            "matterport_2d, matterport_3d, or a tiny one by tiny_ before that.",
            autocompletion=completions.specs,
        ),
    ],
) -> None:
    """Print an experiment to begin with: every setting of an action, explained, at its default; or a shipped one, by its name."""
    from scenemill.pipelines.experiments.specs import default_spec, list_specs, spec_text
    from scenemill.schemas.experiment import ACTIONS

    if name not in (*ACTIONS, *list_specs()):
        actions, shipped = ", ".join(ACTIONS), ", ".join(list_specs())
        raise ConfigError(f"{name!r} is no action and no shipped experiment; use one of {actions}; or of {shipped}")
    typer.echo(spec_text(name) if name in list_specs() else default_spec(name), nl=False)


def schema(
    action: Annotated[str, typer.Argument(help="train, evaluate, inference, export or gen_trt_engine; or schedule.")],
) -> None:
    """Print the JSON Schema of an action's experiment, or of the file of a schedule."""
    from scenemill.pipelines.experiments.specs import json_schema
    from scenemill.pipelines.schedule.files import schedule_schema

    typer.echo(json.dumps(schedule_schema() if action == "schedule" else json_schema(action), indent=2))


def demo(
    folder: Annotated[Path, typer.Argument(help="Gets rooms, a store, both trainings and the metric tables.")],
    source: Annotated[str, typer.Option(help="front3d or matterport.")] = "front3d",
    steps_2d: Annotated[int, typer.Option(min=1, help="Training steps of stage 1.")] = 600,
    steps_3d: Annotated[int, typer.Option(min=1, help="Training steps of stage 2.")] = 600,
) -> None:
    """The whole line on made-up rooms, in minutes: ingest, train both stages at a tiny size, evaluate, query."""
    from rich.console import Console

    from scenemill.pipelines.demo import run_line
    from scenemill.pipelines.progress import log_lines, training_bar
    from scenemill.pipelines.reports.results import print_table

    if source not in ("front3d", "matterport"):
        raise ConfigError(f"source {source!r}: the line is shown on front3d or matterport")
    with training_bar() as on_step:
        line = run_line(folder, on_step, log_lines, source=source, steps_2d=steps_2d, steps_3d=steps_3d)
    for name, seconds in line.seconds.items():
        typer.echo(f"{name:14} {seconds:7.1f} s")
    print_table(Console(), line.scores)
    typer.echo(f"metric tables: {line.tables}")
