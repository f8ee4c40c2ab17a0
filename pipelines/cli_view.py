"""The command that shows: a page of logs, stores, predictions and metric tables."""

import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer


def view(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Logs of 3D checkpoints, stores, predictions, metric tables; or a folder that holds some.", metavar="PATH..."
        ),
    ] = None,
    logdir: Annotated[list[Path] | None, typer.Option(help="The same as PATH.")] = None,
    host: Annotated[str, typer.Option(help="Address to serve at. Beyond this machine only with a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for a free one.")] = 8080,
    token: Annotated[str, typer.Option(help="What askers must have. Default: none here, one made up for another host.")] = "",
    poll: Annotated[float, typer.Option(help="Seconds between looks at the folders.")] = 1.0,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Serve a page that shows meshes, point clouds, voxels, pictures, slices, findings and metrics; live, and read-only."""
    from scenemill.pipelines.view import ViewConfig, Viewer

    viewer = Viewer(ViewConfig((*(paths or ()), *(logdir or ())), host, port, token, poll))
    for root in viewer.roots:
        typer.echo(f"{root.name}: {root.kind}, {root.path}")
    typer.echo(f"{viewer.url}  (Ctrl+C ends it)")
    if open_page:
        webbrowser.open(viewer.url)
    with suppress(KeyboardInterrupt):
        viewer.run()
