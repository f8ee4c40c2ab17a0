"""Reading USD for the viewer, in a process of its own.

usd-core trusts what it reads: a file that is damaged within may end the process that reads it, keep it busy for ever, or take all of
its memory. So one child process reads, one file at a time, within limits. Where it ends over a file, that file is told as broken, and the
next question begins another child.

The child is a new Python that runs ``answer``: the script of a user, who may serve from it, is not run a second time, and nothing is
shared with the process that serves but two pipes of pickled questions and answers. Answers may name our own records and errors and NumPy's
arrays, and nothing else: a child that a file has taken over can tell lies, but runs nothing in the process that serves.
"""

import atexit
import logging
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Concatenate, Final, NamedTuple, ParamSpec, TypeVar

import scenemill
from scenemill.schemas.errors import SceneMillError, SourceError, TransientError

LIMIT_S: Final = 30.0
"""For one answer."""

LIMIT_BYTE: Final = 4 << 30
"""Of memory, beyond what the child begins with; on Linux."""

IDLE_S: Final = 600.0
"""Without a question, after which a child ends: it holds 300 MB."""

_COMMAND: Final = (
    "import sys; from scenemill.pipelines.viewer.reading import answer; answer(*map(float, sys.argv[1:4]), sys.argv[4:])"
)
_OF_USD: Final = ("scenemill.pipelines.viewer.log", "pxr.Sdf", "pxr.Usd", "pxr.UsdGeom", "pxr.UsdShade", "pxr.UsdUtils")
_ENVIRONMENT: Final = {
    "USDC_USE_PREAD": "1",  # else usd-core maps files, and one that is cut short meanwhile ends the process
    "TMPDIR": os.devnull,  # no folder: usd-core would leave a report of its end there
}

_OF_ARRAYS: Final = {
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")
_State = tuple[int, ...]
_log = logging.getLogger(__name__)


class _Fault(NamedTuple):
    """An error that no reader raises on purpose: damaged data went further than its checks."""

    told: str
    trace: str


class _Answers(pickle.Unpickler):
    """Reads an answer of the child, in which only records, errors and arrays may be named."""

    def find_class(self, module: str, name: str) -> Any:
        """See ``pickle.Unpickler``."""
        found = super().find_class(module, name) if (module, name) in _OF_ARRAYS or module.startswith("scenemill.") else None
        if (module, name) in _OF_ARRAYS or (isinstance(found, type) and _is_record(found)):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} is no record, error or array")


def _is_record(found: type) -> bool:
    return is_dataclass(found) or issubclass(found, SceneMillError) or (issubclass(found, tuple) and hasattr(found, "_fields"))


class _Ended(Exception):
    """There is no answer, and no child any more; the argument says why, in words."""


