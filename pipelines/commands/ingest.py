"""The commands that read raw folders: plan, ingest and validate, and the options that say where an ingest runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from scenemill.pipelines.commands.options import AsJson, PathOrUri, SourceName, Workers, place
from scenemill.pipelines.progress import progress
from scenemill.pipelines.runners.options import RUNNERS, RunnerConfig
from scenemill.pipelines.terminal import say
from scenemill.schemas.config import IngestConfig, parse_max_rejected
from scenemill.schemas.places import Place

Input = Annotated[
    PathOrUri,
    typer.Option(
        parser=place,
        help="Raw folder: the one that holds data/ and the split lists; of views, the one with 0_rgb.png; s3:// or gs:// too.",
    ),
]
Output = Annotated[
    PathOrUri,
    typer.Option(parser=place, help="The store: a new folder, or one that holds a store already; s3:// or gs:// too."),
]
Splits = Annotated[
    list[str] | None, typer.Option(help="Split lists, by name or NAME=FILE, several by comma. Default: all in the folder.")
]
Limit = Annotated[int | None, typer.Option(help="Take at most this many samples, the first in key order.")]
MaxRejected = Annotated[
    str | None, typer.Option(help="Publish only if at most this many samples are rejected: 1% or 20. Default: no limit.")
]
Precision = Annotated[str, typer.Option(help="How distances are stored: float32 (lossless), float16 or fixed16.")]
SamplesPerPart = Annotated[
    int | None, typer.Option(help="Samples in one part (one shard of each array). Default: 64, or the store's own.")
]


def _option(help: str, panel: str = "Where it runs", *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel)


Runner = Annotated[str, _option(f"{', '.join(RUNNERS)}: see docs/runners.md.")]
Threads = Annotated[bool, _option("local: workers are threads of one process.", "Where it runs", "--threads")]
DaskAddress = Annotated[str | None, _option("dask: the scheduler, tcp://HOST:PORT.")]
JobEndpoint = Annotated[str | None, _option("portable: the job service of a Beam runner, HOST:PORT.")]
WorkerPool = Annotated[str | None, _option("portable: a Beam worker pool, HOST:PORT.")]
Image = Annotated[str | None, _option("portable, dataflow: container image of the workers.")]
Project = Annotated[str | None, _option("dataflow: project id.")]
Region = Annotated[str | None, _option("dataflow: region.")]
TempLocation = Annotated[str | None, _option("dataflow: gs://BUCKET/FOLDER for what the job stages.")]
Package = Annotated[str | None, _option("dataflow: a wheel of scenemill to lay over the image's.")]
MachineType = Annotated[str | None, _option("dataflow: of the workers.")]
MaxWorkers = Annotated[int | None, _option("dataflow: at most this many.")]
DryRun = Annotated[bool, _option("dataflow: say what would be submitted.", "Where it runs", "--dry-run")]
BeamOption = Annotated[list[str] | None, _option("portable, dataflow: another option of Beam, NAME=VALUE; several times.")]


def _config(
    source: str,
    input: Place,
    output: Place | None,
    splits: list[str] | None,
    limit: int | None,
    workers: int,
    max_rejected: str | None,
    precision: str = "float32",
    samples_per_part: int | None = None,
    repair: bool = False,
) -> IngestConfig:
    names = tuple(name.strip() for given in splits or () for name in given.split(",") if name.strip())
    allowed = parse_max_rejected(max_rejected) if max_rejected is not None else None
    return IngestConfig(source, input, output, names, limit, workers, allowed, precision, samples_per_part, repair)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for one in (_register_plan, _register_ingest, _register_validate):
        one(app)


def _register_plan(app: typer.Typer) -> None:
    @app.command()
    def plan(
        source: SourceName,
        input: Input,
        output: Annotated[
            PathOrUri | None, typer.Option(parser=place, help="The store it would go to; nothing is written.")
        ] = None,
        splits: Splits = None,
        limit: Limit = None,
        workers: Workers = 1,
        max_rejected: MaxRejected = None,
        precision: Precision = "float32",
        samples_per_part: SamplesPerPart = None,
        as_json: AsJson = False,
    ) -> None:
        """Say what an ingest would do: samples, parts, bytes and minutes, from a rate measured on a few samples. Writes nothing."""
        from scenemill.pipelines.forecast import forecast
        from scenemill.pipelines.reports.human import print_forecast

        config = _config(source, input, output, splits, limit, workers, max_rejected, precision, samples_per_part)
        with progress(as_json) as on_progress:
            expected = forecast(config, on_progress)
        say(expected, as_json, lambda console: print_forecast(console, expected))


def _register_ingest(app: typer.Typer) -> None:
    @app.command()
    def ingest(
        source: SourceName,
        input: Input,
        output: Output,
        splits: Splits = None,
        limit: Limit = None,
        workers: Workers = 1,
        max_rejected: MaxRejected = None,
        precision: Precision = "float32",
        samples_per_part: SamplesPerPart = None,
        repair: Annotated[bool, typer.Option("--repair", help="Verify the store first, and build damaged parts anew.")] = False,
        runner: Runner = "local",
        threads: Threads = False,
        dask_address: DaskAddress = None,
        job_endpoint: JobEndpoint = None,
        worker_pool: WorkerPool = None,
        image: Image = None,
        project: Project = None,
        region: Region = None,
        temp_location: TempLocation = None,
        package: Package = None,
        machine_type: MachineType = None,
        max_workers: MaxWorkers = None,
        dry_run: DryRun = False,
        beam_option: BeamOption = None,
        as_json: AsJson = False,
    ) -> None:
        """Check every sample of a raw folder and publish the good ones in a store. Run again, it goes on where it was stopped."""
        dataflow = (project, region, temp_location, package, machine_type, max_workers, dry_run)
        more = tuple(beam_option or ())
        where = RunnerConfig(runner, threads, dask_address, job_endpoint, worker_pool, image, *dataflow, more)
        config = _config(source, input, output, splits, limit, workers, max_rejected, precision, samples_per_part, repair)
        _ingest(config, where, as_json)


def _register_validate(app: typer.Typer) -> None:
    @app.command()
    def validate(
        source: SourceName,
        input: Input,
        splits: Splits = None,
        limit: Limit = None,
        workers: Workers = 1,
        max_rejected: Annotated[str, typer.Option(help="Exit 3 if more samples than this are rejected: 1% or 20.")] = "0",
        report: Annotated[
            Path | None, typer.Option(help="Folder for the tables of samples and findings, and the data docs.")
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Check every sample of a raw folder and say what is wrong with it; nothing is converted."""
        from scenemill.pipelines.reports.human import print_validation, validation_json
        from scenemill.pipelines.validate import validate as run

        config = _config(source, input, None, splits, limit, workers, max_rejected)
        with progress(as_json) as on_progress:
            result = run(config, report, on_progress)
        say(validation_json(result), as_json, lambda console: print_validation(console, result, report))
        if result.rejected > config.rejected_allowed(result.folder.listed) or result.expected.blocks or not result.passed:
            raise typer.Exit(3)


