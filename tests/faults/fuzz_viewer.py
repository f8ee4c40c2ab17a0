"""Fuzz target: requests to the viewer.

Each is asked of the application as it is served, and again without the token and by another host's name, where nothing but a refusal may
come.
"""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from scenemill.pipelines.predictions import Prediction, write_prediction
from scenemill.pipelines.viewer.answers import make_app
from scenemill.pipelines.viewer.guard import Access
from scenemill.pipelines.viewer.roots import Roots
from scenemill.schemas.errors import ConfigError
from scenemill.trainers.timelapse import Timelapse
from scenemill.transforms.store import open_store
from tests.faults.fuzz_asgi import NAMES, TOKEN, WORDS, Asker, Guarded, check_answer, files_under, request_of
from tests.faults.fuzz_predictions import CAMERA
from tests.faults.fuzz_target import SECRET, FuzzTarget, right
from tests.faults.fuzz_texts import make_tables
from tests.golden.test_golden import write_store

_STATUSES: Final = frozenset({200, 303, 304, 307, 403, 404, 405, 414, 422})
_READING: Final = (b"GET", b"HEAD")


def _head(line: str, *more: str) -> bytes:
    return "\n".join((line, "host: localhost", f"cookie: scenemill={TOKEN}", *more)).encode() + b"\n\n"


def write_viewed(folder: Path) -> tuple[Path, str]:
    """One of everything that the viewer shows, and a secret beside it; the folder, and the key of a sample."""
    shown = folder / "shown"
    shown.mkdir()
    write_store("front3d", shown / "store", CAMERA)
    key = open_store(shown / "store").keys[0]
    flat, volume = np.ones((6, 8), np.int32), np.zeros((64, 64, 64), np.int32)
    volume[30:34, 30:34, 8:12] = 1
    told = Prediction(flat, {1: 3}, flat.astype(np.float32), volume, {1: 3}, volume.astype(np.float32))
    write_prediction(shown / "told", key, told)
    make_tables(shown / "tables")
    with Timelapse(shown / "log") as writer:
        for time in (0, 10):
            writer.add_pointcloud_batch(time, "moving", [np.eye(3, dtype=np.float32)])
    (folder / "secret.json").write_bytes(SECRET)
    (shown / "log" / "secret").symlink_to(folder)
    (shown / "told" / "secret").symlink_to(folder)
    return shown, key


def view_request(folder: Path) -> FuzzTarget:
    """A request to the viewer."""
    shown, key = write_viewed(folder)
    roots = Roots([shown], poll_s=3600)
    known, unknown = (make_app(roots, Access(NAMES, token)) for token in (TOKEN, secrets.token_hex(32)))
    app, asker = Guarded(known, unknown, frozenset({403, 405, 414})), Asker()
    before = files_under(shown)

    def read(data: bytes) -> None:
        request = request_of(data)
        app.check_refused(asker, request)
        answer = asker.ask(app.known, request)
        if answer is not None:
            check_answer(answer, request, _STATUSES, folder)
            right(request.method in _READING or answer.status == 405, "more than a reader was answered")
        right(files_under(shown) == before, "files have changed")

    places = [f"root=store&item={key}&what={what}" for what in ("surface", "voxels", "points")]
    places += [f"root=told&item={key}&what=voxels&detail=full", "root=log&item=pointcloud/moving/0&time=9&have=a,b"]
    planes = [
        f"root=store&item={key}&what=geometry&axis=z&index=3",
        f"root=store&item={key}&what=rgb",
        f"root=told&item={key}&what=view",
    ]
    planes += [f"root=told&item={key}&what={what}&axis=x&index=1" for what in ("classes", "depth", "distance", "segments_3d")]
    asked = ["/", "/page/app.js", "/api/index", "/api/index/", "/api/health", f"/?token={TOKEN}", f"/api/sample?key={key}"]
    asked += [f"/api/samples?root={root}&find=a&split=train&from=0" for root in ("store", "told")]
    asked += [
        "/api/findings?root=store&severity=error&find=x&from=0",
        "/api/worst?root=tables&run=a&metric=prq&rule=reference&from=0",
    ]
    asked += [f"/api/scene?{place}" for place in places] + [f"/api/plane?{place}" for place in planes]
    seeds = tuple(_head(f"GET {path}") for path in asked) + (_head("HEAD /api/index", 'if-none-match: "x"'), _head("POST /") + b"a")
    names = ("root", "item", "key", "what", "time", "detail", "have", "find", "split", "from", "severity", "run", "metric", "rule")
    values = (
        "store",
        "told",
        "tables",
        "log",
        "geometry",
        "semantic_3d",
        "classes_3d",
        "depth",
        "surface",
        "voxels",
        "points",
        "full",
    )
    words = (*(f"&{name}=".encode() for name in (*names, "axis", "index", "token")), *map(str.encode, values), *WORDS)
    return FuzzTarget(
        "view_request",
        seeds,
        read,
        (ConfigError,),
        (*words, key.encode(), b"pointcloud/moving/0"),
        1024,
        asks=True,
        light=80,
        inside="shown",
    )


TARGETS: Final[dict[str, Callable[[Path], FuzzTarget]]] = {"view_request": view_request}
