"""The answers of the job service, with their OpenAPI document at /openapi.json.

    GET  /v1/kinds                   names of what can be asked for
    GET  /v1/kinds/{kind}            JSON Schema of a kind's spec; its "default" is a whole spec
    POST /v1/jobs                    create a job
    GET  /v1/jobs?state&kind&limit   jobs, the newest first
    GET  /v1/jobs/{job}              one job, with its spec
    GET  /v1/jobs/{job}/log?offset&wait_s   what it prints, by and by
    POST /v1/jobs/{job}/cancel
    POST /v1/jobs/{job}/resume
    GET  /metrics                    for Prometheus

Every refusal is JSON: kind, what, where, now.
"""

import asyncio
import json
import logging
from typing import Annotated, Any, Final, Literal

from fastapi import FastAPI, Path, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

import scenemill
from scenemill.pipelines.jobs.desk import JobDesk
from scenemill.pipelines.jobs.metrics import JobMetrics
from scenemill.pipelines.jobs.specs import schema_of
from scenemill.schemas.errors import ConfigError, Conflict, SceneMillError
from scenemill.schemas.jobs import KINDS, NAME, RUNNING, Job, JobDetail, JobRequest, LogPiece, Refused

_LOG: Final = logging.getLogger(__name__)
_LOOK_S: Final = 0.25
_WAIT_S: Final = 30.0
_LARGEST: Final = 2**53
_ID: Final = "^[0-9a-f]{16}$"

_REFUSALS: Final = {
    400: "No JSON.",
    401: "No token, or a wrong one.",
    403: "Addressed to another host.",
    404: "No such job.",
    408: "The request came too slowly.",
    409: "Not in the job's state.",
    413: "The body is too large.",
    422: "Something is wrong with what was asked.",
}

State = Literal["queued", "running", "succeeded", "failed", "cancelled", "interrupted"]
KindName = Literal["ingest", "train", "evaluate", "inference", "export", "fit"]
JobId = Annotated[str, Path(pattern=_ID, description="Id of a job.")]


class NewJob(BaseModel, extra="forbid"):
    """What a client asks for; see ``JobRequest``."""

    kind: KindName
    spec: Annotated[dict[str, Any], Field(description="Settings; GET /v1/kinds/{kind} says which.")] = {}
    name: Annotated[str, Field(pattern=f"^({NAME})?$", description="For people.")] = ""
    parent: Annotated[str | None, Field(pattern=_ID, description="A job that must succeed first.")] = None


def make_app(desk: JobDesk, metrics: JobMetrics) -> FastAPI:
    """The application, without a guard.

    Args:
        desk: where jobs are handed in.
        metrics: what is told of them.
    """
    app = FastAPI(
        title="scenemill jobs",
        version=scenemill.__version__,
        description="Commands of scenemill as jobs: ingest, train, evaluate, inference, export, fit.",
        docs_url=None,  # pages that load their scripts from elsewhere
        redoc_url=None,
        dependencies=[Security(HTTPBearer(auto_error=False))],  # for the document; the guard is what looks at the token
        responses={status: {"model": Refused, "description": what} for status, what in _REFUSALS.items()},
        redirect_slashes=False,
    )
    for kind in (SceneMillError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _refuse)
    _add_kinds(app)
    _add_jobs(app, desk)
    _add_log(app, desk)
    _add_metrics(app, metrics)
    return app


def _add_kinds(app: FastAPI) -> None:
    @app.get("/v1/kinds", summary="Kinds of jobs.")
    def kinds() -> list[str]:
        return list(KINDS)

    @app.get("/v1/kinds/{kind}", summary="JSON Schema of a kind's spec; its default is a whole spec.")
    def schema(kind: KindName) -> dict[str, Any]:
        return schema_of(kind)


