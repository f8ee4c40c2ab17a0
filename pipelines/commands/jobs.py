"""The commands of jobs: a service that runs them, and a client that asks it."""

import json
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from scenemill.pipelines.jobs.client import JobClient
    from scenemill.schemas.jobs import Job

jobs = typer.Typer(help="Jobs of a service: create, list, show, logs, cancel, resume.", no_args_is_help=True)

Kind = Annotated[str, typer.Argument(help="ingest, train, evaluate, inference, export or fit.")]
JobId = Annotated[str, typer.Argument(help="Id of a job.", metavar="JOB")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
_HEADINGS = f"{'id':16}  {'state':11}  {'kind':9}  {'created (UTC)':16}  name"
Home = Annotated[Path | None, typer.Option(help="The service's folder. Default: scenemill/jobs in the user's state.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(jobs, name="jobs")
    app.command("serve-jobs")(serve_jobs)


def serve_jobs(
    root: Annotated[
        list[Path] | None, typer.Option(help="A folder that jobs may read and write; several by several --root.")
    ] = None,
    home: Home = None,
    host: Annotated[
        str, typer.Option(help="Address to serve at. Beyond this machine put a proxy with TLS before it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for a free one.")] = 8090,
    slots: Annotated[int, typer.Option(help="Jobs that run at once; 0 to run none and keep the queue.")] = 1,
    grace: Annotated[float, typer.Option(help="Seconds from the interrupt of a cancelled job to its end by force.")] = 30.0,
    name: Annotated[
        list[str] | None, typer.Option(help="A further name of this host, as requests give it; several by several --name.")
    ] = None,
) -> None:
    """Run jobs for clients that have the token: ingest, train, evaluate, inference, export and fit, each a process of its own."""
    from scenemill.pipelines.jobs.server import JobService, JobServiceConfig
    from scenemill.pipelines.jobs.token import TOKEN_FILE, TOKEN_VARIABLE, default_home

    place = home or default_home()
    service = JobService(JobServiceConfig(tuple(root or ()), place, host, port, slots, grace, tuple(name or ())))
    typer.echo(f"{service.url}  (Ctrl+C ends it; jobs that run go on)")
    typer.echo(f"token: {place / TOKEN_FILE}, unless {TOKEN_VARIABLE} is set")
    with suppress(KeyboardInterrupt):
        service.run()


@jobs.callback()
def _client(
    context: typer.Context,
    url: Annotated[str, typer.Option(envvar="SCENEMILL_JOBS_URL", help="Address of the service.")] = "http://127.0.0.1:8090",
    token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="SCENEMILL_JOBS_TOKEN_FILE", help="File with the token. Default: that of a service of yours on this machine."
        ),
    ] = None,
) -> None:
    """Ask a job service; the token comes from SCENEMILL_JOBS_TOKEN, else from a file."""
    context.obj = (url, token_file)


def _ask(context: typer.Context) -> "JobClient":
    from scenemill.pipelines.jobs.client import JobClient
    from scenemill.pipelines.jobs.token import TOKEN_FILE, default_home, read_token

    url, token_file = context.obj
    client = JobClient(url, read_token(token_file or default_home() / TOKEN_FILE))
    context.call_on_close(client.close)
    return client


@jobs.command()
def schema(context: typer.Context, kind: Kind) -> None:
    """Print the JSON Schema of a kind's spec; its "default" is a whole spec."""
    typer.echo(json.dumps(_ask(context).schema(kind), indent=2))


@jobs.command()
def create(
    context: typer.Context,
    kind: Kind,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings that replace the file's: train.optim.lr=1e-3", metavar="KEY=VALUE")
    ] = None,
    specs: Annotated[Path | None, typer.Option("-e", "--specs", help="The spec: a YAML or JSON file, or a shipped one.")] = None,
    name: Annotated[str, typer.Option(help="What people call it; lists show it.")] = "",
    parent: Annotated[str, typer.Option("--parent", "--parent-job-id", help="A job that must succeed first.")] = "",
    as_json: AsJson = False,
) -> None:
    """Create a job, and print its id. In place of a path, {parent.checkpoint} or {parent.store} is what the parent leaves."""
    from scenemill.pipelines.experiments.specs import load_tree

    spec = load_tree(specs, [_quoted(override) for override in overrides or ()])
    made = _ask(context).create(kind, spec, name=name, parent=parent or None)
    typer.echo(json.dumps(asdict(made)) if as_json else made.id)


@jobs.command("list")
def list_jobs(
    context: typer.Context,
    state: Annotated[
        list[str] | None, typer.Option(help="Only jobs in this state, such as running; several by several --state.")
    ] = None,
    kind: Annotated[str, typer.Option(help="Only jobs of this kind.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most this many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first."""
    found = _ask(context).list(state or (), kind, limit)
    if as_json:
        typer.echo(json.dumps([asdict(job) for job in found]))
    elif not found:
        typer.echo("0 jobs; scenemill jobs create KIND makes one")
    else:
        typer.echo("\n".join((_HEADINGS, *map(_line, found))))


@jobs.command()
def show(context: typer.Context, job: JobId, as_json: AsJson = False) -> None:
    """What is known of a job, and its spec."""
    held = asdict(_ask(context).show(job))
    if as_json:
        typer.echo(json.dumps(held))
        return
    spec, results = held.pop("spec"), held.pop("results")
    for label, value in {**held, **{f"result {name}": path for name, path in results.items()}}.items():
        typer.echo(f"{label:18} {'-' if value in (None, '') else value}")
    typer.echo(json.dumps(spec, indent=2))


@jobs.command()
def logs(
    context: typer.Context,
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", "-f", help="Until the job has ended.")] = False,
) -> None:
    """Print what a job has printed; with --follow until it has ended, and exit 1 unless it succeeded."""
    client = _ask(context)
    for text in client.logs(job, follow=follow):
        typer.echo(text, nl=False)
    if follow and (ended := client.show(job)).state != "succeeded":
        print(f"{ended.state}: {ended.reason}", file=sys.stderr)
        raise typer.Exit(1)


@jobs.command()
def cancel(context: typer.Context, job: JobId) -> None:
    """Cancel a job; one that runs is interrupted, and killed if it does not end."""
    _print_state(_ask(context).cancel(job))


@jobs.command()
def resume(context: typer.Context, job: JobId) -> None:
    """Queue a job again that failed, was cancelled or interrupted; its command goes on where it was."""
    _print_state(_ask(context).resume(job))


def _quoted(override: str) -> str:
    """A setting with what the parent leaves as text, which YAML would take for a mapping."""
    key, equals, value = override.partition("=")
    return f"{key}{equals}{json.dumps(value)}" if value.startswith("{parent.") else override


def _print_state(job: "Job") -> None:
    typer.echo(f"{job.id}: {job.state}{f', {job.reason}' if job.reason else ''}")


def _line(job: "Job") -> str:
    parent = f"  after {job.parent}" if job.parent else ""
    return f"{job.id}  {job.state:11}  {job.kind:9}  {job.created[:16].replace('T', ' ')}  {job.name}{parent}"
