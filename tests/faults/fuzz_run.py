"""Coverage-guided fuzzing of everything that reads what others wrote, by atheris; a program of its own.

    python fuzz_run.py --target all --runs 20000            # each target in a process of its own, guided by coverage
    python fuzz_run.py --target npz --seconds 60
    python fuzz_run.py --target all --light                 # the kept corpus and a few hundred fresh inputs, without atheris
    python fuzz_run.py --target all --runs 20000 --keep     # and then keep the smallest inputs that run every line reached
    python fuzz_run.py --target npz --replay FILE           # one input, with its trace

Prints a line of JSON for each target: executions, what became of them, coverage, and every defect with the file that shows it. Exits
with 1 if there is one. Inputs that showed a defect lie in ``corpus/TARGET`` as ``defect-...`` and are tried for ever.
"""

import argparse
import hashlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tests.faults.fuzz_target import Fence, FuzzTarget

HERE: Final = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[2]))  # a program: its folder is on the path, and the tests' own is not
CORPUS: Final = HERE.with_name("corpus")
SECONDS_PER_INPUT: Final = 20
MEMORY_MB: Final = 3072
MOST_STARTS: Final = 40
RUNS_OF_A_START: Final = 20_000  # what atheris traces takes more and more memory where arrays are compared
MOST_DEFECTS: Final = 20
MOST_KEPT: Final = 24
NUMBERS: Final = (
    *(b"0", b"1", b"-1", b"2", b"3", b"64", b"255", b"256", b"65536", b"2147483648", b"4294967296", b"9223372036854775808"),
    *(
        b"999999999999999999",
        b"1" * 40,
        b"1" * 400,
        b"1e308",
        b"1e999",
        b"-1e999",
        b"1e-320",
        b"0.5",
        b"nan",
        b"true",
        b"null",
        b'"1"',
    ),
)

_NUMBER: Final = re.compile(rb"-?\d+(\.\d*)?")
_WORD: Final = re.compile(rb"\w+|\W")

TARGETS: Final = {  # name -> module and function
    **dict.fromkeys(
        ("npz", "npz_member", "npy", "exr", "png", "jpeg", "list_json", "list_txt", "metadata", "camera_set"), "fuzz_raw"
    ),
    **dict.fromkeys(("campose", "frustum"), "fuzz_raw"),
    **dict.fromkeys(("obj", "gltf", "log_labels", "log_names", "usd_text", "usd_crate"), "fuzz_scenes"),
    **dict.fromkeys(("spec", "schedule", "job_spec", "label_map", "place", "sql"), "fuzz_texts"),
    **dict.fromkeys(("manifest", "receipt", "array_document", "shard"), "fuzz_stores"),
    **dict.fromkeys(("sample_row", "store_table", "metric_table"), "fuzz_tables"),
    **dict.fromkeys(("prediction", "prediction_view"), "fuzz_predictions"),
    **{"view_request": "fuzz_viewer", "job_request": "fuzz_jobs"},
}


def open_target(name: str, folder: Path) -> "FuzzTarget":
    """A target that reads in a folder."""
    make = import_module(f"tests.faults.{TARGETS[name]}").TARGETS[name]
    made: FuzzTarget = make(folder)
    return made


def kept(name: str) -> list[Path]:
    """The kept inputs of a target."""
    return sorted((CORPUS / name).glob("*"))


