"""Places in object stores: what is read, what a condition protects, what faults do, and what messages keep to themselves."""

import hashlib
import multiprocessing
import os
import pickle
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'scenemill[cloud]'")
pytest.importorskip("moto", reason="moto is not installed: pip install 'moto[server]'")

from scenemill.schemas.errors import ConfigError, Conflict, TransientError
from scenemill.schemas.places import Remote
from scenemill.transforms import object_clients
from scenemill.transforms.object_slots import claim_slots, plan_free
from scenemill.transforms.objects import ObjectPath, ObjectRanges, place_of
from scenemill.transforms.parts import PartPlan
from scenemill.transforms.publish import lengthen
from scenemill.transforms.ranges import RemoteRanges
from tests.unit.object_services import SECRET, Fault, Proxy, proxy, use, used_by_proxy


@pytest.fixture(params=["s3", "gs"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def net(services: dict[str, str], scheme: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with used_by_proxy(monkeypatch, services[scheme]) as between:
        yield between


@pytest.fixture
def root(net: Proxy, scheme: str) -> Remote:
    return remote(f"{scheme}://mill/{uuid4().hex}")


def remote(uri: str) -> Remote:
    place = place_of(uri)
    assert isinstance(place, Remote)
    return place


def test_uris_name_objects_and_everything_else_is_a_path() -> None:
    assert place_of("s3://mill/a/b.json") == ObjectPath("s3", "mill", "a/b.json")
    assert str(place_of("gs://mill")) == "gs://mill/"
    assert place_of("data/store") == Path("data/store")
    assert place_of(Path("x")) == Path("x")
    assert place_of(Path("s3://mill/a")) == ObjectPath("s3", "mill", "a")
    below = place_of("s3://mill/") / "a/b.tar.gz"
    assert (str(below), below.name, below.stem, below.suffix) == ("s3://mill/a/b.tar.gz", "b.tar.gz", "b.tar", ".gz")
    assert str(below.parent) == "s3://mill/a"
    assert pickle.loads(pickle.dumps(below)) == below


@pytest.mark.parametrize(
    "uri",
    ["http://mill/a", "s3://", "s3://UPPER/a", "s3://mill/../a", "s3://mill/a/../../b", "s3://mill/a//b", "s3://mill/./a"]
    + [f"s3://mill/a{odd}b" for odd in '\0\n\x7f\\%#?*[]{}|^`<>"']
    + ["s3://mill/" + "k" * 1025, "file:///etc/passwd", "s3://user:secret@mill/a"],
)
def test_odd_places_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError):
        place_of(uri)


@given(st.text(max_size=20))
def test_no_text_leads_out_of_a_prefix(text: str) -> None:
    try:
        below = place_of("s3://mill/inside") / text
    except ConfigError:
        return
    assert str(below).startswith("s3://mill/inside/")
    assert not {"", ".", ".."} & set(str(below).removeprefix("s3://mill/").split("/"))


def test_what_was_written_is_read_listed_and_summed(root: Remote) -> None:
    (root / "a/1.json").create(b"one")
    (root / "a/2.json").create(b"two!")
    (root / "a/b/3.json").create(b"")
    (root / "ab").create(b"beside")
    assert (root / "a/2.json").read_bytes() == b"two!"
    assert (root / "a/2.json").stat().st_size == 4
    assert (root / "a/2.json").checksum() == hashlib.sha256(b"two!").hexdigest()
    assert sorted(str(path).removeprefix(f"{root}/") for path in (root / "a").iterdir()) == ["a/1.json", "a/2.json", "a/b"]
    assert [path.name for path in sorted((root / "a").glob("*.json"))] == ["1.json", "2.json"]
    assert [str(path) for path in root.glob("*/b/*")] == [f"{root}/a/b/3.json"]
    assert (root / "a").is_dir() and not (root / "a").is_file()
    assert (root / "ab").is_file() and not (root / "ab").is_dir()
    assert not (root / "nothing").exists() and (root / "a").exists()
    assert {path.name: (path.is_dir(), path.is_file()) for path in (root / "a").iterdir()} == {
        "1.json": (False, True),
        "2.json": (False, True),
        "b": (True, False),
    }
    (root / "ab").unlink()
    (root / "ab").unlink()
    with pytest.raises(FileNotFoundError, match="no such object"):
        (root / "ab").read_bytes()


def test_folders_that_consoles_make_and_odd_names_do_no_harm(root: Remote, net: Proxy) -> None:
    (root / "a/b").create(b"1")
    for odd in ("a/", "a/c/", "a/odd%23name%25", "a/%C3%A4"):
        where = f"{net.url}/mill/{root.name}/{odd}"
        with urlopen(Request(where, data=b"", method="PUT", headers={"Content-Length": "0"}), timeout=30):
            pass
    found = {path.name: path.is_dir() for path in (root / "a").iterdir()}
    assert {name: found[name] for name in ("b", "c", "ä")} == {"b": False, "c": True, "ä": False}
    assert len(found) == 4
    assert all(pickle.loads(pickle.dumps(path)).is_dir() == path.is_dir() for path in (root / "a").iterdir())
    assert [path.read_bytes() for path in (root / "a").glob("b")] == [b"1"]


def test_more_objects_than_one_page_are_listed(root: Remote) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: (root / f"many/{number:04}").create(b"."), range(1005)))
    assert [path.name for path in (root / "many").glob("*")] == [f"{number:04}" for number in range(1005)]
    assert sum(1 for _ in root.glob("many/*")) == 1005


