"""Pages by day and by night: every colour that a page names is there in both, and drawings follow the page."""

import re
from pathlib import Path

import pytest

from scenemill.pipelines.reports import charts
from scenemill.pipelines.reports.page_frame import framed

STYLE = Path(charts.__file__).parents[1] / "viewer" / "page" / "style.css"
_NIGHT = re.compile(r"@media \(prefers-color-scheme: dark\) \{\s*:root \{(.*?)\}", re.DOTALL)
_DAY = re.compile(r"^:root \{(.*?)\}", re.DOTALL | re.MULTILINE)
_DEFINED = re.compile(r"--([\w-]+): *(#[0-9a-f]{3,6})\b")


def page() -> str:
    drawn = charts.bars("chart", "one class", ["chair"], [[0.5]], "PQ")
    return framed("title", "summary", drawn)


def luminance(color: str) -> float:
    """Relative luminance by WCAG 2.2, of "#rgb" or "#rrggbb"."""
    digits = color[1:] if len(color) == 7 else "".join(2 * sign for sign in color[1:])
    parts = (int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("text", [page(), STYLE.read_text()], ids=["pages", "viewer"])
def test_every_colour_of_a_page_is_there_by_day_and_by_night_and_can_be_read(text: str) -> None:
    day, night = (dict(_DEFINED.findall(found[1])) for found in (_DAY.search(text), _NIGHT.search(text)) if found)
    used = set(re.findall(r"var\(--([\w-]+)", text))
    assert used and used <= set(day) and set(day) == set(night)
    for colors in (day, night):
        for ink in ("ink", "faint", "accent"):
            for ground in ("paper", "ground"):
                low, high = sorted(luminance(colors[name]) for name in (ink, ground))
                assert (high + 0.05) / (low + 0.05) >= 4.5, f"{ink} on {ground}: WCAG asks 4.5 of text"


def test_a_drawing_in_a_page_has_no_ground_or_ink_of_its_own() -> None:
    drawn = charts.bars("chart", "one class", ["chair"], [[0.5]], "PQ")
    assert not re.findall(r": #(?:ffffff|1d2530|5a6572|e3e8ed)\b", drawn)
    assert "var(--ink, #1d2530)" in drawn and charts.COLORS[0] in drawn