class Tally:
    """What became of the inputs of one target; defects are told once each, and their inputs written down."""

    def __init__(self, target: "FuzzTarget", fence: "Fence", found: Path) -> None:
        self.target, self._fence, self._found = target, fence, found
        self.outcomes: Counter[str] = Counter()
        self.slowest_s = 0.0
        self.defects: dict[str, dict[str, str]] = {}

    def take(self, data: bytes) -> None:
        """Try an input."""
        from tests.faults.fuzz_target import attempt, signature

        began = time.monotonic()
        try:
            self.outcomes[attempt(self.target, self._fence, data)] += 1
        except Exception as error:
            self.outcomes["defect"] += 1
            sign = signature(error)
            if sign in self.defects or len(self.defects) >= MOST_DEFECTS:
                return
            path = self._found / f"defect-{hashlib.sha256(data).hexdigest()[:12]}"
            path.write_bytes(data)
            told = "".join(traceback.format_exception(error))[-1500:]
            self.defects[sign] = {"what": f"{sign}: {str(error)[:200]}", "file": str(path), "trace": told}
        finally:
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def report(self) -> dict[str, Any]:
        """As JSON takes it."""
        cost = {"slowest_s": round(self.slowest_s, 3), "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}
        return {"target": self.target.name, "outcomes": dict(self.outcomes), **cost, "defects": list(self.defects.values())}


def fresh(target: "FuzzTarget", seeds: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Damaged inputs, without coverage to guide them; the same arguments make the same ones."""
    rng = random.Random(f"{target.name} {seed}")
    for _ in range(count):
        yield _damaged(target, rng.choice(seeds), rng)[: 2 * target.longest_byte]


def _damaged(target: "FuzzTarget", data: bytes, rng: random.Random) -> bytes:
    """An input with another number, a word more or in place of one of its own, or damaged blindly."""
    from tests.faults.fuzzer import damage

    way = rng.random()
    places = list(_NUMBER.finditer(data)) if way < 0.35 else list(_WORD.finditer(data)) if way < 0.7 and target.words else []
    if not places:
        return damage(data, rng)
    place = rng.choice(places)
    stop = place.end() if rng.random() < 0.8 else place.start()
    return data[: place.start()] + rng.choice(NUMBERS if way < 0.35 else target.words) + data[stop:]


def run_light(name: str, folder: Path, seed: int) -> dict[str, Any]:
    """The kept corpus, and fresh inputs without atheris."""
    target, tally = _open(name, folder, folder)
    signal.signal(signal.SIGALRM, _time_is_up)
    inputs = [*target.seeds, *(path.read_bytes() for path in kept(name))]
    started = time.process_time()
    for data in (*inputs, *fresh(target, inputs, target.light, seed)):
        signal.alarm(SECONDS_PER_INPUT)
        tally.take(data)
        signal.alarm(0)
    cpu_s = round(time.process_time() - started, 2)
    return {**tally.report(), "executions": tally.outcomes.total(), "kept": len(kept(name)), "cpu_s": cpu_s}


def _time_is_up(number: int, frame: object) -> None:
    raise TimeoutError(f"no answer within {SECONDS_PER_INPUT} s")


def _open(name: str, folder: Path, found: Path) -> tuple["FuzzTarget", Tally]:
    from tests.faults.fuzz_target import Fence

    here = folder / name
    here.mkdir(parents=True)
    os.chdir(here)  # a name that is no path leads nowhere else
    target = open_target(name, here)
    tally = Tally(target, Fence(here / target.inside), found)
    for data in target.seeds[:1]:
        target.read(data)  # a seed that is refused makes a blind target
    return target, tally


def inside(name: str, folder: Path, arguments: Sequence[str]) -> None:
    """The process that fuzzes: libFuzzer takes it over and ends it."""
    import atheris

    with atheris.instrument_imports(include=["scenemill"]):
        from tests.faults import fuzzer  # noqa: F401 - while what it imports is instrumented

        target, tally = _open(name, folder, folder)
    seeds = folder / "seeds"
    seeds.mkdir(exist_ok=True)
    for data in (*target.seeds, *(path.read_bytes() for path in kept(name))):
        (seeds / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    told = folder / "tally.json"

    def one(data: bytes) -> None:
        before = len(tally.defects)
        tally.take(data)
        if len(tally.defects) > before or not tally.outcomes.total() % 100:
            told.write_text(json.dumps(tally.report()))

    words = folder / "words.txt"
    quoted = ("".join(map("\\x{:02x}".format, word)) for word in target.words if len(word) < 64)
    words.write_text("".join(f'"{word}"\n' for word in quoted))
    given = [f"-dict={words}"] if target.words else []

    def mutate(data: bytes, most_byte: int, seed: int) -> bytes:
        rng = random.Random(seed)
        return bytes(atheris.Mutate(data, most_byte)) if rng.random() < 0.6 else _damaged(target, data, rng)[:most_byte]

    given += ["-mutate_depth=2", f"-max_len={target.longest_byte}", "-len_control=0", str(folder / "corpus"), str(seeds)]
    atheris.Setup([sys.argv[0], *arguments, *given], one, custom_mutator=mutate)
    atheris.Fuzz()


def run_guided(name: str, folder: Path, runs: int, seconds: int, seed: int) -> dict[str, Any]:
    """Fuzz a target until it has had its executions or its time, from where it was after whatever ended the process."""
    (folder / "corpus").mkdir(parents=True)
    total: dict[str, Any] = {"target": name, "executions": 0, "coverage": 0, "starts": 0, "outcomes": Counter(), "defects": []}
    total |= {"slowest_s": 0.0, "peak_mb": 0}
    started = time.monotonic()
    while total["starts"] < MOST_STARTS and (runs <= 0 or total["executions"] < runs):
        left = max(1, seconds - int(time.monotonic() - started)) if seconds else 0
        if seconds and time.monotonic() - started >= seconds:
            break
        _start(name, folder, runs - total["executions"], left, seed + total["starts"], total)
        total["starts"] += 1
    unique = {one["what"].split(":")[0]: one for one in total["defects"]}
    return {
        **total,
        "outcomes": dict(total["outcomes"]),
        "defects": list(unique.values()),
        "wall_s": round(time.monotonic() - started),
    }


def _start(name: str, folder: Path, runs: int, seconds: int, seed: int, total: dict[str, Any]) -> None:
    arguments = [
        f"-runs={min(runs, RUNS_OF_A_START) if runs > 0 else RUNS_OF_A_START}",
        f"-seed={seed + 1}",
        f"-timeout={SECONDS_PER_INPUT}",
        "-print_final_stats=1",
    ]
    arguments += [f"-max_total_time={seconds}"] if seconds else []
    arguments += [f"-rss_limit_mb={MEMORY_MB}", f"-malloc_limit_mb={MEMORY_MB}", f"-artifact_prefix={folder}/native-"]
    here = folder / f"start-{total['starts']}"
    command = [sys.executable, str(HERE), "--inside", str(here), "--target", name, "--", *arguments]
    here.mkdir()
    (here / "corpus").symlink_to(folder / "corpus")
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    counted = re.findall(r"stat::number_of_executed_units:\s+(\d+)|^#(\d+)\s", done.stderr, re.MULTILINE)
    total["executions"] += max((int(a or b) for a, b in counted), default=0)
    total["coverage"] = max([total["coverage"], *map(int, re.findall(r"\bcov: (\d+)", done.stderr))])
    told = json.loads((here / "tally.json").read_text()) if (here / "tally.json").exists() else {"outcomes": {}, "defects": []}
    total["outcomes"].update(told["outcomes"])
    for cost in ("slowest_s", "peak_mb"):
        total[cost] = max(total[cost], told.get(cost, 0))
    total["defects"] += told["defects"]
    for path in sorted(folder.glob("native-*")):
        kept_as = path.rename(folder / f"defect-{path.name}")
        last = done.stderr[-1500:]
        total["defects"].append(
            {"what": f"{path.name.split('-')[1]} of the process {path.name}: ", "file": str(kept_as), "trace": last}
        )
    if not counted:
        total["defects"].append({"what": f"did not start ({done.returncode}): ", "file": "", "trace": done.stderr[-1500:]})
        total["starts"] = MOST_STARTS


def keep(name: str, corpus: Path, folder: Path) -> int:
    """Keep the smallest inputs that together run every line of this project that all of them run; how many."""
    target, _ = _open(name, folder, folder)
    candidates = {path.read_bytes() for path in (*corpus.glob("*"), *kept(name)) if path.is_file()} - set(target.seeds)
    reached = {data: lines_of(target, data) for data in sorted(candidates, key=lambda one: (len(one), one))}
    known = set().union(*(lines_of(target, data) for data in target.seeds))
    chosen: list[bytes] = []
    while len(chosen) < MOST_KEPT and (best := max(reached, key=lambda one: len(reached[one] - known), default=None)) is not None:
        if not reached[best] - known:
            break
        known |= reached.pop(best)
        chosen.append(best)
    home = CORPUS / name
    home.mkdir(parents=True, exist_ok=True)
    for path in home.glob("*"):
        if not path.name.startswith("defect-"):
            path.unlink()
    for data in chosen:
        (home / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
    return len(chosen)


def lines_of(target: "FuzzTarget", data: bytes) -> set[tuple[str, int]]:
    """Lines of this project that reading an input runs."""
    home, lines = str(HERE.parents[2]), set[tuple[str, int]]()

    def trace(frame: Any, event: str, argument: object) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(home) or "/.venv/" in name or "/tests/" in name:
            return None
        lines.add((name, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        with suppress(Exception):  # whatever it ends with, only the lines count here: defects are told when it is tried
            target.read(data)
    finally:
        sys.settrace(None)
    return lines


def _chosen(wanted: str) -> list[str]:
    return list(TARGETS) if wanted == "all" else wanted.split(",")


def _each(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    for name in _chosen(arguments.target):
        if arguments.light:
            yield run_light(name, folder, arguments.seed)
            continue
        report = run_guided(name, folder / name, arguments.runs, arguments.seconds, arguments.seed)
        if arguments.keep:
            report["kept"] = _keep_apart(name, folder / name / "corpus")
        for one in report["defects"]:
            _save(name, one, arguments.defects)
        yield report


def _keep_apart(name: str, corpus: Path) -> int:
    """``keep``, in a process of its own, whose modules nothing else has hold of."""
    done = subprocess.run(
        [sys.executable, str(HERE), "--target", name, "--keep-from", str(corpus)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def _save(name: str, defect: dict[str, str], where: Path | None) -> None:
    """Copy the input that showed a defect to where it outlives this process."""
    if where is not None and defect["file"]:
        path = where / f"{name}-{Path(defect['file']).name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Path(defect["file"]).read_bytes())
        defect["file"] = str(path)


def _replay(name: str, paths: Iterable[Path], folder: Path) -> int:
    _, tally = _open(name, folder, folder)
    for path in paths:
        tally.take(path.read_bytes())
    print(json.dumps(tally.report(), indent=1).replace("\\n", "\n"))
    return 1 if tally.defects else 0


def main() -> int:
    """The command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="all", help=f"all, or some of {', '.join(TARGETS)}, with commas between")
    parser.add_argument("--runs", type=int, default=0, help="executions of each target")
    parser.add_argument("--seconds", type=int, default=0, help="of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--light", action="store_true", help="the kept corpus and a few fresh inputs, without atheris")
    parser.add_argument("--keep", action="store_true", help="keep what reached new lines")
    parser.add_argument("--defects", type=Path, help="folder for the inputs that show a defect")
    parser.add_argument("--replay", type=Path, nargs="+", help="inputs to try")
    for hidden in ("--inside", "--keep-from"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        inside(arguments.target, arguments.inside, arguments.rest)
    if not (arguments.light or arguments.replay or arguments.keep_from) and (util.find_spec("atheris") is None):
        parser.error("atheris is not installed; take --light, or install the extra dev on Linux")
    if not (arguments.light or arguments.replay or arguments.keep_from or arguments.runs or arguments.seconds):
        parser.error("give --runs or --seconds")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.replay:
            return _replay(arguments.target, arguments.replay, Path(folder))
        if arguments.keep_from:
            print(keep(arguments.target, arguments.keep_from, Path(folder)))
            return 0
        bad = 0
        for report in _each(arguments, Path(folder)):
            print(json.dumps(report), flush=True)
            bad += len(report["defects"])
    return 1 if bad else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
