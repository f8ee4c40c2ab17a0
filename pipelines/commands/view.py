"""The commands that show; a page of logs, stores, predictions and metric tables; and mock 3D checkpoints to see it with."""

import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from scenemill.pipelines.commands.options import PathOrUri, place


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(view)
    app.command("mock-checkpoints")(mock_checkpoints)


def view(
    paths: Annotated[
        list[PathOrUri] | None,
        typer.Argument(
            parser=place,
            help="Logs of 3D checkpoints, stores, predictions, metric tables; or a folder that holds some; or s3://BUCKET/STORE.",
            metavar="PATH",
        ),
    ] = None,
    logdir: Annotated[list[PathOrUri] | None, typer.Option(parser=place, help="The same as PATH.")] = None,
    host: Annotated[str, typer.Option(help="Address to serve at. Beyond this machine only with a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for a free one.")] = 8080,
    token: Annotated[str, typer.Option(help="What askers must have. Default: none here, one made up for another host.")] = "",
    poll: Annotated[float, typer.Option(help="Seconds between looks at the folders.")] = 1.0,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Serve a page that shows meshes, point clouds, voxels, pictures, slices, findings and metrics; live, and read-only."""
    from scenemill.pipelines.viewer.server import ViewConfig, Viewer

    viewer = Viewer(ViewConfig((*(paths or ()), *(logdir or ())), host, port, token, poll))
    for root in viewer.roots:
        typer.echo(f"{root.name}: {root.kind}, {root.path}")
    typer.echo(f"{viewer.url}  (Ctrl+C ends it)")
    if open_page:
        webbrowser.open(viewer.url)
    with suppress(KeyboardInterrupt):
        viewer.run()


def mock_checkpoints(
    logdir: Annotated[Path, typer.Argument(help="Folder of the log.")],
    test_objs: Annotated[
        str, typer.Option("--test-objs", "--test_objs", help="Mesh files, by comma. Default: two made-up meshes.")
    ] = "",
    iterations: Annotated[int, typer.Option(min=1, help="Of the mock training; every tenth is written.")] = 101,
) -> None:
    """Write mock 3D checkpoints in seconds: meshes, points and voxels on their way to the truth, to see with "scenemill view"."""
    from scenemill.pipelines.progress import log_lines
    from scenemill.trainers.mock_log import write_mock_log

    objs = [Path(name.strip()) for name in test_objs.split(",") if name.strip()]
    categories = write_mock_log(logdir, objs, iterations, log_lines)
    typer.echo(f"{logdir}: {', '.join(categories)}")
    typer.echo(f"see it with: scenemill view {logdir}")
