"""The command line: parse, build a config, call one function, print. Nothing heavy is imported before a verb needs it."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

import scenemill
from scenemill.pipelines.cli_experiments import register
from scenemill.pipelines.cli_fit import fit
from scenemill.pipelines.cli_ingest import Workers, place
from scenemill.pipelines.cli_ingest import register as register_ingest
from scenemill.pipelines.cli_jobs import register as register_jobs
from scenemill.pipelines.cli_schedule import register as register_schedule
from scenemill.pipelines.cli_synth import register as register_synth
from scenemill.pipelines.cli_view import mock_checkpoints, runs, view
from scenemill.schemas.errors import ConfigError, Corrupt, SceneMillError, SourceError, StoreError, TooManyRejected

if TYPE_CHECKING:
    from rich.console import Console

_INTERRUPTED = 130  # of the shell, for a command that was stopped from the keyboard

app = typer.Typer(
    help="The data mill for 3D indoor scenes: raw folders in, checked samples and a store one can trust out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
StoreArgument = Annotated[
    Any, typer.Argument(parser=place, metavar="PATH|URI", help="The store's folder, or s3://BUCKET/STORE, gs://BUCKET/STORE.")
]
Version = Annotated[str | None, typer.Option(help="Id of an older version, or its first digits. Default: the newest.")]


def main() -> None:
    """Run the command line; exit 0 done, 1 unexpected, 2 your input, 3 your data."""
    for library in ("apache_beam", "distributed"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # what it logs of a failure is told once, by us
    try:
        code = app(standalone_mode=False) or 0
        if code == _INTERRUPTED:
            _fail(KeyboardInterrupt("stopped; finished work is kept: run the same command again to go on"), code)
        sys.exit(code)
    except (TooManyRejected, Corrupt, SourceError) as error:
        _fail(error, 3)
    except (ConfigError, StoreError) as error:
        _fail(error, 2)
    except SceneMillError as error:
        _fail(error, 1)
    except ModuleNotFoundError as error:
        _fail(
            ConfigError(
                f"{error.name} is not installed; this verb needs: pip install 'scenemill[ingest,tables,train,view,jobs,schedule]'"
            ),
            2,
        )
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # a usage error of the command line library
            error.show()  # type: ignore[attr-defined]
            sys.exit(2)
        raise


def _fail(error: BaseException, code: int) -> NoReturn:
    if "--json" in sys.argv:
        print(json.dumps({"error": type(error).__name__, "message": str(error), "exit": code}))
    else:
        _console(stderr=True).print(f"[bold red]{type(error).__name__}[/]: {_escape(str(error))}", highlight=False, soft_wrap=True)
    sys.exit(code)


def _console(stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"scenemill {scenemill.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal, a line for every tenth in a log, nothing for machines."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = _console(stderr=True)
    if quiet:
        yield lambda doing, done, total: None
    elif not console.is_terminal:
        yield _log_line()
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            tasks: dict[str, Any] = {}

            def show(doing: str, done: int, total: int) -> None:
                if doing not in tasks:
                    tasks[doing] = bar.add_task(doing, total=total)
                bar.update(tasks[doing], completed=done, total=total)

            yield show


def _log_line() -> Callable[[str, int, int], None]:
    last: dict[str, int] = {}

    def show(doing: str, done: int, total: int) -> None:
        tenth = 10 * done // max(1, total)
        if last.get(doing) != tenth:
            last[doing] = tenth
            print(f"{doing}: {done} of {total}", file=sys.stderr, flush=True)

    return show


def _say(document: Any, as_json: bool, lines: Callable[["Console"], None]) -> None:
    if as_json:
        print(json.dumps(asdict(document) if is_dataclass(document) and not isinstance(document, type) else document, default=str))
    else:
        lines(_console())


register_ingest(app, _progress, _say)


@app.command()
def verify(store: StoreArgument, as_json: AsJson = False) -> None:
    """Read a store again, all of it, against its checksums, and name what is broken."""
    from scenemill.pipelines.human import print_verified
    from scenemill.transforms.verify import verify_store

    with _progress(as_json) as on_progress:
        verified = verify_store(store, lambda done, total: on_progress("Verifying parts", done, total))
    _say(verified, as_json, lambda console: print_verified(console, store, verified))
    if verified.broken:
        raise typer.Exit(3)


@app.command()
def show(
    store: StoreArgument,
    key: Annotated[str | None, typer.Argument(help="A sample: scene/image.")] = None,
    version: Version = None,
    png: Annotated[Path | None, typer.Option(help="Draw the sample's contact sheet to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Facts of a store, or of one sample; with --png its image, depth, labels and volume slices on one sheet."""
    from scenemill.pipelines.human import print_sample, print_store, store_json
    from scenemill.transforms.store import open_store

    opened = open_store(store, version)
    if key is None:
        if png is not None:
            raise ConfigError("--png draws one sample: give its key as well")
        _say(store_json(opened), as_json, lambda console: print_store(console, opened))
        return
    if png is not None:
        from scenemill.pipelines.sheet import write_sheet

        write_sheet(opened.read(key), opened.layout.source, png)
    _say(opened.facts(key), as_json, lambda console: print_sample(console, opened, key, png))


