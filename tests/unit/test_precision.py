"""Distances in fewer bits: the error is bounded, and what is exact stays exact."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scenemill.schemas.config import PRECISIONS
from scenemill.schemas.fields import Field, fields_of
from scenemill.transforms.geometry import FREE_SPACE
from scenemill.transforms.precision import Storage, storage_of

Floats = NDArray[np.float32]


def field_of(source: str, name: str) -> Field:
    return next(field for field in fields_of(source) if field.name == name)


UNSIGNED = field_of("front3d", "geometry")
SIGNED = field_of("matterport", "geometry")
RNG = np.random.default_rng(4)
ULP = float(np.spacing(np.float32(12)))


def values_of(field: Field) -> Floats:
    """Every kind of value of a field: even ones, random ones, tiny ones, and the ends."""
    low = min(0.0, field.fill)
    special: list[float] = [low, 12.0, 0.0, 1e-7, 1.0, float(FREE_SPACE), 0.99999994]
    parts: list[Any] = [np.linspace(low, 12.0, 300_001), RNG.uniform(low, 12.0, 300_000), RNG.uniform(0, 0.001, 1000), special]
    return np.concatenate([np.asarray(part, np.float32) for part in parts])


def round_trip(storage: Storage, values: Floats) -> Floats:
    stored = storage.encode(values)
    assert stored.dtype == storage.dtype
    decoded: Floats = storage.decode(stored, "float32")
    assert decoded.dtype == np.float32
    return decoded


@pytest.mark.parametrize(
    ("field", "steps", "dtype"), [(UNSIGNED, 65535, "uint16"), (SIGNED, 32767, "int16")], ids=["unsigned", "signed"]
)
def test_fixed16_is_off_by_half_a_step_at_most(field: Field, steps: int, dtype: str) -> None:
    storage, values = storage_of(field, "fixed16"), values_of(field)
    error = np.abs(round_trip(storage, values).astype(np.float64) - values)
    assert storage.dtype == dtype
    assert 0.49 * 12 / steps < error.max() <= 12 / steps / 2 + 2 * ULP


@pytest.mark.parametrize("field", [UNSIGNED, SIGNED], ids=["unsigned", "signed"])
def test_float16_is_off_by_half_of_what_it_tells_apart_at_most(field: Field) -> None:
    storage, values = storage_of(field, "float16"), values_of(field)
    decoded = round_trip(storage, values)
    error = np.abs(decoded.astype(np.float64) - values)
    step = np.spacing(np.abs(decoded).astype(np.float16)).astype(np.float64)
    assert (error <= step / 2).all() and error.max() <= 2.0**-8 and storage.dtype == "float16"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("field", [UNSIGNED, SIGNED], ids=["unsigned", "signed"])
def test_truncation_fill_and_zero_stay_exact(field: Field, precision: str) -> None:
    storage = storage_of(field, precision)
    exact = np.array([12.0, 0.0, field.fill, *([-12.0] if field is SIGNED else [])], np.float32)
    assert np.array_equal(round_trip(storage, exact), exact)
    fill = np.array([storage.fill], storage.dtype)
    assert storage.decode(fill, "float32").tolist() == [field.fill]
    assert np.array_equal(storage.encode(np.array([field.fill], np.float32)), fill)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("field", [UNSIGNED, SIGNED], ids=["unsigned", "signed"])
def test_decoded_values_are_fixed_points(field: Field, precision: str) -> None:
    storage = storage_of(field, precision)
    once = round_trip(storage, values_of(field))
    assert np.array_equal(round_trip(storage, once), once)


def test_every_step_of_fixed16_is_its_own() -> None:
    for field, steps in ((UNSIGNED, np.arange(65536)), (SIGNED, np.arange(-32767, 32768))):
        storage = storage_of(field, "fixed16")
        stored = steps.astype(storage.dtype)
        assert np.array_equal(storage.encode(storage.decode(stored, "float32")), stored)


def test_values_keep_their_order_and_sign() -> None:
    for precision in PRECISIONS:
        decoded = round_trip(storage_of(SIGNED, precision), np.sort(values_of(SIGNED)))
        assert (np.diff(decoded) >= 0).all() and decoded[0] == -12.0 and decoded[-1] == 12.0


def test_far_free_space_is_kept_apart_from_the_truncation_by_float32_alone() -> None:
    far = np.array([FREE_SPACE], np.float32)
    assert [float(round_trip(storage_of(SIGNED, precision), far)[0]) for precision in PRECISIONS] == [float(FREE_SPACE), 12.0, 12.0]


@pytest.mark.parametrize("source", ["front3d", "matterport"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_but_distances_are_stored_as_they_are(source: str, precision: str) -> None:
    for field in fields_of(source):
        if field.name != "geometry" or precision == "float32":
            storage = storage_of(field, precision)
            assert (storage.dtype, storage.scale) == (field.dtype, None)
            assert storage.fill == field.fill or field.fill != field.fill
            values = np.arange(2).astype(field.dtype)
            assert storage.encode(values) is values and storage.decode(values, field.dtype) is values
