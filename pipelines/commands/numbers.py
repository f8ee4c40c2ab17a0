"""The commands of the metrics: selfcheck, score, query and report."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from scenemill.pipelines.commands.options import AsJson, PathOrUri, TablesArgument, Workers, place
from scenemill.pipelines.progress import progress
from scenemill.pipelines.terminal import console_of, say


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (selfcheck, score, query, report):
        app.command()(command)


def selfcheck(as_json: AsJson = False) -> None:
    """Try the metrics of this installation on cases whose answer is arithmetic; scoring does so first as well."""
    from scenemill.trainers.selfcheck import run_selfcheck

    cases = run_selfcheck()
    failed = [case for case in cases if not case.holds]
    lines = [f"{'holds' if case.holds else 'FAILS'}  {case.name}: {case.observed:g}, expected {case.expected:g}" for case in cases]
    document = [{**asdict(case), "holds": case.holds} for case in cases]
    say(document, as_json, lambda console: console.print("\n".join(lines), highlight=False))
    if failed:
        raise typer.Exit(1)


def score(
    predictions: Annotated[Path, typer.Option(help="Folder of predictions: SCENE_IMAGE/segments.json and its arrays.")],
    store: Annotated[PathOrUri, typer.Option(parser=place, help="The store that holds the truth.")],
    tables: Annotated[
        PathOrUri,
        typer.Option(parser=place, help="Folder of the metric tables, or s3://BUCKET/TABLES; made if missing."),
    ],
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
    from scenemill.pipelines.reports.score_text import print_scored
    from scenemill.pipelines.score import ScoreConfig
    from scenemill.pipelines.score import score as run_score

    config = ScoreConfig(predictions, store, tables, run, model, split, version, allow_missing, workers)
    with progress(as_json) as on_progress:
        scored = run_score(config, on_progress)
    document = {"run": scored.run, "samples": scored.samples, "missing": scored.missing, "scores": scored.scores.to_pylist()}
    say(document, as_json, lambda console: print_scored(console, scored))


def query(
    tables: TablesArgument,
    sql: Annotated[str, typer.Argument(help="One SELECT over counts, scores, depths, renders and fits.")],
    form: Annotated[
        str, typer.Option("--format", help="csv, json, parquet, or table. Default: by the end of --out's name, else table.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Write the answer to this file: .csv, .json or .parquet.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many rows. Default: all.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds after which a question is given up.")] = 60.0,
) -> None:
    """Ask the metric tables in SQL. Whatever the SQL says, it can read these tables and nothing else, and writes nothing."""
    from scenemill.pipelines.query import query as ask
    from scenemill.pipelines.reports.results import print_table, to_bytes

    answer = ask(tables, sql, limit, timeout)
    form = form or (out.suffix[1:] if out else "table")
    if form == "table" and out is None:
        print_table(console_of(), answer)
        return
    data = to_bytes(answer, form)
    if out is not None:
        out.write_bytes(data)
    else:
        sys.stdout.buffer.write(data)


def report(
    tables: TablesArgument,
    html: Annotated[Path | None, typer.Option(help="Also write a page with plots, one file that loads nothing.")] = None,
) -> None:
    """The leaderboard beside the published results, curves of trainings, classes, worst samples and distributions."""
    from scenemill.pipelines.reports.report import report as tell
    from scenemill.pipelines.reports.report_text import print_report

    console = console_of()
    if html is None:
        print_report(console, tell(tables))
        return
    from scenemill.pipelines.reports.report_page import write_html  # plots: more than text needs

    print_report(console, write_html(tables, html))
    console.print(f"page: {html}", soft_wrap=True)
