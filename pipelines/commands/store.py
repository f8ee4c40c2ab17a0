"""The commands that read a store, or tidy it: verify, show, versions, clean, runs."""

from pathlib import Path
from typing import Annotated

import typer

from scenemill.pipelines.commands import completions
from scenemill.pipelines.commands.options import AsJson, StoreArgument, Version
from scenemill.pipelines.progress import progress
from scenemill.pipelines.terminal import console_of, say
from scenemill.schemas.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (verify, show, versions, clean, runs):
        app.command()(command)


def verify(store: StoreArgument, as_json: AsJson = False) -> None:
    """Read a store again, all of it, against its checksums, and name what is broken."""
    from scenemill.pipelines.reports.human import print_verified
    from scenemill.transforms.verify import verify_store

    with progress(as_json) as on_progress:
        verified = verify_store(store, lambda done, total: on_progress("Verifying parts", done, total))
    say(verified, as_json, lambda console: print_verified(console, store, verified))
    if verified.broken:
        raise typer.Exit(3)


def show(
    store: StoreArgument,
    key: Annotated[str | None, typer.Argument(help="A sample: scene/image.", autocompletion=completions.keys)] = None,
    version: Version = None,
    png: Annotated[Path | None, typer.Option(help="Draw the sample's contact sheet to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Facts of a store, or of one sample; with --png its image, depth, labels and volume slices on one sheet."""
    from scenemill.pipelines.reports.human import print_sample, print_store, store_json
    from scenemill.transforms.store import open_store

    opened = open_store(store, version)
    if key is None:
        if png is not None:
            raise ConfigError("--png draws one sample: give its key as well")
        say(store_json(opened), as_json, lambda console: print_store(console, opened))
        return
    if png is not None:
        from scenemill.pipelines.reports.sheet import write_sheet

        write_sheet(opened.read(key), opened.layout, png)
    say(opened.facts(key), as_json, lambda console: print_sample(console, opened, key, png))


def versions(store: StoreArgument, as_json: AsJson = False) -> None:
    """List the published versions of a store, newest first."""
    from scenemill.pipelines.reports.human import print_versions, versions_json

    listed = versions_json(store)
    say(listed, as_json, lambda console: print_versions(console, listed))


def clean(
    store: StoreArgument,
    keep_versions: Annotated[int | None, typer.Option(min=1, help="Also forget versions older than the newest N.")] = None,
    as_json: AsJson = False,
) -> None:
    """Remove what no version names: leftovers of killed runs, and, if asked, old versions."""
    from scenemill.pipelines.reports.human import size
    from scenemill.transforms.publish import locked
    from scenemill.transforms.store import open_store
    from scenemill.transforms.versions import clean as run

    open_store(store)
    with locked(store):
        cleaned = run(store, keep_versions)
    line = f"{store}: {len(cleaned.paths)} files removed, {size(cleaned.freed_byte)} freed, {cleaned.versions} versions forgotten"
    say(cleaned, as_json, lambda console: console.print(line))


def runs(
    store: StoreArgument,
    html: Annotated[Path | None, typer.Option(help="Also write a page: runs, where their time went, findings.")] = None,
    as_json: AsJson = False,
) -> None:
    """List what was run on a store: when, how many samples in, stored and rejected, how long it took, and what came of it."""
    from scenemill.pipelines.reports.human import print_runs
    from scenemill.pipelines.reports.results import to_bytes
    from scenemill.transforms.store import open_store

    opened = open_store(store)
    table = opened.runs.sort_by([("started", "descending")])
    if as_json:
        print(to_bytes(table, "json").decode(), end="")
    else:
        print_runs(console_of(), table)
    if html is not None:
        from scenemill.pipelines.reports.run_page import write_runs

        write_runs(opened, html)
        typer.echo(f"page: {html}", err=as_json)
