"""The order: one stream per seed, however it is cut, and every cut the same for ever."""

import itertools
import math
import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.order import (
    PERIOD,
    Ints,
    Mixing,
    Order,
    Row,
    Visit,
    format_rows,
    hash_range,
    listing,
    mixing,
    spread_sources,
)

SEEDS = st.integers(0, 2**64 - 1)
LABELS = st.lists(st.sampled_from([-4, 0, 3, 17, 2**40]), min_size=1, max_size=40).map(np.array)
ORDERS = st.builds(
    Order,
    parts=LABELS,
    batch_size=st.integers(1, 7),
    seed=SEEDS,
    world_size=st.integers(1, 5),
    window=st.integers(1, 7),
)

GOLDEN = (
    [9, 12, 15, 8, 14, 10, 11, 0, 18, 1, 3, 2, 17, 4, 16, 19, 13, 5, 6, 7],
    [3, 14, 15, 1, 5, 12, 13, 6, 17, 18, 19, 4, 16, 7, 8, 10, 9, 2, 0, 11],
    [0, 10, 8, 11, 11, 1, 9, 3, 2, 4, 8, 10],
)


def words(*key: int) -> Iterator[int]:
    """``hash_range`` in plain integers."""
    top, gamma = 2**64, 0x9E3779B97F4A7C15

    def mix(word: int) -> int:
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % top
        word = (word ^ word >> 27) * 0x94D049BB133111EB % top
        return word ^ word >> 31

    state = 0
    for number in key:
        state = mix(((state ^ number) + gamma) % top)
    for count in itertools.count(1):
        yield mix((state + count * gamma) % top)


def plain_order(order: Order, epoch: int) -> list[int]:
    """The order of an epoch as its description says it, with a loop and exact fractions."""
    labels = sorted(set(order.parts.tolist()))
    draws = dict(zip(labels, words(order.seed, epoch, 0, 0), strict=False))
    circle = sorted(labels, key=draws.__getitem__)
    reach = min(order.window, len(labels))
    places = [
        (circle.index(part) + reach * Fraction(word >> 32, 2**32)) % len(labels)
        for part, word in zip(order.parts.tolist(), words(order.seed, epoch, 0, 1), strict=False)
    ]
    return sorted(range(len(places)), key=places.__getitem__)


def global_steps(order: Order, epoch: int, position: int) -> list[list[Visit]]:
    """The batches of all ranks, put together step by step."""
    ranks = [list(replace(order, rank=rank).batches(epoch, position)) for rank in range(order.world_size)]
    assert {len(batches) for batches in ranks} == {order.steps(epoch, position)}
    return [list(itertools.chain(*batches)) for batches in zip(*ranks, strict=True)]


def samples(steps: list[list[Visit]]) -> list[int]:
    return [visit.sample for step in steps for visit in step]


def stream(order: Order, epochs: int) -> list[int]:
    return [sample for epoch in range(epochs) for sample in order.epoch_order(epoch).tolist()]


def test_random_words_are_the_published_ones() -> None:
    assert [int(word) for word in hash_range(5)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
        0xF88BB8A8724C81EC,
        0x1B39896A51A8749B,
    ]
    assert int(hash_range(1, 2**64 - 1)[0]) != int(hash_range(1, 2**64 - 2)[0])
    assert int(hash_range(1, 1, 2)[0]) != int(hash_range(1, 2, 1)[0])


@given(st.lists(SEEDS, max_size=4), st.integers(0, 20))
@settings(deadline=None)
def test_random_words_need_no_numpy(key: list[int], count: int) -> None:
    assert hash_range(count, *key).tolist() == list(itertools.islice(words(*key), count))


