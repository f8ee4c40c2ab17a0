"""Arguments and options that several commands take."""

from typing import TYPE_CHECKING, Annotated

import typer

from scenemill.pipelines.commands import completions
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.places import Place
from scenemill.transforms.objects import place_of

if TYPE_CHECKING:
    PathOrUri = Place
else:
    PathOrUri = type("path|uri", (), {})
    """What help says a place is: it shows the names of classes, and refuses a choice of two."""


def place(text: str) -> Place:
    """A folder, or the URI of one in an object store, as typed.

    Raises:
        BadParameter: neither.
    """
    try:
        return place_of(text)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


SourceName = Annotated[
    str,
    typer.Argument(
        help="front3d, matterport, synthetic_hospital, synthetic_warehouse or views; one of your own as FILE.py:NAME.",
        autocompletion=completions.sources,
    ),
]
MadeUpSource = Annotated[
    str,
    typer.Argument(
        help="front3d, matterport, synthetic_hospital, synthetic_warehouse or views.", autocompletion=completions.sources
    ),
]
StoreArgument = Annotated[
    PathOrUri, typer.Argument(parser=place, help="The store's folder, or s3://BUCKET/STORE, gs://BUCKET/STORE.")
]
TablesArgument = Annotated[PathOrUri, typer.Argument(parser=place, help="Folder of the metric tables, or s3://BUCKET/TABLES.")]
Version = Annotated[str | None, typer.Option(help="Id of an older version, or its first digits. Default: the newest.")]
Workers = Annotated[int, typer.Option(help="Processes on this machine.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
