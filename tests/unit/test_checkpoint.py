"""Checkpoints: whole or not at all, never run, encrypted so that every fault has its own words."""

import os
import pickle
import signal
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from scenemill.schemas.errors import ConfigError, Corrupt, SceneMillError
from scenemill.trainers import checkpoint
from scenemill.trainers.checkpoint import (
    PREFIXES,
    checkpoint_name,
    find_resume,
    load_checkpoint,
    point_latest,
    read_torch_file,
    save_checkpoint,
    strip_prefix,
)

SECRET = "correct horse"
WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return bool(isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("mapped", [False, True])
def test_a_round_trip_gives_the_same_weights_optimizer_and_values(tmp_path: Path, mapped: bool) -> None:
    model, optimizer = trained()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5, 5])
    document = {
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
        "epoch": 3,
        "order": {"seed": 1234, "place": (2, 17), "names": ["a", "b"], "share": 0.5, "done": None, "shuffled": True},
    }
    path = tmp_path / "runs" / "one" / "model_epoch_003.pth"
    save_checkpoint(path, document)
    found = load_checkpoint(path, mapped=mapped)
    assert same(document, found)
    assert left_over(path.parent) == [path.name]

    again = trained()[0]
    for parameter in again.parameters():
        nn.init.zeros_(parameter)
    again.load_state_dict(found["state_dict"])
    fresh = torch.optim.AdamW(again.parameters(), lr=0.5)
    fresh.load_state_dict(found["optimizer"])
    batch = torch.randn(5, 3)
    for each, learner in ((model, optimizer), (again, fresh)):
        learner.zero_grad()
        each(batch).square().mean().backward()
        learner.step()
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


