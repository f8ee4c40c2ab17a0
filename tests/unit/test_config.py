"""Settings are refused where they are made, with a word on what to do."""

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from scenemill.schemas.config import PRECISIONS, IngestConfig, parse_max_rejected
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fields import ROOM_SOURCES


def config(**changed: Any) -> IngestConfig:
    return IngestConfig(**{"source": "front3d", "input": Path("raw"), **changed})


@pytest.mark.parametrize("source", ROOM_SOURCES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_source_and_precision_is_accepted(source: str, precision: str) -> None:
    made = config(source=source, precision=precision)
    assert (made.source, made.precision) == (source, precision)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"source": "scannet"}, "'scannet' is not known; use one of front3d"),
        ({"source": ""}, "use one of front3d"),
        ({"precision": "float64"}, "'float64' is not known; use one of float32, float16, fixed16"),
        ({"limit": 0}, "limit is 0; it must be at least 1"),
        ({"limit": -1}, "limit is -1"),
        ({"workers": 0}, "workers is 0; it must be at least 1"),
        ({"samples_per_part": 0}, "samples_per_part is 0; it must be at least 1"),
        ({"samples_per_part": 4097}, "samples_per_part is 4097; it must be at most 4096"),
    ],
)
def test_a_value_out_of_range_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(**changed)


def test_the_ends_of_the_ranges_are_accepted() -> None:
    assert config(limit=1, workers=1, samples_per_part=1).samples_per_part == 1
    assert config(limit=None, samples_per_part=4096).limit is None


def test_a_config_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        config().limit = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("allowed", "listed", "expected"),
    [(None, 7, 7), (0, 7, 0), (3, 7, 3), (0.0, 7, 0), (0.5, 7, 3), (1.0, 7, 7), (0.01, 99, 0), (0.01, 100, 1), (0.25, 4, 1)],
)
def test_a_share_or_a_count_says_how_many_may_be_rejected(allowed: float | None, listed: int, expected: int) -> None:
    assert config(max_rejected=allowed).rejected_allowed(listed) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1%", 0.01), ("100%", 1.0), ("0%", 0.0), ("0.5%", 0.005), (" 2 % ", 0.02), ("20", 20), ("0", 0), (" 7 ", 7)],
)
def test_shares_and_counts_are_told_apart(text: str, expected: float) -> None:
    parsed = parse_max_rejected(text)
    assert parsed == expected and type(parsed) is type(expected)


@pytest.mark.parametrize("text", ["", "%", "-1", "-1%", "101%", "1.5", "1e3", "one", "5 percent", "nan%", "%5", "1,5%", "5%%"])
def test_what_is_neither_a_share_nor_a_count_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="give a share such as 1%"):
        parse_max_rejected(text)
