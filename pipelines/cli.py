"""The command line: parse, build a config, call one function, print. Nothing heavy is imported before a verb needs it."""

import errno
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

import scenemill
from scenemill.pipelines.commands import batches, experiments, export, ingest, jobs, numbers, schedule, store, synth, view
from scenemill.pipelines.commands.fit import fit
from scenemill.pipelines.starved import end_when_starved
from scenemill.pipelines.terminal import fail, leave, want
from scenemill.schemas.errors import ConfigError, Corrupt, SceneMillError, SourceError, StoreError, TooManyRejected
from scenemill.schemas.places import NO_CREDENTIALS, has_credentials, on_disk
from scenemill.transforms.objects import place_of

_INTERRUPTED: Final = 130  # of the shell, for a command that was stopped from the keyboard
_RESUMED: Final = frozenset(("ingest", "train", "tune", "evaluate", "inference", "score", "fit", "demo"))
"""Verbs that go on where they were stopped."""

_OF_PLACES: Final = frozenset((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST))
"""Errors of the system that are about a place the caller chose."""
_OF_DISKS: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO))
"""Errors of the system that are about a disk, and may name no place."""
_NO_MEMORY: Final = ("can't allocate memory", "Cannot allocate memory", "bad_alloc", "out of memory", "can't start new thread")
"""What libraries say that raise errors of other classes."""

_FIRST: Final = """Begin with made-up rooms:

  scenemill synth front3d raw --scenes 3

  scenemill ingest front3d --input raw --output store

  scenemill show store

"scenemill VERB --help" says more of each verb."""


def _bare(params: list[Any]) -> list[Any]:
    """Parameters as help shows them: a flag takes nothing, so it is shown without a type."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


class _Verbs(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _bare(super().get_params(ctx))


app = typer.Typer(
    cls=_Verbs,
    help="The data mill for 3D indoor scenes: raw folders in, checked samples and a store one can trust out.",
    epilog=_FIRST,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; exit 0 done, 1 unexpected, 2 your input, 3 your data."""
    want(quiet=False, verbose=False)
    end_when_starved(_tell_starved)
    try:
        _refuse_credentials()
        code = app(standalone_mode=False) or 0
        if code == _INTERRUPTED:
            kept = "what is finished is kept; run the same command again to go on" if _RESUMED & set(sys.argv) else "by Ctrl+C"
            leave("Stopped", kept, code)
        sys.exit(code)
    except (TooManyRejected, Corrupt, SourceError) as error:
        fail(error, 3)
    except (ConfigError, StoreError) as error:
        fail(error, 2)
    except SceneMillError as error:
        fail(error, 1)
    except ModuleNotFoundError as error:
        fail(
            ConfigError(
                f"{error.name} is not installed; this verb needs: pip install 'scenemill[ingest,tables,train,view,jobs,schedule]'"
            ),
            2,
        )
    except MemoryError as error:
        fail(_out_of_memory(error), 1)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            fail(_out_of_memory(error), 1)
        if error.errno in _OF_DISKS:
            place = error.filename or "the disk"
            fail(ConfigError(f"{place}: {error.strerror}; give it room, or another disk, and run the same command again"), 2)
        if error.errno not in _OF_PLACES or error.filename is None:
            raise
        fail(ConfigError(f"{error.filename}: {error.strerror}; give a place that is there and can be written, with room on it"), 2)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # a usage error of the command line library
            error.show()  # type: ignore[attr-defined]
            sys.exit(2)
        if any(map(_is_of_memory, _causes(error))):
            fail(_out_of_memory(error), 1)
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it came from, as libraries wrap what they meet."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_of_memory(error: BaseException) -> bool:
    said = str(error)
    no_library = isinstance(error, ImportError) and said.endswith(
        "failed to map segment from shared object"
    )  # and no reason after it
    return isinstance(error, MemoryError) or no_library or any(text in said for text in _NO_MEMORY)


def _tell_starved() -> None:
    try:
        fail(_out_of_memory(MemoryError("for a thread")), 1)
    finally:
        sys.stdout.flush()


def _out_of_memory(error: Exception) -> MemoryError:
    said = (str(error).splitlines() or ["no more to be had"])[0][:200]
    return MemoryError(f"memory ran out ({said}); give the command more, or let it do less at once, and run it again")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"scenemill {scenemill.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress: results, and errors, alone.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also what libraries log, and where an error came from.")
    ] = False,
) -> None:
    want(quiet, verbose)


def _refuse_credentials() -> None:
    """Arguments are seen by all who list processes, and by whoever reads what a command says of them."""
    for word in sys.argv[1:]:
        if has_credentials(word) and not word.startswith("encryption_key="):
            raise ConfigError(f"{word.partition('://')[0]}://...: {NO_CREDENTIALS}")


class _Verb(TyperCommand):
    """A verb that refuses a URI where it takes a path of this machine's disks alone: a URI is a path too, and would make folders."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _bare(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As in the library.

        Raises:
            ConfigError: a URI where none is taken.
        """
        rest = super().parse_args(ctx, args)
        for value in ctx.params.values():
            for path in value if isinstance(value, list | tuple) else (value,):
                if isinstance(path, Path):
                    on_disk(place_of(path))
        return rest


def _of_one_kind(shown: typer.Typer) -> None:
    for registered in shown.registered_commands:
        registered.cls = _Verb
    for group in shown.registered_groups:
        group.cls = _Verbs
        if group.typer_instance is not None:
            _of_one_kind(group.typer_instance)


_PANELS: Final = {
    "Data": "synth convert-views plan ingest validate verify show versions clean runs",
    "Batches": "bench-loader order",
    "Models": "default-specs schema train tune evaluate inference export export-triton gen-trt-engine fit",
    "Numbers": "selfcheck score query report",
    "Exchange": "card export-raw export-coco export-mesh",
    "See": "view mock-checkpoints demo",
    "Operate": "schedule serve-jobs jobs",
}
"""What help shows the verbs under, in this order."""


def _sort_into_panels(shown: typer.Typer) -> None:
    """Let help show the verbs by what they are for. A verb without a panel is a mistake."""
    panels = {verb: panel for panel, verbs in _PANELS.items() for verb in verbs.split()}
    verbs: list[Any] = [*shown.registered_commands, *shown.registered_groups]
    for verb in verbs:
        verb.rich_help_panel = panels[_verb(verb)]
    shown.registered_commands.sort(key=lambda verb: list(panels).index(_verb(verb)))


def _verb(registered: Any) -> str:
    name: str = registered.name or registered.callback.__name__.replace("_", "-")
    return name


for group in (
    ingest,
    synth,
    store,
    export,
    batches,
    experiments,
    numbers,
    view,
    jobs,
    schedule,
):
    group.register(app)
app.command()(fit)
_sort_into_panels(app)
_of_one_kind(app)

if __name__ == "__main__":
    main()
