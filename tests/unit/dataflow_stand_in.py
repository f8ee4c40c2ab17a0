"""A stand-in for the Dataflow service on loopback: takes a job as the real one does, and runs the graph that was staged.

What it shows is that the submitted bytes are a whole graph that runs; not quotas, images, workers' start, or permissions.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.transforms import environments

from scenemill.pipelines.runners.groups import local_options, local_runner


class Service:
    """What was asked for, and what became of it.

    Attributes:
        url: the endpoint.
        jobs: bodies of the jobs posted, in order.
        run: False to accept jobs and call them done.
        log: requests, as "METHOD PATH".
    """

    def __init__(self, run: bool) -> None:
        self.url = ""
        self.jobs: list[dict[str, Any]] = []
        self.run = run
        self.log: list[str] = []
        self.state = "JOB_STATE_PENDING"
        self.message = ""

    def take(self, job: dict[str, Any]) -> dict[str, Any]:
        """Accept a job; it runs in the background."""
        self.jobs.append(job)
        self.state = "JOB_STATE_RUNNING" if self.run else "JOB_STATE_DONE"
        if self.run:
            threading.Thread(target=self._work, args=(graph_of(job),)).start()
        return self.told()

    def told(self) -> dict[str, Any]:
        job = self.jobs[-1]
        return {
            "id": "job-1",
            "name": job["name"],
            "clientRequestId": job.get("clientRequestId", ""),
            "currentState": self.state,
        }

    def messages(self) -> dict[str, Any]:
        said = {"id": "1", "time": "2026-01-01T00:00:00Z", "messageImportance": "JOB_MESSAGE_ERROR", "messageText": self.message}
        return {"jobMessages": [said] if self.message else []}

    def _work(self, graph: beam_runner_api_pb2.Pipeline) -> None:
        here = environments.EmbeddedPythonGrpcEnvironment.default().to_runner_api(None)
        for environment in graph.components.environments.values():
            environment.CopyFrom(here)
        options: PipelineOptions = local_options(1)
        try:
            local_runner(options).run_via_runner_api(graph, options).wait_until_finish()
            self.state = "JOB_STATE_DONE"
        except Exception as error:
            self.message = f"Traceback: {error}"
            self.state = "JOB_STATE_FAILED"


def graph_of(job: dict[str, Any]) -> beam_runner_api_pb2.Pipeline:
    """The graph that a job's body points at."""
    staged = Path(job["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"])
    return beam_runner_api_pb2.Pipeline.FromString(staged.read_bytes())


@contextmanager
def dataflow(*, run: bool) -> Iterator[Service]:
    """A service on a free port of this machine."""
    service = Service(run)

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, document: dict[str, Any]) -> None:
            service.log.append(f"{self.command} {self.path.partition('?')[0]}")
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self._answer(service.take(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            self._answer(service.messages() if path.endswith("/messages") else service.told())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        service.url = f"http://localhost:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield service
        server.shutdown()
        thread.join()