def _ingest(config: IngestConfig, runner: RunnerConfig, as_json: bool) -> None:
    from scenemill.pipelines.ingest import ingest
    from scenemill.pipelines.reports.human import print_outcome

    if runner.runner == "dataflow":
        from scenemill.pipelines.runners.dataflow import run_on_dataflow

        job = run_on_dataflow(config, runner)
        say(job, as_json, lambda console: _print_job(console, job))
        return
    with progress(as_json) as on_progress:
        outcome = ingest(config, on_progress, runner)
    assert config.output is not None
    store = config.output
    figures = {name: value for name, value in vars(outcome).items() if name not in ("findings", "samples", "expected")}
    say({"store": str(store), **figures}, as_json, lambda console: print_outcome(console, store, outcome))


def _print_job(console: Any, job: Any) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    rows = {
        "job": f"{job.name} {job.id or ''}",
        "where": f"project {job.project}, {job.region}",
        "image": job.image,
        "input": job.input,
        "output": job.output,
        "steps": "\n".join(job.steps),
        "graph": f"{job.graph_byte} bytes",
        "options": "\n".join(f"{name}={value}" for name, value in sorted(job.options.items())),
        "state": job.state,
    }
    for name, value in rows.items():
        table.add_row(Text(name, style="dim"), Text(value))
    console.print(table)