class UsdReader:
    """Reads USD files in a child process, which is begun by the first question, and anew after its end.

    Args:
        modules: what the child imports before its first answer, so that this is not counted to a file.
        limit_s: for one answer.
        limit_byte: of memory, beyond what the child begins with; on Linux.
        idle_s: without a question, after which the child ends.
    """

    def __init__(
        self,
        modules: Sequence[str] = _OF_USD,
        limit_s: float = LIMIT_S,
        limit_byte: int = LIMIT_BYTE,
        idle_s: float = IDLE_S,
    ) -> None:
        self._limit_s = limit_s
        self._given = [str(limit_s), str(limit_byte), str(idle_s), *modules]
        self._lock = threading.Lock()  # one file at a time, so that the blame is right
        self._child: subprocess.Popen[bytes] | None = None
        self._broken: dict[str, tuple[_State, str]] = {}

    def ask(
        self, read: Callable[Concatenate[Path, _Given], _Result], path: Path, *given: _Given.args, **named: _Given.kwargs
    ) -> _Result:
        """What a function makes of a file.

        Args:
            read: a function that the child can import; its first argument is the path.
            path: of the file. One that ended a child is not read again until it changes.
            given, named: the other arguments.

        Raises:
            SourceError: the file is damaged, ends whoever reads it, or takes too much time or memory.
            SceneMillError: whatever else the function raises on purpose.
            TransientError: no child can be begun.
        """
        path = path.absolute()
        question = pickle.dumps((read, (path, *given), named), pickle.HIGHEST_PROTOCOL)
        with self._lock:
            state = _state_of(path)
            if why := self._why_broken(path):
                raise _unreadable(path, why)
            try:
                answer = self._answer(question)
            except _Ended as ended:
                self._broken[str(path)] = state, str(ended)
                raise _unreadable(path, str(ended)) from None
        if isinstance(answer, SceneMillError):
            raise answer
        result: _Result = answer
        return result

    def verdict(self, path: Path) -> str:
        """Why a file is not read in its present state; "" for one that is."""
        path = path.absolute()
        why = self._why_broken(path)
        return str(_unreadable(path, why)) if why else ""

    def close(self) -> None:
        """End the child, whatever it does; the next question begins another."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in filter(None, (self._child.stdin, self._child.stdout)):
                with suppress(OSError):  # what a dead child has not taken
                    pipe.close()

    def _why_broken(self, path: Path) -> str:
        state, why = self._broken.get(str(path), (_State(), ""))
        return why if why and state == _state_of(path) else ""

    def _answer(self, question: bytes) -> Any:
        """The child's answer; one that has read other files may have been hurt by these, so that a new one is asked once more.

        Raises:
            _Ended: the new child has none either.
        """
        while True:
            begun = self._child is None or self._child.poll() is not None
            if begun:
                self._begin()
            try:
                return self._exchange(question)
            except _Ended:
                if begun:
                    raise

    def _begin(self) -> None:
        if self._child is None:
            atexit.register(self.close)
        self.close()
        package = str(Path(scenemill.__path__[0]).parent)
        places = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), package)))
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND, *self._given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": places},
            start_new_session=True,  # Ctrl+C is for the process that serves
        )
        try:
            self._exchange(b"")
        except _Ended as ended:
            raise TransientError(f"the process that reads USD did not begin ({ended}); its output says why, try again") from None

    def _exchange(self, question: bytes) -> Any:
        """Send a question, if any, and wait for an answer.

        Raises:
            _Ended: none came.
        """
        child = self._child
        assert child is not None and child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(question)
            child.stdin.flush()
            answer = _Answers(child.stdout).load()
        except (OSError, EOFError, pickle.UnpicklingError):
            self.close()
            raise _Ended(self._how_it_ended(child.returncode)) from None
        except BaseException:  # an answer half read would be taken for that to the next question
            self.close()
            raise
        if isinstance(answer, _Fault):
            _log.info("a file is damaged within: %s", answer.trace)
            self.close()
            raise _Ended(answer.told)
        return answer

    def _how_it_ended(self, code: int) -> str:
        if code == -signal.SIGALRM:
            return f"reading it takes more than {self._limit_s:g} s"
        return f"reading it ends the process: {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"


READER: Final = UsdReader()
"""Of all viewers of a process."""


def answer(limit_s: float, limit_byte: float, idle_s: float, modules: Sequence[str]) -> None:
    """The child's life: answer what comes in, until nothing does.

    Args:
        limit_s, limit_byte, idle_s, modules: as of ``UsdReader``.
    """
    with os.fdopen(os.dup(0), "rb") as questions, os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # whatever libraries print when they are imported is no answer
        for name in modules:
            import_module(name)
        _limit(int(limit_byte))
        _send(None, answers)
        while select.select([questions], [], [], idle_s)[0] and questions.peek(1):
            _send(_answer_to(questions, limit_s), answers)


def _limit(limit_byte: int) -> None:
    """From here on the process says nothing, leaves nothing when it ends, is not saved from its alarms, and has so much more memory."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if sys.platform == "linux":
        rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        most = int(rows["VmData"].split()[0]) * 1024 + limit_byte
        allowed = resource.getrlimit(resource.RLIMIT_DATA)[1]
        most = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _send(answer: Any, answers: IO[bytes]) -> None:
    pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)  # arrays go from their own memory into the pipe
    answers.flush()


def _answer_to(questions: IO[bytes], limit_s: float) -> Any:
    read, given, named = pickle.load(questions)  # noqa: S301 (of the process that started this one)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        return read(*given, **named)
    except SceneMillError as error:
        return error
    except MemoryError:
        return _Fault("reading it takes too much memory", traceback.format_exc())
    except Exception as error:  # told as it is: which errors damaged data may lead to, nobody knows
        return _Fault(f"{type(error).__name__}: {error}"[:200], traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _unreadable(path: Path, why: str) -> SourceError:
    return SourceError("container", f"no readable USD file at {path} ({why})", "a USD file; write it anew")


def _state_of(path: Path) -> _State:
    """Another one whenever a file changes; nothing for none."""
    try:
        stat = path.stat()
    except OSError:
        return _State()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