def test_the_same_document_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.pth", "b.tlt"):
        save_checkpoint(tmp_path / name, {"state_dict": WEIGHTS})
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.tlt").read_bytes()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.float64(0.5), r"order\.share is a numpy.float64"),
        (np.zeros(2), r"order\.share is a numpy.ndarray"),
        ({"a": [1, Path("x")]}, r"order\.share\.a\[1\] is a pathlib"),
        (nn.Linear(1, 1), r"order\.share is a torch.nn.modules.linear.Linear"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        save_checkpoint(tmp_path / "model.pth", {"order": {"share": value}})
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("name", ["model.pt", "model", "model.pth.zip", "model.safetensors"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    for call in (lambda: save_checkpoint(tmp_path / name, {}), lambda: load_checkpoint(tmp_path / name)):
        with pytest.raises(ConfigError, match=r"ends in \.pth or \.tlt"):
            call()


def test_a_file_of_another_suffix_can_be_read_by_name(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "model.pt")
    assert same(WEIGHTS, read_torch_file(tmp_path / "model.pt", mapped=True))


def test_a_file_in_the_old_format_of_torch_is_read(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for mapped in (False, True):
        assert same(WEIGHTS, load_checkpoint(tmp_path / "old.pth", mapped=mapped))


def test_a_failed_rename_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pth"
    save_checkpoint(path, {"epoch": 1})

    def fail(*_: object) -> None:
        raise OSError(5, "no such luck")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no such luck"):
            save_checkpoint(path, {"epoch": 2})
    assert load_checkpoint(path) == {"epoch": 1}
    assert left_over(tmp_path) == ["model.pth"]


def test_a_process_killed_before_the_rename_leaves_the_old_file_and_the_next_one_tidies_up(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_checkpoint(path, {"epoch": 1})
    script = (
        "import os, signal, pathlib\n"
        "from scenemill.trainers.checkpoint import save_checkpoint\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"save_checkpoint(pathlib.Path({str(path)!r}), {{'epoch': 2}})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(left_over(tmp_path)) == 2
    assert load_checkpoint(path) == {"epoch": 1}
    save_checkpoint(path, {"epoch": 3})
    assert load_checkpoint(path) == {"epoch": 3}
    assert left_over(tmp_path) == ["model.pth"]


def test_the_file_is_on_the_disk_before_it_has_its_name_and_the_name_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    replace, fsync = os.replace, os.fsync

    def noted_replace(source: Path, target: Path) -> None:
        done.append("rename")
        replace(source, target)

    def noted_fsync(handle: int) -> None:
        done.append("sync folder" if Path(f"/proc/self/fd/{handle}").is_dir() else "sync file")
        fsync(handle)

    monkeypatch.setattr(os, "replace", noted_replace)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    save_checkpoint(tmp_path / "model.pth", {"state_dict": WEIGHTS})
    assert done == ["sync file", "rename", "sync folder"]


class Malice:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("how", ["torch", "old torch", "pickle"])
def test_a_file_that_would_run_something_is_refused_and_not_run(tmp_path: Path, how: str) -> None:
    path, mark = tmp_path / "model.pth", tmp_path / "mark"
    document = {"state_dict": WEIGHTS, "epoch": Malice(mark)}
    if how == "pickle":
        path.write_bytes(pickle.dumps({"epoch": Malice(mark)}, protocol=2))
    else:
        torch.save(document, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ConfigError, match=r"refused and not run: .* asks for posix\.mkdir"):
        load_checkpoint(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Malice(mark)))
    assert mark.exists()  # it would have


@pytest.mark.parametrize("held", [np.arange(3), nn.Linear(1, 1), Path("x")])
def test_harmless_objects_are_refused_as_well(tmp_path: Path, held: object) -> None:
    torch.save({"held": held}, tmp_path / "model.pth")
    with pytest.raises(ConfigError, match="beside tensors and plain values"):
        load_checkpoint(tmp_path / "model.pth")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.pth: no such file"):
        load_checkpoint(tmp_path / "none.pth")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_truncated_file_says_so(tmp_path: Path, share: float, mapped: bool) -> None:
    path = tmp_path / "model.pth"
    save_checkpoint(path, {"state_dict": {"weight": torch.zeros(1000)}})
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(Corrupt, match=r"model\.pth: (truncated or damaged|an empty file)"):
        load_checkpoint(path, mapped=mapped)


@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n" + bytes(50), b"hello, this is text\n" * 9, bytes(300), bytes(range(256)) * 9, b"\x80\x04."]
)
def test_garbage_is_called_no_torch_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="not a torch file"):
        load_checkpoint(path)


def test_a_zip_of_something_else_says_so(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(Corrupt, match="truncated or damaged"):
        load_checkpoint(path)


def test_a_file_with_something_else_than_a_dict_says_so(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "model.pth")
    with pytest.raises(ConfigError, match="holds a list"):
        load_checkpoint(tmp_path / "model.pth")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """An encrypted file, and what its passphrase opens: each try of a passphrase takes two seconds."""
    import pyrage

    opened: list[bytes] = []

    class Noted:
        x25519, encrypt_io = pyrage.x25519, staticmethod(pyrage.encrypt_io)

        class passphrase:
            @staticmethod
            def encrypt(plain: bytes, key: str) -> Any:
                opened.append(plain)
                return pyrage.passphrase.encrypt(plain, key)

    path = tmp_path_factory.mktemp("encrypted") / "model.pth"
    document = {"state_dict": {"weight": torch.arange(100_000.0)}, "epoch": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_pyrage", lambda: Noted)
        save_checkpoint(path, document, SECRET)
    return path, opened[0]


@pytest.fixture
def encrypted(written: tuple[Path, bytes]) -> Path:
    return written[0]


@pytest.fixture
def quick(written: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """The right passphrase opens at once."""
    import pyrage

    class Quick:
        DecryptError = pyrage.DecryptError
        x25519, decrypt_io = pyrage.x25519, staticmethod(pyrage.decrypt_io)

        class passphrase:
            @staticmethod
            def decrypt(_: bytes, key: str) -> bytes:
                assert key == SECRET
                return written[1]

    monkeypatch.setattr(checkpoint, "_pyrage", lambda: Quick)


def test_an_encrypted_file_opens_with_its_key_and_shows_nothing_without(encrypted: Path) -> None:
    data = encrypted.read_bytes()
    assert b"state_dict" not in data
    assert b"AGE-SECRET" not in data
    assert torch.arange(1000.0).numpy().tobytes() not in data
    assert left_over(encrypted.parent) == ["model.pth"]
    assert torch.equal(load_checkpoint(encrypted, SECRET, mapped=True)["state_dict"]["weight"], torch.arange(100_000.0))


def test_an_encrypted_file_without_a_key_asks_for_it(encrypted: Path) -> None:
    with pytest.raises(ConfigError, match="encrypted; set encryption_key"):
        load_checkpoint(encrypted)


def test_a_wrong_key_is_called_wrong_and_never_shown(encrypted: Path) -> None:
    with pytest.raises(ConfigError, match="encryption_key is not its passphrase") as raised:
        load_checkpoint(encrypted, "battery staple")
    assert "battery" not in str(raised.value)


@pytest.mark.usefixtures("quick")
def test_altered_or_truncated_ciphertext_is_found_anywhere(encrypted: Path, tmp_path: Path) -> None:
    data, path = encrypted.read_bytes(), tmp_path / "model.pth"
    path.write_bytes(data)
    assert load_checkpoint(path, SECRET)["epoch"] == 4
    end_of_line = data.index(b"\n")
    for place in (40, end_of_line - 5, end_of_line + 30, end_of_line + 200, end_of_line + 600, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(Corrupt, match="truncated or altered"):
            load_checkpoint(path, SECRET)
    for length in (45, end_of_line + 50, end_of_line + 500, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(Corrupt, match="truncated or altered"):
            load_checkpoint(path, SECRET)
    path.write_bytes(data + b"x")
    with pytest.raises(Corrupt, match="truncated or altered"):
        load_checkpoint(path, SECRET)


def test_a_plain_file_needs_no_key_and_ignores_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.pth", {"epoch": 1})
    assert load_checkpoint(tmp_path / "model.pth", SECRET) == {"epoch": 1}


def quick_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyrage

    class Quick:
        x25519, encrypt_io = pyrage.x25519, staticmethod(pyrage.encrypt_io)

        class passphrase:
            @staticmethod
            def encrypt(plain: bytes, _: str) -> bytes:
                return plain[::-1]

    monkeypatch.setattr(checkpoint, "_pyrage", lambda: Quick)


@pytest.mark.parametrize("key", ["", SECRET])
def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pth"
    save_checkpoint(path, {"epoch": 1})
    quick_seal(monkeypatch)
    opened = Path.open

    def full(self: Path, *arguments: Any, **named: Any) -> Any:
        return opened(Path("/dev/full"), "wb") if self.suffix == ".part" else opened(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(path, {"state_dict": {"weight": torch.zeros(1_000_000)}}, key)
    assert load_checkpoint(path) == {"epoch": 1}


def test_a_failure_while_encrypting_ends_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_seal(monkeypatch)

    def fail(*_: object) -> None:
        raise RuntimeError("half way")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="half way"):
        save_checkpoint(tmp_path / "model.pth", {"epoch": 1}, SECRET)
    assert left_over(tmp_path) == []


def test_without_the_library_encryption_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyrage", None)
    with pytest.raises(ConfigError, match="pip install pyrage"):
        save_checkpoint(tmp_path / "model.pth", {}, SECRET)
    assert left_over(tmp_path) == []


def test_names_are_those_of_the_documentation() -> None:
    assert checkpoint_name(0, 5, "epoch") == "model_epoch_000.pth"
    assert checkpoint_name(12, 123456, "step") == "model_epoch_012_step_123456.pth"
    with pytest.raises(ConfigError, match="'minute'"):
        checkpoint_name(0, 0, "minute")


def test_the_latest_link_is_relative_replaced_in_place_and_found_again(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    assert find_resume(None, folder) is None
    for epoch in range(2):
        path = folder / checkpoint_name(epoch, 0, "epoch")
        save_checkpoint(path, {"epoch": epoch})
        link = point_latest(folder, path, "panoptic_recon_3d_model")
        assert link.readlink() == Path(path.name)
    assert left_over(folder) == ["model_epoch_000.pth", "model_epoch_001.pth", "panoptic_recon_3d_model_latest.pth"]
    assert load_checkpoint(link) == {"epoch": 1}
    folder = folder.rename(tmp_path / "moved")
    assert find_resume("", folder) == (folder / "model_epoch_001.pth").resolve()


def test_a_chosen_checkpoint_counts_before_the_latest(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", {})
    point_latest(tmp_path, tmp_path / "a.pth", "model")
    save_checkpoint(tmp_path / "b.tlt", {})
    assert find_resume(str(tmp_path / "b.tlt"), tmp_path) == tmp_path / "b.tlt"
    with pytest.raises(ConfigError, match=r"c\.pth: no such file; correct train\.resume_training_checkpoint_path"):
        find_resume(str(tmp_path / "c.pth"), tmp_path)
    with pytest.raises(ConfigError, match=r"ends in \.pth"):
        find_resume(str(tmp_path / "c.ckpt"), tmp_path)


def test_a_link_to_nowhere_is_an_error_that_names_it(tmp_path: Path) -> None:
    point_latest(tmp_path, tmp_path / "gone.pth", "model")
    with pytest.raises(ConfigError, match=r"model_latest\.pth: points to gone\.pth, which is missing"):
        find_resume(None, tmp_path)


def test_two_networks_in_one_folder_are_told_apart_by_name(tmp_path: Path) -> None:
    for name in ("panoptic_recon_3d_model", "nvpanoptix3d_model"):
        save_checkpoint(tmp_path / f"{name}.pth", {})
        point_latest(tmp_path, tmp_path / f"{name}.pth", name)
    with pytest.raises(ConfigError, match="several to go on from"):
        find_resume(None, tmp_path)
    found = find_resume(None, tmp_path, "nvpanoptix3d_model")
    assert found is not None
    assert found.name == "nvpanoptix3d_model.pth"


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("loss", ["criterion.", "model.criterion.", ""])
def test_every_prefix_is_stripped_and_the_loss_dropped(prefix: str, loss: str) -> None:
    names = ("backbone.aggregator.a", "sem_seg_head.depth_projector.b", "completion.c", "projector.d")
    stored: dict[str, Any] = OrderedDict((prefix + name, name) for name in names)
    if loss and (loss == "criterion." or prefix == "model."):
        stored[f"{loss}empty_weight"] = 0
    assert strip_prefix(stored) == {name: name for name in names}


def test_only_the_front_of_a_name_is_a_prefix() -> None:
    assert strip_prefix({"backbone.model.backbone.a": 1}) == {"backbone.model.backbone.a": 1}
    assert strip_prefix({"model.backbone.model.a": 1, "model.other.a": 2}) == {"backbone.model.a": 1, "other.a": 2}


def test_names_of_another_network_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"found encoder\.conv\.weight"):
        strip_prefix({"encoder.conv.weight": 1})
    with pytest.raises(ConfigError, match="found nothing"):
        strip_prefix({})
    with pytest.raises(ConfigError, match=r"with and without 'model\.'"):
        strip_prefix({"model.backbone.a": 1, "backbone.a": 2})


def test_every_error_is_of_the_tree() -> None:
    assert issubclass(Corrupt, SceneMillError)
    assert issubclass(ConfigError, SceneMillError)
