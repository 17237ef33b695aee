import gc

import numpy as np
import pytest

from app.blocks import Blocks

BIG = 1 << 20


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_that_nobody_holds_any_more_is_used_again():
    blocks = Blocks()
    first = blocks.empty((4, BIG // 16), np.float32)
    assert (first.shape, first.dtype, first.nbytes) == ((4, BIG // 16), np.float32, BIG)
    del first
    (kept,) = blocks._blocks
    name = id(kept)
    del kept
    again = blocks.empty((BIG // 8,), np.float64)
    assert [id(block) for block in blocks._blocks] == [id(again.base)] == [name]


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[3:], lambda x: x[2:3].T, lambda x: x.data.cast("B")[5:9]])
def test_memory_of_which_a_part_is_held_is_not_touched(view):
    blocks = Blocks()
    first = blocks.empty((8, BIG // 8), np.uint8)
    first[:] = 7
    held = view(first)
    del first
    others = [blocks.empty((BIG,), np.uint8) for _ in range(3)]
    for other in others:
        other[:] = 9
    assert len({address(other) for other in others}) == 3
    assert (np.asarray(held) == 7).all()


def test_arrays_in_use_never_share_memory_whatever_their_sizes():
    random, blocks, held = np.random.default_rng(0), Blocks(4 * BIG), {}
    for step in range(2_000):
        size = int(random.integers(1, 3 * BIG))
        held[step] = blocks.empty((size,), np.uint8)
        held[step][[0, -1]] = step % 251
        for name in random.choice(list(held), max(0, len(held) - 6), replace=False):
            del held[name]
        assert all((array[[0, -1]] == name % 251).all() for name, array in held.items())


def test_small_arrays_and_huge_ones_are_new_ones():
    blocks = Blocks(BIG)
    for shape in ((10,), (0, 4), (2 * BIG,)):
        array = blocks.empty(shape, np.uint8)
        assert array.shape == shape
        assert array.base is None


@pytest.mark.parametrize("sizes", [[BIG] * 20, [BIG, 3 * BIG, BIG // 2] * 7])
def test_no_more_is_kept_than_was_said(sizes):
    blocks = Blocks(4 * BIG)
    for size in sizes:
        held = [blocks.empty((size,), np.uint8) for _ in range(6)]
        assert kept(blocks) <= 4 * BIG
        del held
    assert BIG < kept(blocks) <= 4 * BIG


def test_blocks_of_other_sizes_make_room_when_they_are_free():
    blocks = Blocks(4 * BIG)
    assert len([blocks.empty((BIG,), np.uint8) for _ in range(4)]) == 4
    large = blocks.empty((3 * BIG,), np.uint8)
    assert blocks._blocks[-1] is large.base
    assert kept(blocks) == 4 * BIG


def test_free_blocks_stay_where_dropping_them_would_not_make_room_enough():
    blocks = Blocks(4 * BIG)
    held = blocks.empty((3 * BIG,), np.uint8)
    blocks.empty((BIG,), np.uint8)
    assert blocks.empty((2 * BIG,), np.uint8).base is None
    assert [block.nbytes for block in blocks._blocks] == [3 * BIG, BIG]
    assert blocks.empty((BIG,), np.uint8).base is blocks._blocks[1]
    assert len(held) == 3 * BIG


def kept(blocks):
    gc.collect()
    return sum(block.nbytes for block in blocks._blocks)
