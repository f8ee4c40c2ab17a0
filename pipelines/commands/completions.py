"""What a shell completes: names that nobody should have to type."""

import typer


def sources() -> list[str]:
    """The sources of raw folders."""
    from scenemill.schemas.fields import SOURCES

    return list(SOURCES)


def experiments(incomplete: str) -> list[str]:
    """The shipped experiments that begin so; the shell adds files of its own."""
    from scenemill.pipelines.experiments.specs import list_specs

    return [name for name in list_specs() if name.startswith(incomplete)]


def specs(incomplete: str) -> list[str]:
    """What an experiment can be begun with: actions, and the shipped experiments."""
    from scenemill.schemas.experiment import ACTIONS

    return [*(name for name in ACTIONS if name.startswith(incomplete)), *experiments(incomplete)]


def keys(ctx: typer.Context, incomplete: str) -> list[str]:
    """Keys of the samples in the store that was typed before; none where there is no such store."""
    from scenemill.schemas.errors import SceneMillError
    from scenemill.transforms.objects import place_of
    from scenemill.transforms.store import open_store

    try:
        return [key for key in open_store(place_of(str(ctx.params["store"]))).keys if key.startswith(incomplete)]
    except (SceneMillError, KeyError):
        return []