@app.command()
def versions(store: StoreArgument, as_json: AsJson = False) -> None:
    """List the published versions of a store, newest first."""
    from scenemill.pipelines.human import print_versions, versions_json

    listed = versions_json(store)
    _say(listed, as_json, lambda console: print_versions(console, listed))


@app.command()
def clean(
    store: StoreArgument,
    keep_versions: Annotated[int | None, typer.Option(min=1, help="Also forget versions older than the newest N.")] = None,
    as_json: AsJson = False,
) -> None:
    """Remove what no version names: leftovers of killed runs, and, if asked, old versions."""
    from scenemill.pipelines.human import size
    from scenemill.transforms.publish import locked
    from scenemill.transforms.store import open_store
    from scenemill.transforms.versions import clean as run

    open_store(store)
    with locked(store):
        cleaned = run(store, keep_versions)
    line = f"{store}: {len(cleaned.paths)} files removed, {size(cleaned.freed_byte)} freed, {cleaned.versions} versions forgotten"
    _say(cleaned, as_json, lambda console: console.print(line))


@app.command("bench-loader")
def bench_loader(
    store: StoreArgument,
    split: Annotated[str | None, typer.Option(help="Which samples. Default: all.")] = None,
    volumes: Annotated[bool, typer.Option("--3d/--2d", help="Stage 2 with volumes, or images alone.")] = True,
    planes: Annotated[bool, typer.Option(help="Multi-plane occupancy too.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples in a batch.")] = 1,
    workers: Annotated[str, typer.Option(help="Numbers of reading processes to try, by comma.")] = "0,1,2",
    batches: Annotated[int, typer.Option(min=1, help="Batches to time; as many more are not timed.")] = 40,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    step_ms: Annotated[float, typer.Option(min=0, help="Pretend to work this long on every batch.")] = 0.0,
    png: Annotated[Path | None, typer.Option(help="Also draw the figures here (.png or .svg).")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how quickly a store becomes batches here: each stage, samples and megabytes a second, and how long a step waits."""
    from scenemill.pipelines.human import print_loader_speed
    from scenemill.schemas.dataset import AugmentationConfig, DatasetConfig
    from scenemill.trainers.speed import bench_loader as run
    from scenemill.trainers.speed import to_json

    config = DatasetConfig(
        enable_3d=volumes, enable_mp_occ=planes, augmentation=AugmentationConfig(train_min_size=(240,), train_max_size=960)
    )
    counts = _counts(workers)
    with _progress(as_json) as on_progress:
        speed = run(
            store,
            split,
            config,
            batch_size=batch_size,
            workers=counts,
            batches=batches,
            device=device,
            step_ms=step_ms,
            on_progress=on_progress,
        )
    if png is not None:
        from scenemill.pipelines.charts import speed as draw

        rates = {f"{feed.workers} workers": feed.samples_per_s for feed in speed.feeds}
        draw(speed.stage_ms, rates, speed.feeds[-1].wait_ms, png)
    _say(to_json(speed), as_json, lambda console: print_loader_speed(console, speed))


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 0:
        raise ConfigError(f"--workers {text!r}: give numbers of processes, by comma: 0,1,2")
    return counts


@app.command()
def order(
    store: StoreArgument,
    split: Annotated[str | None, typer.Option(help="Which samples. Default: all.")] = None,
    epoch: Annotated[int, typer.Option(min=0, help="Which epoch.")] = 0,
    position: Annotated[int, typer.Option(min=0, help="Samples of the epoch that were read already.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples in a batch, on each rank.")] = 1,
    world_size: Annotated[int, typer.Option(min=1, help="Ranks.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Reading processes of each rank.")] = 1,
    window: Annotated[int, typer.Option(min=1, help="Parts read at a time.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of the shuffle.")] = 0,
) -> None:
    """Print which sample is read when: epoch, step, rank, worker and key, as training with these numbers would read them."""
    from scenemill.schemas.dataset import DatasetConfig
    from scenemill.trainers.batches import SceneDataset
    from scenemill.trainers.order import Order, format_rows, listing

    dataset = SceneDataset(store, split, DatasetConfig(enable_mp_occ=False))
    planned = Order(dataset.parts, batch_size, seed=seed, world_size=world_size, window=window)
    keys = [dataset.key(sample) for sample in range(len(dataset))]
    for line in format_rows(listing(planned, epoch, position, workers), keys):
        typer.echo(line)


@app.command()
def selfcheck(as_json: AsJson = False) -> None:
    """Try the metrics of this installation on cases whose answer is arithmetic; scoring does so first as well."""
    from scenemill.trainers.selfcheck import run_selfcheck

    cases = run_selfcheck()
    failed = [case for case in cases if not case.holds]
    lines = [f"{'holds' if case.holds else 'FAILS'}  {case.name}: {case.observed:g}, expected {case.expected:g}" for case in cases]
    document = [{**asdict(case), "holds": case.holds} for case in cases]
    _say(document, as_json, lambda console: console.print("\n".join(lines), highlight=False))
    if failed:
        raise typer.Exit(1)


@app.command()
def score(
    predictions: Annotated[Path, typer.Option(help="Folder of predictions: SCENE_IMAGE/segments.json and its arrays.")],
    store: Annotated[Any, typer.Option(parser=place, metavar="PATH|URI", help="The store that holds the truth.")],
    tables: Annotated[Path, typer.Option(help="Folder of the metric tables; made if it is not there.")],
    run: Annotated[str, typer.Option(help="Name of the run. Default: made from what decides the numbers.")] = "",
    model: Annotated[str, typer.Option(help="What to call the model in reports.")] = "model",
    split: Annotated[str, typer.Option(help="Which samples. Default: all.")] = "",
    version: Annotated[str, typer.Option(help="Version of the store. Default: the newest.")] = "",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Score what has a prediction, leave out the rest.")
    ] = False,
    workers: Workers = 1,
    as_json: AsJson = False,
) -> None:
    """Score predictions against a store: PRQ, RSQ and RRQ in 3D, PQ in 2D, and depth, as rows of the metric tables."""
    from scenemill.pipelines.score import ScoreConfig
    from scenemill.pipelines.score import score as run_score
    from scenemill.pipelines.score_text import print_scored

    config = ScoreConfig(predictions, store, tables, run, model, split, version, allow_missing, workers)
    with _progress(as_json) as on_progress:
        scored = run_score(config, on_progress)
    document = {"run": scored.run, "samples": scored.samples, "missing": scored.missing, "scores": scored.scores.to_pylist()}
    _say(document, as_json, lambda console: print_scored(console, scored))


@app.command()
def query(
    tables: Annotated[Path, typer.Argument(help="Folder of the metric tables.")],
    sql: Annotated[str, typer.Argument(help="One SELECT over counts, scores, depths, renders and fits.")],
    form: Annotated[str, typer.Option("--format", help="table, csv, json or parquet.")] = "table",
    out: Annotated[Path | None, typer.Option(help="Write the answer to this file.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many rows.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds after which a question is given up.")] = 60.0,
) -> None:
    """Ask the metric tables in SQL. Whatever the SQL says, it can read these tables and nothing else, and writes nothing."""
    from scenemill.pipelines.query import query as ask
    from scenemill.pipelines.results import print_table, to_bytes

    answer = ask(tables, sql, limit, timeout)
    if form == "table" and out is None:
        print_table(_console(), answer)
        return
    data = to_bytes(answer, form)
    if out is not None:
        out.write_bytes(data)
    else:
        sys.stdout.buffer.write(data)


@app.command()
def report(
    tables: Annotated[Path, typer.Argument(help="Folder of the metric tables.")],
    html: Annotated[Path | None, typer.Option(help="Also write a page with plots, one file that loads nothing.")] = None,
) -> None:
    """The leaderboard beside the published results, curves of trainings, classes, worst samples and distributions."""
    from scenemill.pipelines.report import report as tell
    from scenemill.pipelines.report_text import print_report

    console = _console()
    if html is None:
        print_report(console, tell(tables))
        return
    from scenemill.pipelines.report_page import write_html  # plots: more than text needs

    print_report(console, write_html(tables, html))
    console.print(f"page: {html}", soft_wrap=True)


_PANELS: Final = {
    "Data": "synth convert-views plan ingest validate verify show versions clean runs",
    "Batches": "bench-loader order",
    "Models": "default-specs schema train tune evaluate inference export export-triton gen-trt-engine fit",
    "Numbers": "selfcheck score query report",
    "See": "view mock-checkpoints demo",
    "Operate": "schedule serve-jobs jobs",
}
"""What help shows the verbs under, in this order."""


def _sort_into_panels(shown: typer.Typer) -> None:
    """Let help show the verbs by what they are for. A verb without a panel is a mistake."""
    panels = {verb: panel for panel, verbs in _PANELS.items() for verb in verbs.split()}
    verbs: list[Any] = [*shown.registered_commands, *shown.registered_groups]
    for verb in verbs:
        verb.rich_help_panel = panels[_verb(verb)]
    shown.registered_commands.sort(key=lambda verb: list(panels).index(_verb(verb)))


def _verb(registered: Any) -> str:
    name: str = registered.name or registered.callback.__name__.replace("_", "-")
    return name


register(app)
register_synth(app, _progress, _say)
register_jobs(app)
register_schedule(app)
app.command()(view)
app.command()(runs)
app.command("mock-checkpoints")(mock_checkpoints)
app.command()(fit)
_sort_into_panels(app)

if __name__ == "__main__":
    main()