def test_a_tag_changes_with_the_bytes_and_not_without(root: Remote) -> None:
    (root / "a").swap(b"1", None)
    before = (root / "a").stat()
    assert (root / "a").stat() == before
    (root / "a").swap(b"2", b"1")
    assert (root / "a").stat().tag != before.tag


def test_creating_never_replaces_and_equal_bytes_are_a_success(root: Remote, tmp_path: Path) -> None:
    (root / "a").create(b"mine")
    (root / "a").create(b"mine")
    with pytest.raises(Conflict, match="other bytes"):
        (root / "a").create(b"yours")
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 4096)
    (root / "b").create(file)
    (root / "b").create(file)
    assert (root / "b").read_bytes() == file.read_bytes()
    (tmp_path / "empty").touch()
    (root / "c").create(tmp_path / "empty")
    assert (root / "c").read_bytes() == b""


def test_a_swap_needs_what_was_seen(root: Remote) -> None:
    path = root / "zarr.json"
    with pytest.raises(Conflict):
        path.swap(b"2", b"1")
    path.swap(b"1", None)
    with pytest.raises(Conflict):
        path.swap(b"2", None)
    path.swap(b"2", b"1")
    path.swap(b"2", b"1")  # tried again
    with pytest.raises(Conflict):
        path.swap(b"3", b"1")
    assert path.read_bytes() == b"2"


def test_of_racing_creators_and_swappers_one_wins(root: Remote) -> None:
    def won(act: str, path: Remote, data: bytes) -> bytes | None:
        try:
            path.create(data) if act == "create" else path.swap(data, b"0")
        except Conflict:
            return None
        return data

    with ThreadPoolExecutor(8) as threads:
        for turn in range(4):
            for act in ("create", "swap"):
                path = root / f"{act}{turn}"
                if act == "swap":
                    path.create(b"0")
                each = [f"writer {number}".encode() for number in range(8)]
                winners = [data for data in threads.map(lambda data: won(act, path, data), each) if data]  # noqa: B023
                assert len(winners) == 1
                assert path.read_bytes() == winners[0]


def test_a_writer_between_reading_and_writing_is_noticed(root: Remote, net: Proxy) -> None:
    path = root / "zarr.json"
    path.create(b"1")

    def intrude() -> None:
        path.swap(b"other", b"1")

    net.faults.append(Fault("PUT", "zarr.json", "slow down", before=intrude))
    with pytest.raises(Conflict):
        path.swap(b"2", b"1")
    assert path.read_bytes() == b"other"


@pytest.mark.parametrize("kind", ["slow down", "cut", "lose answer"])
@pytest.mark.parametrize("act", ["create", "swap"])
def test_a_write_outlives_faults(root: Remote, net: Proxy, kind: str, act: str, tmp_path: Path) -> None:
    path = root / "a"
    if act == "swap":
        path.create(b"0")
    data = os.urandom(300_000)
    fault = Fault("PUT", path.name, kind, times=2)
    net.faults.append(fault)
    path.create(data) if act == "create" else path.swap(data, b"0")
    assert fault.times == 0 or kind == "lose answer"
    assert path.read_bytes() == data


@pytest.mark.parametrize("kind", ["slow down", "cut", "cut answer"])
def test_a_read_outlives_faults(root: Remote, net: Proxy, kind: str) -> None:
    data = os.urandom(300_000)
    (root / "a").create(data)
    net.faults.append(Fault("GET", "/a", kind, times=2))
    assert (root / "a").read_bytes() == data
    net.faults.append(Fault("GET", "/a", kind, times=2))
    assert (root / "a").checksum() == hashlib.sha256(data).hexdigest()


