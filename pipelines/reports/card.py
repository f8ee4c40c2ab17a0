"""The dataset card of a store: all it says, from the store alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from scenemill.pipelines.reports.human import store_json, summarize
from scenemill.schemas.fields import FRONT3D_FORM, VIEWS, Field
from scenemill.schemas.labels import VOID, Label
from scenemill.transforms.publish import write_whole
from scenemill.transforms.store import Store

_LICENCES: Final = {
    "front3d": "The raw data of 3D-FRONT are given out by Alibaba under terms of their own.",
    "matterport": "The raw data of Matterport3D are given out under the terms of use that Matterport has for academic work.",
}
_EVERYWHERE: Final = (
    "A store holds the arrays of its raw files, so it may be used and passed on as they may, no further. It does not know whether its "
    'samples are of the published data or were made up by "scenemill synth".'
)


@dataclass(frozen=True)
class ClassCount:
    """How often a class occurs.

    Attributes:
        label: id, name, colour, thing or stuff.
        views_2d, views_3d: samples whose image or volume shows it.
    """

    label: Label
    views_2d: int
    views_3d: int


@dataclass(frozen=True)
class Card:
    """What a card says of a store.

    Attributes:
        facts: as ``scenemill show STORE --json`` has them.
        scenes: number of them.
        fields: the field table's rows, each with the number of samples that have it.
        classes: of the labels; () where the source has none.
        instances_2d: number of instances in the image of each sample, 0 not counted.
        depth_m: (least, greatest) valid depth of each sample; in units of the scene for views of objects.
        observed: share of the voxels that each sample's view has observed; () without volumes.
        findings: a row for each check, field and severity: samples, and an example.
        checks, conversion, format: versions of what judged, converted and wrote.
        orientation: of volumes and images, in words.
        files: kinds of raw files: how many, and bytes.
        tables: name -> path of the Parquet files below the store.
        licence: what is known of it, in words.
    """

    facts: Mapping[str, Any]
    scenes: int
    fields: tuple[tuple[Field, int], ...]
    classes: tuple[ClassCount, ...]
    instances_2d: tuple[int, ...]
    depth_m: tuple[tuple[float, float], ...]
    observed: tuple[float, ...]
    findings: tuple[Mapping[str, Any], ...]
    checks: str
    conversion: str
    format: str
    orientation: str
    files: Mapping[str, tuple[int, int]]
    tables: Mapping[str, str]
    licence: str

    @property
    def length_unit(self) -> str:
        """Of depths."""
        return "scene unit" if self.facts["source"] == VIEWS else "m"

    def to_json(self) -> dict[str, Any]:
        """As one document, the values of single samples left out: the samples table has them."""
        told = asdict(self)
        for name in ("instances_2d", "depth_m", "observed"):
            del told[name]
        return told


def card_of(store: Store) -> Card:
    """What a store's manifest, tables and field table say.

    Raises:
        Corrupt: a table is damaged.
    """
    rows = store.samples.select(
        ["scene", "fields", "classes_2d", "classes_3d", "instances_2d", "depth_min_m", "depth_max_m", "voxels_observed", "files"]
    ).to_pylist()
    held = Counter(name for row in rows for name in row["fields"])
    voxels = store.layout.grid**3
    return Card(
        facts=store_json(store),
        scenes=len({row["scene"] for row in rows}),
        fields=tuple((field, held[field.name]) for field in store.layout.fields),
        classes=_count_classes(store.layout.labels, rows),
        instances_2d=tuple(sum(instance > 0 for instance in row["instances_2d"]) for row in rows),
        depth_m=tuple((row["depth_min_m"], row["depth_max_m"]) for row in rows if row["depth_max_m"] > 0),
        observed=tuple(row["voxels_observed"] / voxels for row in rows) if voxels else (),
        findings=tuple(summarize(store.findings)),
        checks=str(store.manifest["checks"]),
        conversion=store.manifest["conversion"],
        format=store.manifest["format"],
        orientation=store.manifest["orientation"],
        files=_count_files(rows),
        tables={name: table["path"] for name, table in store.manifest["tables"].items()},
        licence=" ".join([*_licence_of(store.layout.source), _EVERYWHERE]),
    )


def _count_classes(labels: Sequence[Label], rows: Sequence[Mapping[str, Any]]) -> tuple[ClassCount, ...]:
    counts = [Counter(number for row in rows for number in row[column]) for column in ("classes_2d", "classes_3d")]
    return tuple(ClassCount(label, counts[0][label.id], counts[1][label.id]) for label in labels if label.id != VOID)


def _count_files(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for row in rows:
        for file in row["files"]:
            counts[file["kind"]] += 1
            sizes[file["kind"]] += file["size_byte"]
    return {kind: (counts[kind], sizes[kind]) for kind in counts}


def _licence_of(source: str) -> list[str]:
    form = "front3d" if source in FRONT3D_FORM[:1] else source
    return [_LICENCES[form]] if form in _LICENCES else ["The raw data have a licence of their own."]


def write_card(card: Card, path: Path) -> list[Path]:
    """Write a card as Markdown, and its plots as PNG files beside it, each whole or not at all.

    Returns:
        The files, the card last: it names the others.
    """
    from scenemill.pipelines.reports.card_charts import plots_of, to_png
    from scenemill.pipelines.reports.card_text import to_markdown

    plots = {f"{path.stem}-{name}.png": plot for name, plot in plots_of(card).items()}
    for name, plot in plots.items():
        write_whole(path.with_name(name), to_png(plot))
    write_whole(path, to_markdown(card, {name: plot.alt for name, plot in plots.items()}).encode())
    return [*(path.with_name(name) for name in plots), path]
