"""The viewer's answers: what there is as JSON, what to draw as frames, and the page itself. It reads, and nothing else.

    GET /                                     the page; its files below /page/
    GET /api/index                            what there is; its ETag is the revision, which live pages ask for
    GET /api/samples?root&find&split&from     samples of a store or of predictions
    GET /api/sample?key                       what every root knows of a sample
    GET /api/findings?root&find&severity&from
    GET /api/worst?root&run&metric&rule&from  samples of a run, the worst first
    GET /api/scene?root&item&what&time&detail&have    a frame of something in space
    GET /api/plane?root&item&what&axis&index          a frame of a picture, or of a plane of a volume
    GET /api/health

Nothing in a request is a path: items are looked up in what the roots have found. Errors are JSON: kind, what, where, now.
"""

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from scenemill.pipelines.viewer.cut import FULL, USUAL
from scenemill.pipelines.viewer.frames import tag_of
from scenemill.pipelines.viewer.guard import Access, Guard
from scenemill.pipelines.viewer.roots import Root, Roots, Sampled
from scenemill.pipelines.viewer.scenes import Scene
from scenemill.pipelines.viewer.store import StoreRoot
from scenemill.pipelines.viewer.tables import TablesRoot
from scenemill.schemas.errors import ConfigError, Corrupt, NotPublished, SceneMillError, SourceError

HELD_BYTE: Final = 512 << 20
"""Of scenes kept for the next request."""

_AT_ONCE: Final = 4  # answers that read or cut arrays; others wait
_LONGEST: Final = 512  # characters of a parameter, but for "have"
_TYPES: Final = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FRAME: Final = "application/x-scenemill-frame"

_NOW: Final[Mapping[type[Exception], str]] = {
    NotPublished: "Publish it, or point the viewer elsewhere.",
    Corrupt: "The message says what repairs it; it is read again then.",
    SourceError: "Look at the file; it is read again when it changes.",
    ConfigError: "Choose something that is there.",
}


def make_app(roots: Roots, access: Access) -> Guard:
    """The application: answers behind a guard.

    Args:
        roots: what is shown.
        access: who may ask.
    """
    api = _Api(roots)
    answers: dict[str, Callable[[Request], Response]] = {
        "/": api.page,
        "/page/{name:path}": api.page,
        "/api/index": api.index,
        "/api/samples": api.samples,
        "/api/sample": api.sample,
        "/api/findings": api.findings,
        "/api/worst": api.worst,
        "/api/scene": api.scene,
        "/api/plane": api.plane,
        "/api/health": lambda request: JSONResponse({"ok": True}),
    }
    routes = [Route(path, answer, methods=["GET"]) for path, answer in answers.items()]
    return Guard(
        Starlette(routes=routes, exception_handlers={SceneMillError: api.refuse, HTTPException: api.refuse, Exception: api.refuse}),
        access,
    )