def test_the_order_is_the_same_for_ever() -> None:
    order = Order(np.arange(20) // 4, batch_size=2, seed=5, window=2)
    assert order.epoch_order(0).tolist() == GOLDEN[0]
    assert order.epoch_order(3).tolist() == GOLDEN[1]
    mixed = Order(np.arange(12) // 4, batch_size=2, seed=5, sources=np.arange(12) // 8, weights=(1.0, 2.0))
    assert mixed.epoch_order(1).tolist() == GOLDEN[2]


@given(ORDERS, st.integers(0, 3))
@settings(deadline=None)
def test_an_epoch_is_a_permutation_and_depends_on_nothing_else(order: Order, epoch: int) -> None:
    found = order.epoch_order(epoch).tolist()
    assert sorted(found) == list(range(len(order)))
    assert found == plain_order(order, epoch)
    other = replace(order, batch_size=9, rank=1, world_size=2)
    assert list(other.batches(epoch)) and other.epoch_order(epoch).tolist() == found
    assert pickle.loads(pickle.dumps(order)).epoch_order(epoch).tolist() == found


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = [Order(np.arange(100), 1, seed).epoch_order(epoch).tolist() for seed in range(4) for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == 16


def test_a_window_of_all_parts_is_a_uniform_shuffle() -> None:
    order = Order(np.array([1, 1, 2]), batch_size=1, window=5)
    counts = Counter(tuple(order.epoch_order(epoch).tolist()) for epoch in range(3000))
    expected = 3000 / 6
    assert len(counts) == 6
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 15.1  # chi-square, 5 degrees, 1 %


@given(ORDERS, st.data())
@settings(deadline=None)
def test_a_changed_order_cannot_change_the_next_one(order: Order, data: st.DataObject) -> None:
    epoch = data.draw(st.integers(0, 5))
    first = order.epoch_order(epoch)
    expected = first.tolist()
    first[:] = 0
    for other in data.draw(st.lists(st.integers(0, 5), max_size=6)):
        order.epoch_order(other)
    assert order.epoch_order(epoch).tolist() == expected


@pytest.mark.parametrize("weights", [None, (3.0, 1.0)])
def test_the_samples_of_each_step_are_equal_for_1x4_2x2_and_4x1_ranks(weights: tuple[float, ...] | None) -> None:
    order = Order(np.arange(37) // 5, 4, seed=3, window=3, sources=np.arange(37) % 2, weights=weights)
    expected = global_steps(order, 0, 0)
    assert {len(step) for step in expected} == {4}
    for batch_size, world_size in ((2, 2), (1, 4)):
        assert global_steps(replace(order, batch_size=batch_size, world_size=world_size), 0, 0) == expected


@given(ORDERS, st.booleans(), st.data())
@settings(deadline=None)
def test_a_resumed_stream_loses_and_repeats_nothing_whatever_the_ranks(order: Order, weighted: bool, data: st.DataObject) -> None:
    if weighted and len(order) > 1:
        order = replace(order, sources=np.arange(len(order)) % 2, weights=(1.0, 2.5))
    state, seen = (0, 0), []
    for _ in range(4):
        order = replace(order, batch_size=data.draw(st.integers(1, 7)), world_size=data.draw(st.integers(1, 5)))
        done = data.draw(st.integers(0, order.steps(*state)))
        seen += global_steps(order, *state)[:done]
        state = order.after(*state, done)
        assert 0 <= state[1] < len(order)
        assert state[0] * len(order) + state[1] == len(samples(seen))
    assert samples(seen) == stream(order, state[0] + 1)[: len(samples(seen))]


@given(ORDERS, st.data())
@settings(deadline=None)
def test_training_batches_are_full_and_know_their_place(order: Order, data: st.DataObject) -> None:
    state = data.draw(st.tuples(st.integers(0, 2), st.integers(0, len(order) - 1)))
    steps = global_steps(order, *state)
    whole = order.batch_size * order.world_size
    start = state[0] * len(order) + state[1]
    assert len(steps) == order.steps(*state) == math.ceil((len(order) - state[1]) / whole)
    for number, step in enumerate(steps):
        first = start + number * whole
        assert [visit.epoch * len(order) + visit.position for visit in step] == list(range(first, first + whole))
        assert {visit.batch for visit in step} == {first}
        assert [visit.sample for visit in step] == [order.epoch_order(visit.epoch)[visit.position] for visit in step]
        assert divmod(first, len(order)) == order.after(*state, number)
    assert all(len(batch) == order.batch_size for batch in order.batches(*state))
    assert order.after(*state, len(steps))[0] > state[0]


def test_a_step_across_two_epochs_takes_the_last_of_one_and_the_first_of_the_next() -> None:
    order = Order(np.zeros(5, np.int64), batch_size=2, seed=8)
    last = list(order.batches())[-1]
    assert [(visit.epoch, visit.position, visit.batch) for visit in last] == [(0, 4, 4), (1, 0, 4)]
    assert order.after(0, 0, order.steps()) == (1, 1)
    assert [next(order.batches(1, 1))[0].sample] == [order.epoch_order(1)[1]]


def test_a_step_larger_than_the_dataset_spans_several_epochs() -> None:
    order = Order(np.array([1, 2]), batch_size=5)
    assert [(visit.epoch, visit.position) for visit in next(order.batches())] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert order.after(0, 0, 1) == (2, 1)


@given(ORDERS, st.data())
@settings(deadline=None)
def test_one_pass_reads_each_sample_once_in_as_many_batches_on_each_rank(order: Order, data: st.DataObject) -> None:
    order = replace(order, shuffle=False)
    epoch, position = data.draw(st.integers(0, 2)), data.draw(st.integers(0, len(order) - 1))
    left = len(order) - position
    if left < order.world_size:
        with pytest.raises(ConfigError, match=f"{left} samples left for {order.world_size} ranks; .* use {left} ranks"):
            order.batches(epoch, position)
        return
    steps = global_steps(order, epoch, position)
    assert samples(steps) == list(range(position, len(order)))
    sizes = [len(batch) for rank in range(order.world_size) for batch in replace(order, rank=rank).batches(epoch, position)]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    assert max(sizes) <= order.batch_size or (order.batch_size == 1 and max(sizes) == 2)
    for number, step in enumerate(steps):
        assert {visit.batch for visit in step} == {epoch * len(order) + step[0].position}
        assert order.after(epoch, position, number) == (epoch, step[0].position)
    assert order.after(epoch, position, len(steps)) == (epoch + 1, 0)


@given(ORDERS, st.data())
@settings(deadline=None)
def test_a_resumed_pass_reads_the_rest_once(order: Order, data: st.DataObject) -> None:
    order = replace(order, shuffle=False, world_size=min(order.world_size, len(order)))
    done = data.draw(st.integers(0, order.steps() - 1))
    state = order.after(0, 0, done)
    assert samples(global_steps(order, 0, 0)[:done] + global_steps(order, *state)) == list(range(len(order)))
    assert order.steps(*state) == order.steps() - done
    alone = replace(order, world_size=1)
    assert samples(global_steps(alone, *state)) == list(range(state[1], len(order)))


@given(st.lists(st.floats(0.2, 5), min_size=1, max_size=6).map(tuple))
@settings(deadline=None)
def test_sources_share_the_slots_by_weight(weights: tuple[float, ...]) -> None:
    pattern = spread_sources(weights)
    share = np.array(weights) / sum(weights)
    assert np.abs(np.bincount(pattern) - share * PERIOD).max() <= 1


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_no_rank_stays_with_one_source(ranks: int) -> None:
    share = [spread_sources((1.0, 1.0))[rank::ranks].mean() for rank in range(ranks)]
    assert max(abs(mean - 0.5) for mean in share) < 0.15


@given(SEEDS, st.integers(2, 9), st.integers(1, 60), st.floats(0.1, 9))
@settings(max_examples=30, deadline=None)
def test_each_source_goes_through_its_own_epochs(seed: int, small: int, large: int, weight: float) -> None:
    sources = np.array([0] * large + [1] * small)
    order = Order(np.arange(len(sources)) // 3, 4, seed, sources=sources, weights=(1, weight))
    epochs = math.ceil(1500 / len(sources))
    seen = np.array(stream(order, epochs))
    for source, size in enumerate((large, small)):
        own = seen[sources[seen] == source]
        members = np.flatnonzero(sources == source).tolist()
        for start in range(0, len(own) - size + 1, size):
            assert sorted(own[start : start + size].tolist()) == members
    rounds = len(seen) // PERIOD * PERIOD
    assert abs(np.mean(sources[seen[:rounds]]) - weight / (1 + weight)) <= 1 / PERIOD


def test_without_weights_sources_make_no_difference() -> None:
    parts = np.arange(30) // 4
    assert stream(Order(parts, 2, sources=parts % 2), 2) == stream(Order(parts, 2), 2)
    assert stream(Order(parts, 2, weights=(7.0,)), 2) == stream(Order(parts, 2), 2)


@given(SEEDS, st.integers(1, 4), st.integers(0, 20), st.integers(2, 6))
@settings(deadline=None)
def test_no_more_parts_are_open_than_the_window_says(seed: int, window: int, more: int, size: int) -> None:
    parts = np.arange((4 * window + more) * size) // size
    found = mixing(Order(parts, 2, seed, window=window).epoch_order(0), parts, 2)
    assert found.parts_open <= found.most_parts_open <= window


def test_mixing_is_what_a_count_by_hand_says() -> None:
    parts = np.array([5, 5, 5, 9, 9, 2])
    found = mixing(np.array([0, 3, 1, 4, 2, 5]), parts, batch=4)  # 5 9 5 9 | 5 2: 2 of 6 pairs, 0 of 1
    assert found == Mixing(same_part=2 / 7, uniform_same_part=8 / 30, parts_open=1, most_parts_open=2)
    wrapped = mixing(np.array([0, 3, 4, 5, 1, 2]), parts, batch=2)  # 5 9 | 9 2 | 5 5, and 5 stays open around the end
    assert wrapped == Mixing(same_part=1 / 3, uniform_same_part=8 / 30, parts_open=1, most_parts_open=1)


def test_a_uniform_shuffle_has_the_mixing_that_all_permutations_average() -> None:
    parts = np.array([1, 1, 1, 4, 4])
    found = [mixing(np.array(order), parts, 3) for order in itertools.permutations(range(5))]
    assert np.mean([mix.same_part for mix in found]) == pytest.approx(found[0].uniform_same_part)


@given(LABELS.filter(lambda parts: len(parts) > 1), st.integers(2, 9), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_same_part_counts_every_pair_of_a_batch(parts: Ints, batch: int, random: Any) -> None:
    order = random.sample(range(len(parts)), len(parts))
    pairs = [
        parts[a] == parts[b]
        for start in range(0, len(order), batch)
        for a, b in itertools.combinations(order[start : start + batch], 2)
    ]
    assert mixing(np.array(order), parts, batch).same_part == pytest.approx(np.mean(pairs))


def test_a_listing_names_rank_and_worker_of_every_sample() -> None:
    order = Order(np.zeros(6, np.int64), batch_size=1, world_size=2, shuffle=False)
    rows = list(listing(order, workers=2))
    assert [(row.step, row.rank, row.worker, row.sample) for row in rows] == [
        (0, 0, 0, 0),
        (0, 1, 0, 1),
        (1, 0, 1, 2),
        (1, 1, 1, 3),
        (2, 0, 0, 4),
        (2, 1, 0, 5),
    ]
    assert list(format_rows(rows[:1])) == ["epoch\tposition\tstep\trank\tworker\tsample", "0\t0\t0\t0\t0\t0"]
    assert list(format_rows(rows[2:3], keys="abcdef"))[1] == "0\t2\t1\t0\t1\t2\tc"


@given(ORDERS, st.integers(1, 3), st.data())
@settings(deadline=None)
def test_a_listing_is_what_the_ranks_read(order: Order, workers: int, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(order) - 1))
    expected = [
        Row(visit.epoch, visit.position, step, rank, step % workers, visit.sample)
        for rank in range(order.world_size)
        for step, batch in enumerate(replace(order, rank=rank).batches(1, position))
        for visit in batch
    ]
    assert sorted(listing(order, 1, position, workers)) == sorted(expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"parts": np.zeros(0, np.int64)}, "0 samples to order; give at least one"),
        ({"parts": np.zeros((2, 2), np.int64)}, "parts: int64, shape .2, 2.; give one integer per sample"),
        ({"parts": np.zeros(2)}, "parts: float64, shape .2,.; give one integer per sample"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"world_size": 0}, "world_size is 0; it must be at least 1"),
        ({"window": 0}, "window is 0; it must be at least 1"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2; give 0 to 1"),
        ({"rank": -1}, "rank -1 of 1; give 0 to 0"),
        ({"seed": -1}, "seed -1; give 0 to"),
        ({"seed": 2**64}, "give 0 to"),
        ({"sources": np.zeros(3, np.int64)}, "3 sources for 4 samples; give one for each"),
        ({"sources": np.array([0, 0, 1, 1]), "weights": (1.0, 1.0), "shuffle": False}, "leave the weights out"),
        ({"weights": ()}, "give a number above 0 for each source"),
        ({"weights": (0.0,)}, "give a number above 0 for each source"),
        ({"weights": (math.nan,)}, "give a number above 0 for each source"),
        ({"weights": (1.0, 1.0)}, "weights for sources 0 to 1, samples of sources .0.; give a weight for each"),
        ({"sources": np.array([0, 0, 1, 1]), "weights": (1.0,)}, "samples of sources .0, 1.; give a weight for each"),
        ({"sources": np.array([0, 0, 1, 1]), "weights": (1e4, 1.0)}, "weight 1.0 of source 1 is too small a share"),
    ],
)
def test_a_value_out_of_its_range_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Order(**{"parts": np.arange(4), "batch_size": 2, **changed})


def test_a_state_of_other_samples_is_refused() -> None:
    order = Order(np.arange(4), 2)
    for epoch, position in ((-1, 0), (0, -1), (0, 4)):
        with pytest.raises(ConfigError, match=f"epoch {epoch}, position {position}: .* positions to 3; give a state"):
            order.batches(epoch, position)
    with pytest.raises(ConfigError, match="epoch -1"):
        order.epoch_order(-1)
    with pytest.raises(ConfigError, match="-1 steps after epoch 0, position 0; give 0 to 2"):
        order.after(0, 0, -1)
    with pytest.raises(ConfigError, match="3 steps after epoch 0, position 0; give 0 to 2"):
        replace(order, shuffle=False).after(0, 0, 3)
    assert order.after(0, 0, 3) == (1, 2)


def test_a_listing_or_a_measure_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="workers is 0; give at least 1"):
        listing(Order(np.arange(4), 2), workers=0)
    with pytest.raises(ConfigError, match="4 samples in batches of 1; pairs need 2"):
        mixing(np.arange(4), np.arange(4), 1)
