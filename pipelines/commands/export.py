"""The commands that hand a store on to other tools: card, export-raw, export-coco, export-mesh."""

from pathlib import Path
from typing import Annotated, Any

import typer

from scenemill.pipelines.commands import completions
from scenemill.pipelines.commands.options import AsJson, StoreArgument, Version
from scenemill.pipelines.progress import progress
from scenemill.pipelines.terminal import say

Out = Annotated[Path, typer.Argument(help="A new or empty folder; it is written whole or not at all.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for name, command in (("card", card), ("export-raw", raw), ("export-coco", coco), ("export-mesh", mesh)):
        app.command(name)(command)


def card(
    store: StoreArgument,
    version: Version = None,
    out: Annotated[Path | None, typer.Option(help="Write the card to this file (.md), and its plots as PNG beside it.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one page that stands for itself to this file (.html).")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a store holds, as a dataset card in Markdown: fields, classes, splits, checks, sources. Without --out it is printed."""
    from scenemill.pipelines.reports.card import card_of, write_card
    from scenemill.pipelines.reports.card_text import to_markdown
    from scenemill.transforms.store import open_store

    told = card_of(open_store(store, version))
    written: list[Path] = write_card(told, out) if out is not None else []
    if html is not None:
        from scenemill.pipelines.reports.card_page import write_page

        write_page(told, html)
        written.append(html)
    if as_json:
        say({**told.to_json(), "files": written}, as_json, lambda console: None)
    elif written:
        typer.echo("\n".join(map(str, written)))
    else:
        typer.echo(to_markdown(told), nl=False)


def raw(store: StoreArgument, out: Out, version: Version = None, as_json: AsJson = False) -> None:
    """Write a store as a raw folder again, in the public layout of its source; ingested, it gives the same arrays."""
    from scenemill.pipelines.exports.raw import export_raw
    from scenemill.pipelines.reports.human import size
    from scenemill.transforms.store import open_store

    with progress(as_json) as on_progress:
        done = export_raw(open_store(store, version), out, lambda done, total: on_progress("Writing samples", done, total))
    splits = ", ".join(f"{count} {name}" for name, count in done.splits.items())
    inexact = f"; not to the bit: {', '.join(done.inexact)}" if done.inexact else ""
    line = f"{out}: {done.samples} samples of {done.source} ({splits}), {done.files} files, {size(done.size_byte)}{inexact}"
    _say(done, as_json, line)


def coco(store: StoreArgument, out: Out, version: Version = None, as_json: AsJson = False) -> None:
    """Write images and 2D labels in COCO's panoptic format: a JSON file for each split, and PNG files of segments."""
    from scenemill.pipelines.exports.coco import export_coco
    from scenemill.transforms.store import open_store

    with progress(as_json) as on_progress:
        done = export_coco(open_store(store, version), out, lambda done, total: on_progress("Writing images", done, total))
    splits = ", ".join(f"{count} {name}" for name, count in done.splits.items())
    _say(done, as_json, f"{out}: {splits}, {done.segments} segments of {done.categories} classes")


def mesh(
    store: StoreArgument,
    key: Annotated[str, typer.Argument(help="A sample: scene/image.", autocompletion=completions.keys)],
    out: Annotated[Path, typer.Argument(help="The file: .ply, .glb, .usd, .usda or .usdc; one that is there is replaced.")],
    iso: Annotated[float, typer.Option(help="Distance of the shell from the surface, in voxels.")] = 1.0,
    version: Version = None,
    as_json: AsJson = False,
) -> None:
    """Write the true surface of a sample, coloured by class: upright in the camera's frame, in metres."""
    from scenemill.pipelines.exports.mesh import export_mesh
    from scenemill.pipelines.reports.human import size
    from scenemill.transforms.store import open_store

    done = export_mesh(open_store(store, version), key, out, iso)
    _say(done, as_json, f"{out}: {done.vertices} vertices, {done.faces} triangles, {size(done.size_byte)}")


def _say(done: Any, as_json: bool, line: str) -> None:
    say(done, as_json, lambda console: typer.echo(line))
