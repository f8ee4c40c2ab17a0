"""The commands that make raw data: made-up rooms, views of an object, and views out of sets of cameras."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from scenemill.pipelines.commands.options import AsJson, MadeUpSource
from scenemill.pipelines.progress import progress
from scenemill.pipelines.terminal import say
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fields import VIEWS


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    _register_synth(app)

    @app.command("convert-views")
    def convert_views(
        out: Annotated[Path, typer.Argument(help="A new or empty folder; its name is the scene's.")],
        files: Annotated[list[Path], typer.Argument(help="transforms.json; or several transforms_SPLIT.json.", metavar="FILE")],
        as_json: AsJson = False,
    ) -> None:
        """Turn images with poses in the form of NeRF's Blender scenes into views that "ingest views" takes."""
        from scenemill.transforms.view_sets import convert_camera_sets

        count = convert_camera_sets(files, out)
        say({"folder": str(out), "views": count}, as_json, lambda console: console.print(f"{out}: {count} views", soft_wrap=True))


def _register_synth(app: typer.Typer) -> None:
    @app.command()
    def synth(
        source: MadeUpSource,
        out: Annotated[Path, typer.Argument(help="A new or empty folder.")],
        scenes: Annotated[int | None, typer.Option(help="Rooms. Default: 3.")] = None,
        views: Annotated[int | None, typer.Option(help="Views of each room, default 4; or of the object, default 100.")] = None,
        seed: Annotated[int, typer.Option(help="The same seed makes the same bytes.")] = 0,
        grid: Annotated[int | None, typer.Option(help="Voxels a side of a room: 256 (default), 128 or 64.")] = None,
        shown: Annotated[
            str | None, typer.Option("--object", help="sphere (default), torus, vase or clock; or a mesh: FILE.obj, .usd or .glb.")
        ] = None,
        size: Annotated[int | None, typer.Option(help="Pixels a side of a view of an object. Default: 256.")] = None,
        radius: Annotated[
            float | None, typer.Option(help="Distance of the cameras from the object, in its own unit. Default: it fits.")
        ] = None,
        elevation: Annotated[
            tuple[float, float] | None,
            typer.Option(help="Lowest and highest angle of the cameras, in degrees. Default: -30 60."),
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Make up raw data, of which all is known: furnished rooms, or views of an object. For trying, testing and teaching."""
        of_rooms = {"scenes": scenes, "grid": grid}
        of_object = {"object": shown, "size": size, "radius": radius, "elevation": elevation}
        if foreign := [name for name, value in (of_rooms if source == VIEWS else of_object).items() if value is not None]:
            raise ConfigError(f"--{foreign[0]} says nothing of {source}; leave it out")
        with progress(as_json) as on_progress:
            if source == VIEWS:
                made, what = _views(out, shown or "sphere", views, seed, size, radius, elevation, on_progress), "object"
            else:
                made, what = _rooms(source, out, scenes, views, seed, grid), "rooms"
        say(made, as_json, lambda console: console.print(_told(out, made, what), soft_wrap=True))


def _rooms(source: str, out: Path, scenes: int | None, views: int | None, seed: int, grid: int | None) -> Any:
    from scenemill.transforms.worlds import write_world

    count = 3 if scenes is None else scenes
    return write_world(
        source, out, scenes=count, views=4 if views is None else views, seed=seed, grid=256 if grid is None else grid
    )


def _views(
    out: Path,
    shown: str,
    views: int | None,
    seed: int,
    size: int | None,
    radius: float | None,
    elevation: tuple[float, float] | None,
    on_progress: Callable[[str, int, int], None],
) -> Any:
    from scenemill.pipelines.synth import synth_views

    given = {"views": views, "size": size, "radius": radius, "elevation": elevation}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return synth_views(out, shown, seed=seed, on_progress=on_progress, **chosen)


def _told(out: Path, made: Any, what: str) -> str:
    from scenemill.pipelines.reports.human import size

    return f"{out}: {made.scenes} {what}, {made.views} views, {made.files} files, {size(made.size_bytes)}"
