"""Which sample when: a pure function of seed, epoch, rank and world size.

An epoch is an order of all N samples, and epochs one after another are one endless stream. A step takes the next samples of it, and
each rank a slice of the step, so ranks and batch size only say how the stream is cut, never what is in it. Where a run stands is two
numbers, epoch and position; any run that starts there continues the same stream.

Training: every batch is full. What is left at an epoch's end opens a step that the next epoch's first samples complete; only such a
step may hold a sample twice.
Evaluation (``shuffle=False``): one pass, each sample once; the batches shrink a little so that all ranks have as many of them.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

PERIOD: Final = 1000  # slots after which the pattern of weighted sources repeats: weights count to 0.1 %
_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)


def hash_range(count: int, *key: int) -> Words:
    """Random words that only depend on the key: the same for ever, with any version of NumPy.

    Args:
        count: how many.
        key: integers from 0 to 2**64 - 1; another key gives unrelated words.

    Returns:
        (count,) uint64. Word i does not depend on ``count``.

    Source: splitmix64 (S. Vigna, prng.di.unimi.it/splitmix64.c), its state the key's words, each mixed into the last.

    >>> [hex(word) for word in hash_range(2)]
    ['0xe220a8397b1dcdaf', '0x6e789e6aa1b965f4']
    """
    state = np.zeros(1, np.uint64)  # an array: NumPy warns when a scalar wraps around
    for word in key:
        state = _mix((state ^ np.uint64(word)) + _GAMMA)
    return _mix(state + np.arange(1, count + 1, dtype=np.uint64) * _GAMMA)


def _mix(word: Words) -> Words:
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def shuffle_parts(part: Ints, window: int, *key: int) -> Ints:
    """An order of samples that reads about ``window`` parts at a time.

    The parts lie on a circle in random order, one unit each. A sample's place is its part's, plus a random stretch of up to
    ``window`` units, and the epoch goes once around. So mixing is even from first to last sample, and a window of all parts is a
    uniform shuffle. Parts that cross the start are read at both ends of the epoch.

    Args:
        part: (n,) int64, the part of every sample, numbered from 0 without gaps.
        window: parts, from 1.
        key: as in ``hash_range``.

    Returns:
        (n,) int64, a permutation of 0..n-1.
    """
    parts = int(part.max()) + 1
    rank = np.empty(parts, np.uint64)
    rank[np.argsort(hash_range(parts, *key, 0), kind="stable")] = np.arange(parts, dtype=np.uint64)
    unit = np.uint64(2**32)  # whole numbers, so nothing is rounded
    stretch = hash_range(len(part), *key, 1) // unit * np.uint64(min(window, parts))
    return np.argsort((rank[part] * unit + stretch) % (np.uint64(parts) * unit), kind="stable")


@lru_cache(maxsize=16)
def spread_sources(weights: tuple[float, ...]) -> Ints:
    """The source of each of ``PERIOD`` slots: shares as the weights say to within one slot, in no regular sequence.

    A regular one (0, 1, 0, 1, ...) would give each rank of two the samples of one source alone.

    Raises:
        ConfigError: a source is so light that it gets no slot.

    Source: largest remainders for the shares.

    >>> np.bincount(spread_sources((3.0, 1.0))).tolist()
    [750, 250]
    """
    exact = [Fraction(weight) * PERIOD / sum(map(Fraction, weights)) for weight in weights]
    by_remainder = sorted(range(len(exact)), key=lambda source: exact[source] % 1, reverse=True)
    counts = np.array([math.floor(share) for share in exact], np.int64)
    counts[by_remainder[: PERIOD - int(counts.sum())]] += 1
    if not counts.all():
        light = int(np.argmin(counts))
        raise ConfigError(
            f"weight {weights[light]} of source {light} is too small a share: give 1/{PERIOD} of the sum, or leave it out"
        )
    pattern = np.repeat(np.arange(len(counts)), counts)[np.argsort(hash_range(PERIOD), kind="stable")]
    pattern.setflags(write=False)
    return pattern


class Visit(NamedTuple):
    """One sample at one place of the stream.

    Attributes:
        sample: index in the dataset.
        epoch: the epoch it is read in.
        position: its place in that epoch's order. Seed, epoch and position seed what is random about this sample.
        batch: place in the stream (epoch * N + position) of the first sample of its step, on whichever rank. Seed and batch seed
            what a step's samples share, on all ranks.
    """

    sample: int
    epoch: int
    position: int
    batch: int


class _Source(NamedTuple):
    samples: Ints
    part: Ints


@dataclass(frozen=True, eq=False)
class Order:
    """The samples of one rank, batch by batch.

    With weights, a place in the stream belongs to a source by a fixed pattern, and each source goes through epochs of its own: no
    sample comes again before all others of its source have come. An epoch is then N draws.

    Attributes:
        parts: (N,) int64, the part of every sample; any numbers.
        batch_size: samples per batch on each rank.
        seed: 0 to 2**64 - 1.
        rank: 0 to world_size - 1.
        world_size: processes that share the stream.
        window: parts read at a time (per source); all of them or more for a uniform shuffle. About 1 / window of the pairs in a
            batch come from one part, as ``mixing`` measures.
        shuffle: True for training, False for one pass in the order of the dataset.
        sources: (N,) integers, the source of every sample, from 0; None for a single source.
        weights: how often each source is drawn, in proportion, whatever its size; None for one shuffle over everything.

    Raises:
        ConfigError: a value is out of its range.

    >>> order = Order(np.array([7, 7, 7, 9, 9]), batch_size=2, seed=1)
    >>> [[visit.sample for visit in batch] for batch in order.batches(epoch=0)]
    [[4, 2], [1, 0], [3, 3]]
    >>> order.after(0, 0, steps=3)  # the last batch took the first sample of epoch 1
    (1, 1)
    """

    parts: Ints
    batch_size: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    window: int = 32
    shuffle: bool = True
    sources: Ints | None = None
    weights: tuple[float, ...] | None = None
    _kept: dict[int, dict[int, Ints]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _numbers("parts", self.parts))
        if not len(self.parts):
            raise ConfigError("0 samples to order; give at least one: look at the split and the keys")
        for name in ("batch_size", "world_size", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank {self.rank} of {self.world_size}; give 0 to {self.world_size - 1}")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed {self.seed}; give 0 to 2**64 - 1")
        if self.sources is not None:
            object.__setattr__(self, "sources", _numbers("sources", self.sources))
            if len(self.sources) != len(self.parts):
                raise ConfigError(f"{len(self.sources)} sources for {len(self.parts)} samples; give one for each")
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(map(float, self.weights)))
            self._check_weights(self.weights)

    def _check_weights(self, weights: tuple[float, ...]) -> None:
        if not self.shuffle:
            raise ConfigError("weights with shuffle=False: one pass reads each sample once; leave the weights out")
        if not weights or not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise ConfigError(f"weights {weights}; give a number above 0 for each source")
        found = [0] if self.sources is None else np.unique(self.sources).tolist()
        if found != list(range(len(weights))):
            raise ConfigError(f"weights for sources 0 to {len(weights) - 1}, samples of sources {found}; give a weight for each")
        spread_sources(weights)

    def __len__(self) -> int:
        """N: samples in an epoch."""
        return len(self.parts)

    def epoch_order(self, epoch: int) -> Ints:
        """The samples of one epoch, first to last, for all ranks together.

        Returns:
            (N,) int64: a permutation of 0..N-1, or with weights N draws.
        """
        start = self._place(epoch, 0)
        return self._samples(start, start + len(self))

    def batches(self, epoch: int = 0, position: int = 0) -> Iterator[list[Visit]]:
        """This rank's batches from a state on, to the step that reaches the end of the epoch.

        Raises:
            ConfigError: no such state; or a single pass has fewer samples left than ranks.
        """
        return (self._visits(cuts, self.rank) for cuts in self._cuts(epoch, position))

    def steps(self, epoch: int = 0, position: int = 0) -> int:
        """How many batches ``batches`` yields, on every rank."""
        return self._plan(epoch, position)[1]

    def after(self, epoch: int, position: int, steps: int) -> tuple[int, int]:
        """The state (epoch, position) that many steps after a state; position is below N.

        Raises:
            ConfigError: no such state; a number of steps below 0, or beyond the end of a single pass.
        """
        start, planned, span = self._plan(epoch, position)
        if steps < 0 or (steps > planned and not self.shuffle):
            raise ConfigError(f"{steps} steps after epoch {epoch}, position {position}; give 0 to {planned}")
        return divmod(start + steps * span // planned, len(self))

    def _place(self, epoch: int, position: int) -> int:
        if epoch < 0 or not 0 <= position < len(self):
            raise ConfigError(
                f"epoch {epoch}, position {position}: epochs count from 0 and positions to {len(self) - 1}; "
                "give a state of the same samples, as after() returns it"
            )
        return epoch * len(self) + position

    def _plan(self, epoch: int, position: int) -> tuple[int, int, int]:
        """Where the steps start in the stream, how many there are, and how many samples they share evenly."""
        start, left = self._place(epoch, position), len(self) - position
        whole = self.batch_size * self.world_size
        steps = math.ceil(left / whole)
        if self.shuffle:
            return start, steps, steps * whole
        if left < self.world_size:
            raise ConfigError(f"{left} samples left for {self.world_size} ranks; every rank needs one: use {left} ranks or fewer")
        return start, min(steps, left // self.world_size), left  # one step less, and one sample more, than an empty batch

    def _cuts(self, epoch: int, position: int) -> Iterator[list[int]]:
        """For every step, the places where the ranks' slices begin, and where the last one ends."""
        start, steps, span = self._plan(epoch, position)
        slots = steps * self.world_size
        firsts = range(0, slots, self.world_size)
        return ([start + (first + rank) * span // slots for rank in range(self.world_size + 1)] for first in firsts)

    def _visits(self, cuts: list[int], rank: int) -> list[Visit]:
        places = range(cuts[rank], cuts[rank + 1])
        samples = self._samples(places.start, places.stop).tolist()
        return [Visit(sample, *divmod(place, len(self)), cuts[0]) for sample, place in zip(samples, places, strict=True)]

    def _samples(self, first: int, last: int) -> Ints:
        """The samples at the places ``first`` to ``last`` of the stream, found without walking to them."""
        pattern = np.zeros(1, np.int64) if self.weights is None else spread_sources(self.weights)
        turn = pattern[np.arange(first, last) % len(pattern)]
        samples = np.empty(last - first, np.int64)
        for source, (members, _) in enumerate(self._sources):
            low, high = (_count_turns(pattern == source, place) for place in (first, last))
            if low < high:
                size = len(members)
                epochs = range(low // size, math.ceil(high / size))
                orders = [self._source_order(source, epoch)[max(low - epoch * size, 0) : high - epoch * size] for epoch in epochs]
                samples[turn == source] = np.concatenate(orders)
        return samples

    @cached_property
    def _sources(self) -> tuple[_Source, ...]:
        if self.weights is None or self.sources is None:
            groups = [np.arange(len(self), dtype=np.int64)]
        else:
            groups = [np.flatnonzero(self.sources == source) for source in range(len(self.weights))]
        return tuple(_Source(samples, np.unique(self.parts[samples], return_inverse=True)[1]) for samples in groups)

    def _source_order(self, source: int, epoch: int) -> Ints:
        """One source's samples in the order of one of its own epochs. The last two are kept: a step may need both."""
        samples, part = self._sources[source]
        if not self.shuffle:
            return samples
        kept = self._kept.get(source, {})
        if epoch not in kept:
            made = samples[shuffle_parts(part, self.window, self.seed, epoch, source)]
            kept = dict([*kept.items(), (epoch, made)][-2:])
            self._kept[source] = kept  # replaced, not changed: threads may share an order
        return kept[epoch]


def _numbers(name: str, values: Ints) -> Ints:
    """A read-only copy: an order never changes."""
    given = np.asarray(values)
    if given.ndim != 1 or (given.dtype.kind not in "iu" and len(given)):
        raise ConfigError(f"{name}: {given.dtype}, shape {given.shape}; give one integer per sample")
    copy = given.astype(np.int64)
    copy.setflags(write=False)
    return copy


def _count_turns(mine: NDArray[np.bool_], place: int) -> int:
    """How often a source was drawn before a place, where ``mine`` marks its slots of the pattern."""
    rounds, slot = divmod(place, len(mine))
    return rounds * int(mine.sum()) + int(mine[:slot].sum())


class Row(NamedTuple):
    """One line of a listing: this sample is read here, by this process.

    Attributes:
        epoch, position: as in ``Visit``.
        step: counted from the state that the listing starts at.
        rank: the process that trains on it.
        worker: that rank's loading process: PyTorch's DataLoader hands its batches to the workers in turn.
        sample: index in the dataset.
    """

    epoch: int
    position: int
    step: int
    rank: int
    worker: int
    sample: int


def listing(order: Order, epoch: int = 0, position: int = 0, workers: int = 1) -> Iterator[Row]:
    """Who reads what when, for all ranks, from a state on to the step that reaches the end of the epoch.

    Raises:
        ConfigError: ``workers`` is below 1, or the state is none of this order.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}; give at least 1 (loading without workers counts as one)")
    return (
        Row(visit.epoch, visit.position, step, rank, step % workers, visit.sample)
        for step, cuts in enumerate(order._cuts(epoch, position))
        for rank in range(order.world_size)
        for visit in order._visits(cuts, rank)
    )


def format_rows(rows: Iterable[Row], keys: Sequence[object] = ()) -> Iterator[str]:
    """Rows as lines of tab-separated columns below a line of their names; with ``keys``, the key of each sample comes last.

    >>> order = Order(np.array([0, 0]), batch_size=2, shuffle=False)
    >>> [line.split() for line in format_rows(listing(order), keys=["a/1", "a/2"])][1:]
    [['0', '0', '0', '0', '0', '0', 'a/1'], ['0', '1', '0', '0', '0', '1', 'a/2']]
    """
    yield "\t".join((*Row._fields, "key") if keys else Row._fields)
    for row in rows:
        yield "\t".join(map(str, (*row, keys[row.sample]) if keys else row))


class Mixing(NamedTuple):
    """How well an order mixes the parts, and what that costs.

    Attributes:
        same_part: of all pairs of samples in one batch, the share from the same part, 0..1.
        uniform_same_part: what a uniform shuffle of the same samples has on average, exactly.
        parts_open: parts open at a time: median over the epoch.
        most_parts_open: the largest number of parts open at a time.
    """

    same_part: float
    uniform_same_part: float
    parts_open: int
    most_parts_open: int


def mixing(order_of_epoch: Ints, parts: Ints, batch: int) -> Mixing:
    """Measure an order: share of pairs from one part, and parts open at a time.

    The order counts as a circle, as each epoch is followed by another like it. A part is open from its first sample to its last,
    where its first is the one after its longest stretch of absence. The last batch may be short, and counts.

    Args:
        order_of_epoch: (n,) int64, indices of samples; at least 2.
        parts: (N,) int64, the part of every sample.
        batch: samples per batch, at least 2.

    Raises:
        ConfigError: fewer than 2 samples, or than 2 a batch.

    >>> mixing(np.array([0, 1, 2, 3]), np.array([5, 5, 6, 6]), batch=2)
    Mixing(same_part=1.0, uniform_same_part=0.3333333333333333, parts_open=1, most_parts_open=1)
    """
    count = len(order_of_epoch)
    if batch < 2 or count < 2:
        raise ConfigError(f"{count} samples in batches of {batch}; pairs need 2 of each or more")
    _, part, sizes = np.unique(parts[order_of_epoch], return_inverse=True, return_counts=True)
    _, met = np.unique(np.arange(count) // batch * len(sizes) + part, return_counts=True)
    pairs = count // batch * math.comb(batch, 2) + math.comb(count % batch, 2)

    place = np.argsort(part, kind="stable")  # the places of the first part, ascending, then those of the second, ...
    ends = np.cumsum(sizes)
    gap = np.roll(place, -1) - place
    gap[ends - 1] = place[ends - sizes] + count - place[ends - 1]  # around the circle, back to the part's first
    change = np.zeros(2 * count + 1, np.int64)
    for start, end in zip((ends - sizes).tolist(), ends.tolist(), strict=True):
        longest = end - 1 - int(np.argmax(gap[start:end][::-1]))
        opened = int(place[longest] + gap[longest]) % count
        change[opened] += 1
        change[opened + count - int(gap[longest]) + 1] -= 1
    opens = np.cumsum(change)
    opens = opens[:count] + opens[count : 2 * count]
    return Mixing(
        same_part=float((met * (met - 1) // 2).sum() / pairs),
        uniform_same_part=float((sizes * (sizes - 1)).sum() / (count * (count - 1))),
        parts_open=int(np.median(opens)),
        most_parts_open=int(opens.max()),
    )
