"""Class ids, names, colours, thing or stuff, for every source; and label maps, which say what a model learns of them.

Source of the twelve categories and their colours: the label lists of Uni-3D and NVIDIA TAO, equal for 3D-Front and Matterport3D.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.settings import refuse, shorten

VOID = 0


@dataclass(frozen=True)
class Label:
    """One semantic class.

    Attributes:
        id: value in the semantic arrays.
        name: what people call it.
        thing: True for countable objects, False for stuff (wall, floor, ceiling) and void.
        color: (red, green, blue), 0..255.
    """

    id: int
    name: str
    thing: bool
    color: tuple[int, int, int]


LABELS: tuple[Label, ...] = (
    Label(0, "void", False, (0, 0, 0)),
    Label(1, "cabinet", True, (220, 20, 60)),
    Label(2, "bed", True, (255, 0, 0)),
    Label(3, "chair", True, (0, 0, 142)),
    Label(4, "sofa", True, (0, 0, 70)),
    Label(5, "table", True, (0, 60, 100)),
    Label(6, "desk", True, (0, 80, 100)),
    Label(7, "dresser", True, (0, 0, 230)),
    Label(8, "lamp", True, (119, 11, 32)),
    Label(9, "other", True, (190, 50, 60)),
    Label(10, "wall", False, (102, 102, 156)),
    Label(11, "floor", False, (128, 64, 128)),
    Label(12, "ceiling", False, (70, 70, 70)),
)
"""The categories of 3D-Front and Matterport3D; the position in the tuple is the id."""

WALL, FLOOR, CEILING = 10, 11, 12

_LAST: Final = len(LABELS) - 1
_LARGEST: Final = 255  # an id is a byte
_THINGS: Final = sum(label.thing for label in LABELS)
_TEACHES_NOTHING: Final = (VOID, _LARGEST)
_LONGEST_NAME: Final = 64
_TAKEN_NAMES: Final = ("all", "things", "stuff", LABELS[VOID].name)  # the first three are groups of the metric tables


@dataclass(frozen=True)
class LabelMap:
    """What a model learns of the classes that stores hold; without arguments, all of them as they are.

    A class that is a thing here and in ``LABELS``, or in neither, is what data set and settings make of it; only where a map differs
    from ``LABELS`` does it decide. So a map equal to the built-in list changes nothing.

    Attributes:
        stored: a label for each stored class, by id; 0 is void.
        learned: the class that a model learns in place of each; 0 for one that teaches nothing.
    """

    stored: tuple[Label, ...] = LABELS
    learned: tuple[int, ...] = tuple(range(len(LABELS)))

    @property
    def keeps_ids(self) -> bool:
        """Whether a model learns every stored class under its own id."""
        return self.learned == tuple(range(len(LABELS)))

    @property
    def classes(self) -> tuple[int, ...]:
        """The learned classes, ascending, without void."""
        return tuple(sorted({*self.learned} - {VOID}))

    @property
    def labels(self) -> tuple[Label, ...]:
        """Names and colours of what a model says, by id: those of the stored class of that id, else of the first that it stands for."""
        return tuple(self._label(learned) for learned in range(len(LABELS)))

    def _label(self, learned: int) -> Label:
        sources = self.sources(learned)
        own = [label for label in sources if label.id == learned]
        return replace((own or sources or [_nameless(learned)])[0], id=learned)

    def sources(self, learned: int) -> list[Label]:
        """The stored classes that a learned class stands for."""
        return [label for label in self.stored if self.learned[label.id] == learned]

    def things(self, count: int = _THINGS) -> tuple[int, ...]:
        """The learned classes that are things, ascending.

        Args:
            count: stored classes 1 to this are things where the map does not differ.
        """
        return self._learned_of(range(1, min(count, _LARGEST) + 1), thing=True)

    def stuff(self, usual: Iterable[int]) -> tuple[int, ...]:
        """The learned classes that are stuff, ascending.

        Args:
            usual: the stored classes that are stuff where the map does not differ.
        """
        return self._learned_of(usual, thing=False)

    def _learned_of(self, usual: Iterable[int], *, thing: bool) -> tuple[int, ...]:
        changed = [label for label in self.stored if label.thing != LABELS[label.id].thing]
        joined, left = ({label.id for label in changed if label.thing == now} for now in (thing, not thing))
        kept = {*usual, *joined} - left
        return tuple(sorted({self.learned[id] if id <= _LAST else id for id in kept} - {VOID}))


BUILT_IN: Final = LabelMap()
"""What is learned without a label map: every class as it is."""


def read_label_map(entries: object, where: str, *, contiguous: bool) -> LabelMap:
    """A label map from the content of its file.

    Args:
        entries: a list of ``{"id": n, "trainId": n, "isthing": 0 or 1, "name": text, "color": [red, green, blue]}``. ``id`` is the
            stored class, ``trainId`` the learned one; 0 and 255 are of classes that teach nothing.
        where: the file, for messages.
        contiguous: True for a list of ids 1, 2, 3, ...: stored classes beyond it teach nothing. Else ids may be left out: a stored
            class without an entry is learned as it is, and named by its number.

    Raises:
        ConfigError: another form, or entries that do not fit each other; names file, entry and what is allowed.
    """
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{where} holds {shorten(entries)}: allowed is a JSON array of 1 to {_LAST} objects")
    read = [_read_entry(entry, f"{where}[{place}]") for place, entry in enumerate(entries)]
    ids = [label.id for label, _ in read]
    if contiguous and ids != list(range(1, len(ids) + 1)):
        raise ConfigError(
            f"{where} has the ids {shorten(ids)}: with contiguous_id=true allowed is 1, 2, 3, ...; else set that to false"
        )
    if len({*ids}) < len(ids):
        raise ConfigError(f"{where} has the ids {shorten(ids)}: allowed is each once")
    labels = {label.id: label for label in LABELS[:1]} | {label.id: label for label, _ in read}
    learned = {VOID: VOID} | {label.id: train_id for label, train_id in read}
    found = LabelMap(
        tuple(labels.get(label.id) or _nameless(label.id) for label in LABELS),
        tuple(learned.get(label.id, VOID if contiguous else label.id) for label in LABELS),
    )
    _check_learned(found, ids, where)
    return found


def _nameless(id: int) -> Label:
    return replace(LABELS[id], name=f"class {id}")


def _read_entry(entry: object, where: str) -> tuple[Label, int]:
    """The label, and the class that is learned in its place."""
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} is {shorten(entry)}: allowed is an object with id, trainId, isthing, name and color")
    values: list[Any] = [entry.get(key) for key in ("id", "trainId", "isthing", "name", "color")]
    id, train_id, thing, name, color = values
    refuse(not _is_one_of(id, range(1, _LAST + 1)), f"{where}: id", id, f"1 to {_LAST}: stores hold no other class")
    refuse(not _is_one_of(train_id, (*range(_LAST + 1), _LARGEST)), f"{where}: trainId", train_id, f"0 to {_LAST}, or {_LARGEST}")
    refuse(not isinstance(thing, bool) and not _is_one_of(thing, (0, 1)), f"{where}: isthing", thing, "0 or 1")
    named = isinstance(name, str) and 0 < len(name) <= _LONGEST_NAME and name.isprintable() and name not in _TAKEN_NAMES
    refuse(not named, f"{where}: name", name, f"text of 1 to {_LONGEST_NAME} characters, but for {', '.join(_TAKEN_NAMES)}")
    colored = isinstance(color, list) and len(color) == 3 and all(_is_one_of(value, range(256)) for value in color)
    refuse(not colored, f"{where}: color", color, "[red, green, blue], each 0 to 255")
    return Label(id, name, bool(thing), tuple(color)), VOID if train_id in _TEACHES_NOTHING else train_id


def _is_one_of(value: object, allowed: Sequence[int]) -> bool:
    return type(value) is int and value in allowed


def _check_learned(found: LabelMap, listed: Sequence[int], where: str) -> None:
    """Refuse learned classes that stand for things and stuff, that an unlisted class has as well, or that share a name."""
    for learned in found.classes:
        sources = found.sources(learned)
        ids = ", ".join(str(label.id) for label in sources)
        if len({label.thing for label in sources}) > 1:
            raise ConfigError(f"{where}: ids {ids} have the trainId {learned}: allowed are things alone, or stuff alone")
        if len(sources) > 1 and any(label.id not in listed for label in sources):
            raise ConfigError(f"{where}: trainId {learned} is that of id {learned} too, which has no entry: give it one")
    names = [label.name for label in found.labels if label.id in found.classes]
    if len({*names}) < len(names):
        raise ConfigError(f"{where}: names {shorten(names)}: allowed is another for each class that is learned")
