"""Walks through latent space: ends are exact, arcs are Shoemake's, and no pair of ends is too odd to walk between."""

import numpy as np
import pytest

from model.walk import along, arc, line


def point(seed: int, dims: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(dims).astype(np.float32)


def shoemake(start: np.ndarray, end: np.ndarray, steps: int) -> np.ndarray:
    """Slerp as printed by Shoemake (1985), of two vectors of one length."""
    a, b = start.astype(np.float64), end.astype(np.float64)
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    t = np.linspace(0, 1, steps)[:, None]
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


@pytest.mark.parametrize("walk", [line, arc])
@pytest.mark.parametrize("steps", [2, 3, 64])
def test_a_walk_has_so_many_steps_and_its_ends_bit_for_bit(walk: object, steps: int) -> None:
    start, end = point(1), point(2)
    got = walk(start, end, steps)  # type: ignore[operator]
    assert (got.shape, got.dtype) == ((steps, 6), np.float32)
    assert got[0].tobytes() == start.tobytes()
    assert got[-1].tobytes() == end.tobytes()


def test_a_line_goes_at_equal_distances() -> None:
    np.testing.assert_allclose(np.diff(line(point(1), point(2), 9), axis=0), [(point(2) - point(1)) / 8] * 8, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_an_arc_between_equal_lengths_is_the_slerp_of_shoemake(seed: int) -> None:
    start, end = point(seed), point(seed + 50)
    end *= np.linalg.norm(start) / np.linalg.norm(end)
    np.testing.assert_allclose(arc(start, end, 11), shoemake(start, end, 11), atol=1e-5)


def test_an_arc_turns_evenly_and_its_length_changes_evenly() -> None:
    got = arc(np.array([2, 0], np.float32), np.array([0, 4], np.float32), 3)
    np.testing.assert_allclose(got[1], [3 / np.sqrt(2), 3 / np.sqrt(2)], rtol=1e-6)
    got = arc(3 * point(3), point(4), 17).astype(np.float64)
    lengths = np.linalg.norm(got, axis=1)
    np.testing.assert_allclose(np.diff(lengths), (lengths[-1] - lengths[0]) / 16, atol=1e-5)
    turned = got / lengths[:, None]
    np.testing.assert_allclose(np.diff((turned[1:] * turned[:-1]).sum(1)), 0, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3, 32])
@pytest.mark.parametrize("nudge", [0, 1e-7, 1e-4])
def test_opposite_ends_are_walked_around_the_origin_and_not_through_it(dims: int, nudge: float) -> None:
    start = point(7, dims)
    end = (-2 * start + nudge * point(8, dims)).astype(np.float32)
    got = arc(start, end, 9).astype(np.float64)
    lengths = np.linalg.norm(got, axis=1)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(lengths, np.linspace(lengths[0], lengths[-1], 9), rtol=1e-5)
    between = (got[1:] * got[:-1]).sum(1) / lengths[1:] / lengths[:-1]
    np.testing.assert_allclose(between, np.cos(np.pi / 8), atol=1e-3)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (np.zeros(6), point(1)),
        (point(1), np.zeros(6)),
        (np.zeros(6), np.zeros(6)),
        (point(1), point(1)),
        (point(1), 3 * point(1)),
        (point(1, 1), -point(1, 1)),
        (point(1) * 1e-30, point(2) * 1e-30),
        (point(1) * 1e5, point(2) * 1e-5),
    ],
)
def test_ends_without_a_direction_or_with_the_same_one_are_walked_between_too(
    start: np.ndarray, end: np.ndarray
) -> None:
    start, end = start.astype(np.float32), end.astype(np.float32)
    got = arc(start, end, 5)
    assert np.isfinite(got).all()
    longest = max(np.linalg.norm(start.astype(np.float64)), np.linalg.norm(end.astype(np.float64)))
    assert np.linalg.norm(got.astype(np.float64), axis=1).max() <= longest * (1 + 1e-6)
    if not start.any() or not end.any() or len(start) == 1:
        np.testing.assert_array_equal(got, line(start, end, 5))


def test_nearly_equal_directions_give_nearly_a_line() -> None:
    start = point(1)
    end = (start * (1 + 1e-6)).astype(np.float32)
    np.testing.assert_allclose(arc(start, end, 5), line(start, end, 5), rtol=1e-5)


def test_a_traversal_sets_one_dimension_at_a_time() -> None:
    z, values = point(1), np.array([-3, 0, 3], np.float32)
    got = along(z, [4, 0, 4], values).reshape(3, 3, 6)
    assert got.dtype == np.float32
    for run, dim in zip(got, [4, 0, 4], strict=True):
        np.testing.assert_array_equal(run[:, dim], values)
        np.testing.assert_array_equal(np.delete(run, dim, 1), [np.delete(z, dim)] * 3)
    np.testing.assert_array_equal(z, point(1))
