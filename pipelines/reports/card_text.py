"""A dataset card as Markdown, with the front matter that the Hugging Face Hub reads: put into a store's folder as ``README.md``, the
store is a data set of the Hub, its tables the configurations that ``datasets.load_dataset`` loads.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

from scenemill.pipelines.reports.card import Card
from scenemill.pipelines.reports.human import size
from scenemill.pipelines.reports.results import printable
from scenemill.schemas.fields import VIEWS
from scenemill.transforms.folders import split_rank

_SIZES: Final = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"))
_TASKS: Final = {"semantic_2d": "image-segmentation", "depth": "depth-estimation"}


def to_markdown(card: Card, plots: Mapping[str, str] | None = None) -> str:
    """A card as Markdown.

    Args:
        card: what to say.
        plots: PNG file beside it -> what it shows.
    """
    parts = [_heading(card), *sections(card), *(f"![{_text(alt)}]({name})" for name, alt in (plots or {}).items())]
    return f"---\n{yaml.safe_dump(front_matter(card), sort_keys=False)}---\n\n" + "\n\n".join(parts) + "\n"


def front_matter(card: Card) -> dict[str, Any]:
    """What the Hub reads: sizes, tasks, licence, and the tables as configurations."""
    names = {field.name for field, count in card.fields if count}
    return {
        "pretty_name": f"{card.facts['source']} as a scenemill store",
        "license": "other",
        "license_name": "that-of-the-raw-data",
        "size_categories": [next((name for most, name in _SIZES if card.facts["stored"] < most), "n>1M")],
        "task_categories": [task for name, task in _TASKS.items() if name in names],
        "tags": ["3d", "zarr", "scenemill", card.facts["source"]],
        "configs": [
            {"config_name": name, "data_files": path, **({"default": True} if name == "samples" else {})}
            for name, path in sorted(card.tables.items(), reverse=True)
        ],
    }


def _heading(card: Card) -> str:
    facts = card.facts
    splits = ", ".join(f"{count} {name}" for name, count in split_rows(card))
    things = "objects" if facts["source"] == VIEWS else "scenes"
    lines = [
        f"# {_text(facts['source'])}: {facts['stored']} samples of {card.scenes} {things}",
        "",
        f"Version `{facts['version']}` of a scenemill store: {splits or 'no sample'}; {facts['rejected']} rejected.",
    ]
    return "\n".join(lines)


def sections(card: Card) -> list[str]:
    """The body of a card, a part for each heading."""
    titled = {
        "Contents": _contents(card),
        "Fields": _table(("field", "shape", "dtype", "unit", "samples", "meaning"), field_rows(card)),
        "Classes": _table(("id", "class", "kind", "colour", "images", "volumes"), class_rows(card)),
        "Splits": _table(("split", "samples"), split_rows(card)),
        "Checks": _checks(card),
        "Sources": f"{_table(('raw file', 'files', 'bytes'), source_rows(card))}\n\n{_FIELDS_FROM}\n\n"
        + _table(("field", "from"), [(field.name, field.origin) for field, _ in card.fields]),
        "Licence": card.licence,
        "Use": _USE,
    }
    return [f"## {title}\n\n{body}" for title, body in titled.items() if body]


_FIELDS_FROM: Final = "The samples table has path, size and SHA-256 of every raw file. Where the values of each field come from:"
_USE: Final = """```python
import scenemill

store = scenemill.open_store("STORE")
sample = store.read(store.keys[0])
store.to_xarray()
```

Arrays are sharded Zarr v3, which any reader of Zarr opens; tables are Parquet. Rows of arrays are told by the samples table alone."""


def _contents(card: Card) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in content_rows(card))


def content_rows(card: Card) -> list[tuple[str, str]]:
    """What there is, in figures."""
    facts = card.facts
    grid, voxel = facts["grid"], facts["voxel_m"]
    stored = f"{size(facts['stored_byte'])} for {size(facts['raw_byte'])} of raw files, in {facts['parts']} parts"
    rows = [("images", f"{facts['image'][1]} x {facts['image'][0]} pixels")]
    rows += [("volumes", f"{grid}^3 voxels{f' of {voxel} m' if voxel else ''}")] if grid else []
    rows += [("orientation", card.orientation), ("bytes", stored)]
    if grid:
        error = facts["error_max_voxel"]
        rows.append(("distances", facts["precision"] + (f", off by at most {error:.2g} voxel" if error else ", lossless")))
    return [*rows, ("format", f"{card.format}, conversion {card.conversion}")]


def field_rows(card: Card) -> list[tuple[Any, ...]]:
    """Of each field its shape in axes and sizes, dtype, unit, the samples that have it, and its meaning."""
    grid, image = card.facts["grid"], card.facts["image"]
    return [
        (
            field.name,
            " x ".join(f"{axis} {n}" for axis, n in zip(field.axes, field.shape(grid, (image[0], image[1])), strict=True)),
            field.dtype,
            field.unit,
            count,
            field.meaning,
        )
        for field, count in card.fields
    ]


def split_rows(card: Card) -> list[tuple[Any, ...]]:
    """Of each split its samples: train, val, test, then the others by name."""
    return sorted(card.facts["splits"].items(), key=lambda split: split_rank(split[0]))


def class_rows(card: Card) -> list[tuple[Any, ...]]:
    """Of each class its id, name, kind and colour, and the samples whose image and volume show it."""
    return [
        (
            count.label.id,
            count.label.name,
            "thing" if count.label.thing else "stuff",
            "#" + "".join(f"{part:02x}" for part in count.label.color),
            count.views_2d,
            count.views_3d,
        )
        for count in card.classes
    ]


def source_rows(card: Card) -> list[tuple[Any, ...]]:
    """Of each kind of raw file how many there are, and their bytes."""
    return [(kind, count, size(byte)) for kind, (count, byte) in card.files.items()]


def finding_rows(card: Card) -> list[tuple[Any, ...]]:
    """Of each kind of finding how severe it is, the samples that have it, and an example."""
    names = ("severity", "check", "field", "samples", "observed", "expected")
    return [tuple(finding[name] for name in names) for finding in card.findings]


def _checks(card: Card) -> str:
    judged = f"Every sample was judged by checks of version {_text(card.checks)}; a sample with an error is in no array."
    if not card.findings:
        return f"{judged} Nothing was found."
    table = _table(("severity", "check", "field", "samples", "for example", "expected"), finding_rows(card))
    return f"{judged}\n\n{table}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_text(str(cell)) for cell in line)} |" for line in lines)


def _text(text: str) -> str:
    """Text that Markdown shows as it is, in one line of one cell."""
    shown = " ".join(printable(text).split())
    return "".join(f"\\{letter}" if letter in "\\|<>[]`*_" else letter for letter in shown)
