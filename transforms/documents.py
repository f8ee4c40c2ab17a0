"""What a manifest and a receipt must say to be read at all: anyone may have written them, with checksums that are right.

Paths are plain ones, so that none leads out of the store; sizes are within what a store may have.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from scenemill.schemas.config import PRECISIONS

_ID: Final = re.compile(r"[0-9a-f]{16}")
_SUM: Final = re.compile(r"[0-9a-f]{64}")
_STEP: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_TABLES: Final = ("samples", "findings")
_LARGEST_GRID: Final = 512  # voxels a side, as of sources of one's own
_LARGEST_PIXEL: Final = 1 << 15  # as of cameras
_MOST: Final = 1 << 31  # of anything that is counted
_MOST_ROWS: Final = 1 << 16  # of a part
_MOST_BYTE: Final = 1 << 62


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Refuse a manifest whose members are not of the form that readers take for granted.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: what is not as it must be.
    """
    _check_layout(manifest["layout"])
    parts = manifest["parts"]
    for part in parts:
        _check_part(part, manifest["layout"]["samples_per_part"])
    for name in ("id", "slot"):
        _expect(len({part[name] for part in parts}) == len(parts), f"{name} of parts", "not of one part each")
    _expect(set(manifest["tables"]).issuperset(_TABLES), "tables", list(manifest["tables"]))
    for name, held in manifest["tables"].items():
        _check_file(held, f"tables.{name}")
        _expect(_is_below(held["path"]), f"tables.{name}.path", held["path"])
        _expect(_is_count(held["rows"]), f"tables.{name}.rows", held["rows"])
    _expect(manifest["parent"] is None or _matches(_ID, manifest["parent"]), "parent", manifest["parent"])
    for name in ("slots", "stored", "rejected"):
        _expect(_is_count(manifest[name]), name, manifest[name])
    for name in ("checks", "conversion", "orientation"):
        _expect(isinstance(manifest[name], str), name, manifest[name])
    for name in ("error_max_voxel", "voxel_m"):
        _expect(manifest[name] is None or type(manifest[name]) in (int, float), name, manifest[name])
    for label in manifest["labels"]:
        _expect(_is_count(label["id"]) and isinstance(label["name"], str), "a label", label)


def check_receipt(receipt: Mapping[str, Any], part: str) -> None:
    """Refuse a receipt whose members are not of the form that readers take for granted.

    Args:
        receipt: the document.
        part: id of the part whose it shall be.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: what is not as it must be.
    """
    _expect(receipt["id"] == part, "id", receipt["id"])
    for name in ("slot", "planned", "stored", "rejected"):
        _expect(_is_count(receipt[name]), name, receipt[name])
    for name in ("raw_byte", "stored_byte"):
        _expect(_is_count(receipt[name], _MOST_BYTE), name, receipt[name])
    _expect(type(receipt["error_max_voxel"]) in (int, float), "error_max_voxel", receipt["error_max_voxel"])
    for key, digest in receipt["samples"]:
        _expect(isinstance(key, str) and isinstance(digest, str), "a sample", (key, digest))
    for path, held in receipt["files"].items():
        _expect(_is_below(path), "a file", path)
        _check_file(held, f"files.{path}")


def _check_layout(layout: Mapping[str, Any]) -> None:
    image, rows = layout["image"], layout["samples_per_part"]
    _expect(isinstance(layout["source"], str), "layout.source", layout["source"])
    _expect(_is_count(layout["grid"], _LARGEST_GRID), "layout.grid", layout["grid"])
    _expect(len(image) == 2 and all(_is_count(side, _LARGEST_PIXEL) and side for side in image), "layout.image", image)
    _expect(_is_count(rows, _MOST_ROWS) and rows > 0, "layout.samples_per_part", rows)
    _expect(layout["precision"] in PRECISIONS, "layout.precision", layout["precision"])
    _expect(layout["frustum"] == "" or _matches(_SUM, layout["frustum"]), "layout.frustum", layout["frustum"])


def _check_part(part: Mapping[str, Any], most: int) -> None:
    _expect(_matches(_ID, part["id"]), "id of a part", part["id"])
    _expect(_is_count(part["slot"]), "slot of a part", part["slot"])
    _expect(_is_count(part["planned"], most), "planned of a part", part["planned"])
    _expect(_is_count(part["stored"], part["planned"]), "stored of a part", part["stored"])
    _expect(_matches(_SUM, part["receipt_sha256"]), "receipt_sha256 of a part", part["receipt_sha256"])


def _check_file(held: Mapping[str, Any], where: str) -> None:
    _expect(_matches(_SUM, held["sha256"]), f"{where}.sha256", held["sha256"])
    _expect(_is_count(held["size_byte"], _MOST_BYTE), f"{where}.size_byte", held["size_byte"])


def _is_below(path: object) -> bool:
    """Whether a path is one below a store: relative, of plain names, and nowhere up."""
    return isinstance(path, str) and all(_matches(_STEP, step) for step in path.split("/"))


def _matches(pattern: re.Pattern[str], text: object) -> bool:
    return isinstance(text, str) and pattern.fullmatch(text) is not None


def _is_count(number: object, most: int = _MOST) -> bool:
    return type(number) is int and 0 <= number <= most


def _expect(holds: bool, what: str, found: object) -> None:
    if not holds:
        raise ValueError(f"{what}: {ascii(found)[:80]}")
