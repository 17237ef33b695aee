"""What tests do on the page at ``/``: wait, draw, copy, and read off what it shows."""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect
from service_pictures import STROKES, from_base64_png

Open = Callable[..., Page]


def settled(page: Page) -> Page:
    """Wait until the first picture was scored and the sliders show it."""
    expect(page.locator("#percentile")).not_to_have_text("–")
    expect(page.locator("#decoded")).to_have_attribute("src", re.compile("^data:"))
    return page


def after_change(page: Page, change: Callable[[], object]) -> None:
    """Change the picture, and wait for the answers that come last: the sliders' and the score."""
    with page.expect_response("**/decode"), page.expect_response("**/score*"):
        change()
    expect(page.locator("#scores")).not_to_have_class(re.compile("stale"))


def draw(page: Page, kind: int) -> None:
    box = page.locator("#pad").bounding_box()
    assert box
    points = [(box["x"] + x / 28 * box["width"], box["y"] + y / 28 * box["height"]) for x, y in STROKES[kind]]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()


def copied(button: Locator) -> str:
    """Press a button that copies, and return what is in the clipboard then."""
    button.click()
    expect(button).to_have_text("Copied")
    text = button.page.evaluate("navigator.clipboard.readText()")
    assert isinstance(text, str)
    return text


def posterior(page: Page) -> dict[str, list[float]]:
    parsed = json.loads(copied(page.locator("#posterior .tools button").last))
    assert isinstance(parsed, dict)
    return parsed


def seen(page: Page) -> np.ndarray:
    """Return the picture that the page says the model sees, ``(28, 28)`` uint8."""
    colors = from_base64_png(str(page.locator("#seen-file").get_attribute("href")).partition(",")[2])[..., :3]
    assert (colors == colors[..., :1]).all()
    return colors[..., 0]


def pictures(page: Page, gallery: str) -> list[str]:
    """Return the PNGs of a gallery, in base64."""
    sources = page.locator(f"{gallery} img").evaluate_all("images => images.map((image) => image.src)")
    return [str(source).partition(",")[2] for source in sources]


def alike(one: Any, other: Any) -> bool:
    """Tell whether two answers are the same: numbers to five digits or so, pictures to one gray level."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(alike(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, str) and one != other:
        return bool(np.abs(from_base64_png(one).astype(int) - from_base64_png(other)).max() <= 1)
    return one == other or one == pytest.approx(other, rel=1e-4, abs=1e-4)