class _Api:
    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._files = dict(_page_files())
        self._scenes = _Scenes()
        self._working = threading.BoundedSemaphore(_AT_ONCE)

    def page(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in self._files:
            raise HTTPException(404, f"no page {name[:80]!r}")
        body, kind = self._files[name]
        return _tagged(request, body, kind, hashlib.blake2b(body, digest_size=12).hexdigest())

    def index(self, request: Request) -> Response:
        tag = f'"{self._roots.revision()}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"etag": tag})
        return JSONResponse(self._roots.index(), headers={"etag": tag})

    def samples(self, request: Request) -> Response:
        root = self._root(request, Sampled)
        return JSONResponse(root.samples(_text(request, "find"), _text(request, "split"), _count(request, "from")))

    def sample(self, request: Request) -> Response:
        with self._working:
            return JSONResponse(self._roots.sample(_text(request, "key")))

    def findings(self, request: Request) -> Response:
        root = self._root(request, StoreRoot)
        return JSONResponse(root.findings(_text(request, "find"), _text(request, "severity"), _count(request, "from")))

    def worst(self, request: Request) -> Response:
        root = self._root(request, TablesRoot)
        wanted = (_text(request, name) for name in ("run", "metric", "rule"))
        return JSONResponse(root.worst(*wanted, _count(request, "from")))

    def scene(self, request: Request) -> Response:
        root = self._root(request, Root)
        if isinstance(root, TablesRoot):
            raise ConfigError(f"{root.name} are tables; there is nothing in space")
        item, what, time = _text(request, "item"), _text(request, "what"), _number(request, "time")
        detail = _text(request, "detail") or "usual"
        if detail not in ("usual", "full"):
            raise ConfigError(f"detail {detail[:40]!r}; give usual or full")
        with self._working:
            key = (root.name, item, what, time, detail, root.stamp(item))
            scene = self._scenes.get(key, lambda: root.scene(item, what, time, FULL if detail == "full" else USUAL))
            return _framed(request, scene.encode(frozenset(request.query_params.get("have", "").split(","))))

    def plane(self, request: Request) -> Response:
        root = self._root(request, Sampled)
        place = _text(request, "axis"), _count(request, "index")
        with self._working:
            return _framed(request, root.plane(_text(request, "item"), _text(request, "what"), *place).encode())

    def refuse(self, request: Request, error: Exception) -> Response:
        """Any error as JSON: what, where, what now."""
        if isinstance(error, HTTPException):
            told = {"kind": "Refused", "what": str(error.detail), "now": "Open the page at /."}
            return self._told(request, told, error.status_code)
        if not isinstance(error, SceneMillError):
            told = {"kind": type(error).__name__, "what": "something unforeseen", "now": "Look at the server's output."}
            return self._told(request, told, 500)
        now = next((now for kind, now in _NOW.items() if isinstance(error, kind)), "Try again.")
        told = {"kind": type(error).__name__, "what": str(error), "now": now}
        return self._told(request, told, 404 if isinstance(error, ConfigError) else 422)

    def _told(self, request: Request, told: Mapping[str, str], status: int) -> Response:
        where = " ".join(request.query_params.get(name, "")[:200] for name in ("root", "item", "key", "what")).strip()
        what = self._roots.without_paths(told["what"])
        return JSONResponse({"error": {**told, "what": what, "where": where or request.url.path}}, status)

    def _root(self, request: Request, kinds: Any) -> Any:
        root = self._roots.named(_text(request, "root"))
        if not isinstance(root, kinds):
            raise ConfigError(f"{root.name} is {root.kind}; that is asked of another kind")
        return root


class _Scenes:
    """Scenes asked for lately; the oldest go when they take too much memory together."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[Any, ...], Scene] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[Any, ...], make: Callable[[], Scene]) -> Scene:
        with self._lock:
            scene = self._held.pop(key, None)
        scene = scene or make()
        with self._lock:
            self._held[key] = scene
            while len(self._held) > 1 and sum(one.size_byte for one in self._held.values()) > HELD_BYTE:
                self._held.popitem(last=False)
        return scene


def _page_files() -> dict[str, tuple[bytes, str]]:
    """The files of the page by name, with their types; a request can name these alone."""
    root = files("scenemill.pipelines.viewer") / "page"
    found: dict[str, tuple[bytes, str]] = {}
    folders = [("", root)]
    while folders:
        place, folder = folders.pop()
        for entry in folder.iterdir():
            name = f"{place}{entry.name}"
            if entry.is_dir():
                folders.append((f"{name}/", entry))
            elif kind := _TYPES.get("." + entry.name.rpartition(".")[2]):
                found[name] = (entry.read_bytes(), kind)
    return found


def _framed(request: Request, frame: bytes) -> Response:
    return _tagged(request, frame, _FRAME, tag_of(frame))


def _tagged(request: Request, body: bytes, kind: str, tag: str) -> Response:
    """An answer that is not sent again where the asker has it."""
    headers = {"etag": f'"{tag}"', "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=kind, headers=headers)


def _text(request: Request, name: str) -> str:
    value = request.query_params.get(name, "")
    if len(value) > _LONGEST:
        raise ConfigError(f"{name} of {len(value)} characters; give at most {_LONGEST}")
    return value


def _number(request: Request, name: str) -> float:
    text = _text(request, name) or "0"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{name} {text[:40]!r}; give a number")
    return value


def _count(request: Request, name: str) -> int:
    value = _number(request, name)
    if value < 0 or value != int(value):
        raise ConfigError(f"{name} {value}; give a whole number from 0")
    return int(value)
