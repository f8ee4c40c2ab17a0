"""The commands about batches: how quickly a store becomes them, and what they hold."""

from pathlib import Path
from typing import Annotated

import typer

from scenemill.pipelines.commands.options import AsJson, StoreArgument
from scenemill.pipelines.progress import progress
from scenemill.pipelines.terminal import say
from scenemill.schemas.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(bench_loader)
    app.command()(order)


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
    from scenemill.pipelines.reports.human import print_loader_speed
    from scenemill.schemas.dataset import AugmentationConfig, DatasetConfig
    from scenemill.trainers.speed import bench_loader as run
    from scenemill.trainers.speed import to_json

    config = DatasetConfig(
        enable_3d=volumes, enable_mp_occ=planes, augmentation=AugmentationConfig(train_min_size=(240,), train_max_size=960)
    )
    counts = _counts(workers)
    with progress(as_json) as on_progress:
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
        from scenemill.pipelines.reports.charts import speed as draw

        rates = {f"{feed.workers} workers": feed.samples_per_s for feed in speed.feeds}
        draw(speed.stage_ms, rates, speed.feeds[-1].wait_ms, png)
    say(to_json(speed), as_json, lambda console: print_loader_speed(console, speed))


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 0:
        raise ConfigError(f"--workers {text!r}: give numbers of processes, by comma: 0,1,2")
    return counts


def order(
    store: StoreArgument,
    split: Annotated[str | None, typer.Option(help="Which samples. Default: all.")] = None,
    epoch: Annotated[int, typer.Option(min=0, help="Which epoch.")] = 0,
    position: Annotated[int, typer.Option(min=0, help="Samples of the epoch that were read already.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples in a batch, on each rank.")] = 1,
    world_size: Annotated[int, typer.Option(min=1, help="Ranks.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Reading processes of each rank.")] = 1,
    window: Annotated[int, typer.Option(min=1, help="Parts read at a time.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the shuffle.")] = 0,
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
