"""No image file turns out larger than it was taken for before it was decoded, however it is sent."""

import base64
import zlib

import numpy as np
import pytest
from hostile_pictures import png_of
from service_pictures import ink, jpeg, png

from app.claims import from_base64, most_pixels, told_pixels
from app.images_in import LIGHT_PIXELS, from_json

SIDE = 3380


def flat() -> bytes:
    """Return a PNG of one bit a pixel that holds as many pixels as its bytes can."""
    return png_of(SIDE, SIDE, zlib.compress(bytes(SIDE * (1 + (SIDE + 7) // 8)), 9), depth=1)


def broken_up(data: bytes, at: int, space: str) -> str:
    text = base64.b64encode(data).decode()
    return text[:at] + space + text[at:]


@pytest.mark.parametrize("space", ["\n", " ", "\r\n\t ", " " * 40])
@pytest.mark.parametrize("at", range(0, 40))
def test_white_space_in_base64_hides_no_pixels(at: int, space: str) -> None:
    item = broken_up(flat(), at, space)
    assert len(item) < 4096
    assert told_pixels(item) == SIDE * SIDE
    assert most_pixels(item) >= SIDE * SIDE
    assert not from_json([item]).is_light()


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "DATA:;base64,"])
def test_a_whole_head_tells_exactly_what_comes(prefix: str) -> None:
    text = prefix + base64.b64encode(flat()).decode()
    assert most_pixels(text) == most_pixels(flat()) == told_pixels(text) == SIDE * SIDE
    assert from_base64(text) == flat()


@pytest.mark.parametrize("data", [png(ink()), jpeg(ink())])
def test_small_files_are_light_and_never_more_than_was_thought(data: bytes) -> None:
    for item in (data, base64.b64encode(data).decode(), broken_up(data, 3, "\n")):
        assert told_pixels(item) == 28 * 28 <= most_pixels(item)
    assert from_json([base64.b64encode(data).decode()]).is_light()


@pytest.mark.parametrize("item", ["", "no base64!", "é", b"", b"nothing", [[0.5]]])
def test_what_is_no_file_has_no_pixels(item: object) -> None:
    assert told_pixels(item) == 0
    assert most_pixels(item) <= LIGHT_PIXELS


def test_a_crowd_of_them_is_counted_by_what_it_has() -> None:
    items = [broken_up(flat(), 4, "\n")] * 100
    assert from_json(items).pixels(25_000_000, 400_000_000) == 100 * SIDE * SIDE
    assert from_json([np.zeros((2, 2)).tolist()]).pixels(1, 1) == 0