def test_an_upload_cut_off_leaves_nothing(root: Remote, net: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(object_clients._RETRIES, "max_retries", 1)
    monkeypatch.setattr(object_clients, "_TRIES", 2)
    use(monkeypatch, net.url)
    net.faults.append(Fault("PUT", "/a", "cut", times=1000))
    with pytest.raises(TransientError):
        (root / "a").create(os.urandom(300_000))
    assert not (root / "a").exists()


def test_time_outs_are_tried_again(root: Remote, net: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, net.url, timeout_s=1)
    net.faults.append(Fault("PUT", "/a", "hang"))
    (root / "a").create(b"late")
    net.faults.append(Fault("GET", "/a", "hang"))
    assert (root / "a").read_bytes() == b"late"


def test_ranges_are_those_of_the_bytes(root: Remote, net: Proxy) -> None:
    data = os.urandom(1 << 20)
    (root / "c/0").create(data)
    assert isinstance(root, ObjectPath)
    reader = RemoteRanges(ObjectRanges(root), "")
    before = net.count("GET")
    ranges = [(0, 10), (900_000, 1 << 20), (20, 30), (500_000, 500_001)]
    assert reader.read("c/0", len(data), ranges) == [data[start:end] for start, end in ranges]
    assert net.count("GET") - before == 3
    assert reader.read("c/0", len(data), []) == []
    with pytest.raises(ValueError, match="has 1048576 bytes"):
        reader.read("c/0", 2 << 20, [(0, 2 << 20)])
    with pytest.raises(FileNotFoundError):
        reader.read("c/1", 9, [(0, 9)])
    net.faults += [Fault("GET", "c/0", "slow down"), Fault("GET", "c/0", "cut answer")]
    assert reader.read("c/0", len(data), [(5, 700_000)]) == [data[5:700_000]]


def test_a_missing_bucket_is_told(net: Proxy, scheme: str) -> None:
    for act in (lambda path: path.read_bytes(), lambda path: path.create(b"1"), lambda path: list(path.iterdir())):
        with pytest.raises(ConfigError, match="no such bucket"):
            act(remote(f"{scheme}://nobucket/a"))


@pytest.mark.parametrize("kind", ["slow down", "cut", "hang"])
def test_messages_and_tracebacks_keep_secrets(
    root: Remote, net: Proxy, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(object_clients._RETRIES, "max_retries", 1)
    monkeypatch.setattr(object_clients, "_TRIES", 2)
    use(monkeypatch, net.url, timeout_s=1)
    net.faults.append(Fault("GET", "/a", kind, times=1000))
    with pytest.raises(TransientError, match=r"://mill/\w+/a: .*try again") as caught:
        (root / "a").read_bytes()
    told = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(root)
    assert caught.value.__context__ is None
    for secret in (SECRET, "AKIDOFNOBODY", "Signature"):
        assert secret not in told


def test_credentials_come_from_files_too(services: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, services["s3"])
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with pytest.raises(ConfigError, match="no credentials"):
        remote("s3://mill/a").exists()
    (tmp_path / "credentials").write_text(f"[default]\naws_access_key_id = KEYOFAFILE\naws_secret_access_key = {SECRET}\n")
    with proxy(services["s3"]) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        assert not remote(f"s3://mill/{uuid4().hex}").exists()
        assert between.requests
    object_clients._connect.cache_clear()


def test_a_credentials_file_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, "http://127.0.0.1:1")
    monkeypatch.delenv("GOOGLE_BEARER_TOKEN")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))
    with pytest.raises(ConfigError, match="gcloud's login"):
        remote("gs://mill/a").exists()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with pytest.raises(ConfigError, match="no credentials"):
        remote("s3://mill/a").exists()


def test_arrays_documents_only_ever_get_longer(root: Remote) -> None:
    path = root / "geometry/zarr.json"
    for rows, expected in ((4, 4), (2, 4), (9, 9), (9, 9)):
        lengthen(path, b'{"shape": [%d, 1]}' % rows)
        assert path.read_bytes() == b'{"shape": [%d, 1]}' % expected
    path.swap(b"damaged", path.read_bytes())
    lengthen(path, b'{"shape": [3, 1]}')
    assert path.read_bytes() == b'{"shape": [3, 1]}'


def test_racing_claims_give_a_slot_to_one_part_and_plans_pass_over_it(root: Remote) -> None:
    def plan(mark: str, first: int) -> list[PartPlan]:
        return [PartPlan(f"{mark}{slot}", slot, ()) for slot in range(first, first + 3)]

    claim_slots(root, plan("a", 2))
    claim_slots(root, plan("a", 2))
    with pytest.raises(Conflict, match="slot 4"):
        claim_slots(root, plan("b", 4))
    assert [part.id for part in plan_free(root, 2, partial(plan, "a"))] == ["a2", "a3", "a4"]
    assert [part.id for part in plan_free(root, 0, partial(plan, "b"))] == ["b5", "b6", "b7"]  # claimed above
    assert [part.id for part in plan_free(root, 0, partial(plan, "d"))] == ["d7", "d8", "d9"]
    assert [part.id for part in plan_free(root, 9, partial(plan, "c"))] == ["c9", "c10", "c11"]


def test_a_forked_process_is_told_instead_of_hanging(root: Remote) -> None:
    root.exists()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_touch, args=(root, queue))
    child.start()
    assert "forked" in queue.get(timeout=30)
    child.join()


def _touch(root: Remote, queue: "multiprocessing.Queue[str]") -> None:
    try:
        root.exists()
        queue.put("")
    except ConfigError as error:
        queue.put(str(error))


def test_a_time_limit_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "http://127.0.0.1:1")
    monkeypatch.setenv(object_clients.TIMEOUT, "soon")
    with pytest.raises(ConfigError, match="whole seconds"):
        remote("s3://mill/a").exists()