def _add_jobs(app: FastAPI, desk: JobDesk) -> None:
    @app.post("/v1/jobs", status_code=201, summary="Create a job.")
    def create(asked: NewJob) -> JobDetail:
        if asked.parent is not None:
            _known(desk, asked.parent)
        return desk.create(JobRequest(asked.kind, asked.spec, asked.name, asked.parent))

    @app.get("/v1/jobs", summary="Jobs, the newest first.")
    def jobs(
        state: Annotated[list[State] | None, Query(description="Only jobs in one of these states.", max_length=6)] = None,
        kind: Annotated[KindName | None, Query(description="Only jobs of this kind.")] = None,
        limit: Annotated[int, Query(ge=1, le=1000, description="At most this many.")] = 100,
    ) -> list[Job]:
        return desk.store.find(state or (), kind or "", limit)

    @app.get("/v1/jobs/{job}", summary="One job, with its spec.")
    def show(job: JobId) -> JobDetail:
        return _known(desk, job)

    @app.post("/v1/jobs/{job}/cancel", summary="Cancel a job; one that runs ends a little later.")
    def cancel(job: JobId) -> JobDetail:
        _known(desk, job)
        return desk.cancel(job)

    @app.post("/v1/jobs/{job}/resume", summary="Queue a job again that has not succeeded; it goes on where it was.")
    def resume(job: JobId) -> JobDetail:
        _known(desk, job)
        return desk.resume(job)


def _add_log(app: FastAPI, desk: JobDesk) -> None:
    @app.get("/v1/jobs/{job}/log", summary="The next piece of what a job prints.")
    async def log(
        job: JobId,
        offset: Annotated[int, Query(ge=0, le=_LARGEST, description="Where to begin, in bytes.")] = 0,
        wait_s: Annotated[float, Query(ge=0, le=_WAIT_S, description="How long to wait for more while the job runs.")] = 0.0,
    ) -> LogPiece:
        await run_in_threadpool(_known, desk, job)
        until = asyncio.get_running_loop().time() + wait_s
        while True:
            piece = await run_in_threadpool(desk.log, job, offset)
            if piece.text or piece.state != RUNNING or asyncio.get_running_loop().time() >= until:
                return piece
            await asyncio.sleep(_LOOK_S)


def _add_metrics(app: FastAPI, metrics: JobMetrics) -> None:
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"description": what, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refused"}}}}
        for status, what in _REFUSALS.items()
    }

    @app.get("/metrics", response_class=PlainTextResponse, responses=refusals, summary="Figures for Prometheus.")
    def told() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _known(desk: JobDesk, job: str) -> JobDetail:
    try:
        return desk.store.get(job)
    except ConfigError as error:
        raise HTTPException(404, str(error)) from error


def _allowed(request: Request) -> str:
    """The methods of an address, which several routes may share."""
    found: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route | APIRoute) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return ", ".join(sorted(found))


def _refuse(request: Request, error: Exception) -> Response:
    """Any error as JSON: what, where, what now."""
    headers: dict[str, str] = {}
    where = request.url.path
    if isinstance(error, HTTPException):
        status, kind, what, now = error.status_code, "Refused", str(error.detail), "See /openapi.json for what can be asked."
        headers = {"allow": _allowed(request)} if status == 405 else dict(error.headers or {})
    elif isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where, what = ".".join(map(str, first["loc"]))[:200], f"{str(first['loc'][-1])[:80]}: {first['msg']}"
        status, kind, now = 422, "ConfigError", "See /openapi.json for what can be asked."
    elif isinstance(error, SceneMillError):
        status, kind, what = 409 if isinstance(error, Conflict) else 422, type(error).__name__, str(error)
        now = "Look at the job again." if status == 409 else "Correct the request; GET /v1/kinds/{kind} says what a spec may hold."
    else:
        _LOG.error("a request failed", exc_info=error)
        status, kind, what, now = 500, type(error).__name__, "something unforeseen", "Look at the service's output."
    told = {"error": {"kind": kind, "what": what, "where": where, "now": now}}
    return Response(json.dumps(told), status, headers, "application/json")  # in ASCII, whatever a request held
