"""The command that fits a textured mesh to the views of an object."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scenemill.pipelines.commands.options import PathOrUri, place

if TYPE_CHECKING:
    from scenemill.pipelines.experiments.fitting import Fitted
    from scenemill.trainers.render.fit import Epoch


def fit(
    source: Annotated[str, typer.Argument(help="The source of the store: views.")],
    store: Annotated[PathOrUri, typer.Argument(parser=place, help="A store of views of one object, or of several.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings that replace the preset's: epochs=10 texture_size=200", metavar="KEY=VALUE")
    ] = None,
    out: Annotated[
        PathOrUri,
        typer.Option(parser=place, help="Folder for the mesh, its 3D checkpoints and the metric tables."),
    ] = Path("fit"),
    template: Annotated[str, typer.Option(help="Mesh to begin with: a file (OBJ, USD, GLB), or sphere.")] = "sphere",
    preset: Annotated[
        str, typer.Option(help="current or original: the settings of Kaolin's DIB-R tutorial as it is, or as it first was.")
    ] = "current",
    split: Annotated[str, typer.Option(help="Split to fit. Default: all views.")] = "",
    held_out: Annotated[str, typer.Option(help="Split to measure on. Default: every tenth view.")] = "",
    scene: Annotated[str, typer.Option(help="Which object, where the store has several.")] = "",
    truth: Annotated[
        Path | None, typer.Option(help="Mesh file of the true surface, for the Chamfer distance; in the unit of the views.")
    ] = None,
    tables: Annotated[PathOrUri | None, typer.Option(parser=place, help="Metric tables. Default: OUT/tables.")] = None,
    name: Annotated[str, typer.Option(help="What to call the result in the metric tables.")] = "fit",
    device: Annotated[str, typer.Option(help="cpu, cuda, ... Default: the best there is.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Fit a textured mesh to views of an object by differentiable rendering (DIB-R); run again, it goes on where it was."""
    from scenemill.pipelines.experiments.fitting import FitJob, run_fit
    from scenemill.pipelines.experiments.specs import override_settings
    from scenemill.schemas.errors import ConfigError
    from scenemill.schemas.fields import VIEWS
    from scenemill.schemas.fit import PRESETS, FitConfig, told

    if source != VIEWS:
        raise ConfigError(f"fit {source!r}: meshes are fitted to {VIEWS}; write scenemill fit {VIEWS} STORE")
    if preset not in PRESETS:
        raise ConfigError(f"preset {preset!r}: allowed is {', '.join(map(repr, PRESETS))}")
    settings = override_settings(FitConfig, told(PRESETS[preset]), overrides or (), preset)
    job = FitJob(store, out, settings, template, split, held_out, scene, truth, tables, name, device)
    with _bar(as_json) as on_epoch:
        fitted = run_fit(job, on_epoch)
    if as_json:
        import json

        print(json.dumps(_receipt(fitted)))
    else:
        _tell(fitted)


def _receipt(fitted: "Fitted") -> dict[str, Any]:
    names = ("mask_iou", "psnr_db", "ssim")
    return {
        "run": fitted.run,
        "results": str(fitted.results),
        "epochs": len(fitted.epochs),
        "seconds": round(fitted.epochs[-1].seconds, 1),
        "loss": fitted.epochs[-1].losses[-1],
        "before": {name: fitted.mean(name, "before") for name in names},
        "after": {name: fitted.mean(name) for name in names},
        "chamfer": fitted.chamfer,
    }


def _tell(fitted: "Fitted") -> None:
    last = fitted.epochs[-1]
    typer.echo(f"results       {fitted.results}: mesh.obj, mesh.usd, views.png, timelapse/")
    typer.echo(f"run           {fitted.run}")
    typer.echo(f"epochs        {len(fitted.epochs)} in {last.seconds:.1f} s, last loss {last.losses[-1]:.4f}")
    for name, title, unit in (("mask_iou", "mask IoU", ""), ("psnr_db", "PSNR", " dB"), ("ssim", "SSIM", "")):
        before, after = fitted.mean(name, "before"), fitted.mean(name)
        typer.echo(f"{title:<13} {before:.3f}{unit} before, {after:.3f}{unit} after, on {len(fitted.after)} held-out views")
    if fitted.chamfer is not None:
        typer.echo(f"Chamfer       {fitted.chamfer:.4g} in units of the scene")


@contextmanager
def _bar(quiet: bool) -> "Iterator[Callable[[Epoch], None]]":
    """A bar of epochs on a terminal, a line for each in a log, nothing for machines."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if quiet:
        yield lambda epoch: None
        return
    if not console.is_terminal:
        yield lambda epoch: print(_line(epoch), file=console.file, flush=True)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None)
        yield lambda epoch: bar.update(task, completed=epoch.epoch + 1, total=epoch.epochs, description=_line(epoch))


def _line(epoch: "Epoch") -> str:
    held_out = "" if epoch.mask_iou is None else f", held out IoU {epoch.mask_iou:.3f}, PSNR {epoch.psnr_db:.1f} dB"
    return f"epoch {epoch.epoch + 1}: loss {sum(epoch.losses) / len(epoch.losses):.4f}{held_out}, {epoch.seconds:.0f} s"
