"""The page at ``/`` in a real browser, on a real server with the real weights: what a person does, and sees."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from page_actions import Open, after_change, alike, draw, posterior, seen
from PIL import Image
from playwright.sync_api import Page, Route, expect
from service_pictures import digit, png

from model.pixels import read_file

pytest_plugins = ["page_fixtures"]
pytestmark = pytest.mark.page


def hand_over(page: Page, event: str, name: str, data: bytes, kind: str) -> None:
    """Drop or paste a file."""
    script = """([event, name, base64, type]) => {
      const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
      const data = new DataTransfer();
      data.items.add(new File([bytes], name, { type }));
      const init = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
      document.body.dispatchEvent(event === "paste" ? new ClipboardEvent(event, init) : new DragEvent(event, init));
    }"""
    page.evaluate(script, [event, name, base64.b64encode(data).decode(), kind])


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter when shown
    return exif


def test_drawing_with_the_mouse_changes_the_posterior_to_that_of_the_drawing(page: Page, http: httpx.Client) -> None:
    before = posterior(page)
    after_change(page, lambda: draw(page, 2))  # replaces the example that came by itself
    drawn, after = seen(page), posterior(page)
    assert (drawn.max(), drawn[0].max()) == (255, 0)
    assert not np.allclose(before["mu"], after["mu"], atol=0.1)
    answer = http.post("/encode", content=png(drawn), headers={"Content-Type": "image/png"}).json()
    assert alike({"mu": after["mu"], "sigma": after["sigma"]}, {"mu": answer["mu"][0], "sigma": answer["sigma"][0]})
    first = page.locator("#posterior-rows > div").first
    d = int(np.argmax(after["kl"]))
    expect(first).to_have_text(f"z{d}{after['kl'][d]:.2f}")


def test_undo_clear_and_invert_do_what_they_say_and_an_empty_pad_asks_nothing(page: Page) -> None:
    after_change(page, lambda: draw(page, 7))
    drawn = seen(page)
    after_change(page, page.get_by_role("button", name="Invert").click)
    assert np.abs(255 - seen(page).astype(int) - drawn).max() <= 1  # halves are rounded up, in both
    after_change(page, page.get_by_role("button", name="Undo").click)
    assert (seen(page) == drawn).all()
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#posterior")).to_have_class(re.compile("empty"))
    expect(page.get_by_text("Draw a digit here")).to_be_visible()
    assert seen(page).max() == 0
    assert page.get_by_role("button", name="Mean of the input").is_disabled()
    after_change(page, page.get_by_role("button", name="Example 3").click)
    expect(page.locator("#posterior-chart")).to_be_visible()


def test_a_chosen_a_dropped_and_a_pasted_file_reach_the_model_pixel_by_pixel(page: Page) -> None:
    def choose(data: bytes) -> None:
        page.set_input_files("#file", {"name": "digit.png", "mimeType": "image/png", "buffer": data})

    def give(event: str) -> Callable[[bytes], None]:
        return lambda data: hand_over(page, event, "digit.png", data, "image/png")

    for kind, way in [(7, choose), (4, give("drop")), (1, give("paste"))]:
        after_change(page, lambda way=way, kind=kind: way(png(digit(kind))))
        assert (seen(page) == digit(kind)).all()
    hand_over(page, "drop", "notes.txt", b"no picture", "text/plain")
    expect(page.locator("#input .problem")).to_have_text("The browser cannot read notes.txt as a picture.")
    assert (seen(page) == digit(1)).all()


def test_a_large_file_is_prepared_as_the_service_does_it(page: Page) -> None:
    gray = Image.fromarray(digit(4)).resize((300, 300), Image.Resampling.BICUBIC)
    wide = Image.new("RGBA", (500, 300), (0, 255, 0, 0))
    wide.paste(Image.merge("RGBA", (gray, gray, gray, gray.point(lambda value: 255))), (100, 0))
    file = io.BytesIO()
    wide.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=turned())
    after_change(page, lambda: hand_over(page, "drop", "wide.png", file.getvalue(), "image/png"))
    ours = read_file(file.getvalue(), (1, 28, 28), max_pixels=10**6)[0].astype(int)
    assert np.abs(seen(page) - ours).max() < 40
    assert np.abs(seen(page) - ours).mean() < 3


def test_thirty_key_presses_give_few_requests_and_the_right_last_image(page: Page, http: httpx.Client) -> None:
    held: list[Route] = []
    bodies: list[dict[str, Any]] = []

    def hold_the_first(route: Route) -> None:
        bodies.append(route.request.post_data_json)
        if len(bodies) == 1:
            held.append(route)
        else:
            route.continue_()

    page.route("**/decode", hold_the_first)
    slider = page.locator("#slider-rows input[type=range]").first
    start = float(slider.input_value())
    slider.focus()
    for _ in range(30):
        page.keyboard.press("ArrowLeft" if start > 0 else "ArrowRight")
    assert len(bodies) == 1
    with page.expect_request("**/decode"):
        held[0].continue_()
    value = float(slider.input_value())
    assert abs(value - start) > 1.4
    assert value in bodies[1]["z"][0]
    image = http.post("/decode", json=bodies[1]).json()["images"][0]
    expect(page.locator("#decoded")).to_have_attribute("src", f"data:image/png;base64,{image}")
    expect(page.locator("#slider-rows input[type=number]").first).to_have_value(f"{value:.2f}")
    expect(slider).to_have_attribute("aria-valuetext", f"{value:.2f}".replace("-", "−"))
    assert len(bodies) == 2


def test_an_address_with_seed_and_latents_shows_the_same_again(page: Page, open_page: Open) -> None:
    page.get_by_label("Seed").fill("9223372036854775807")
    page.get_by_label("Number", exact=True).fill("4")
    expect(page.locator("#sample-grid button")).to_have_count(4)
    page.locator("#sample-grid button").nth(2).click()
    sample = page.locator("#sample-grid img").nth(2).get_attribute("src") or ""
    expect(page.locator("#decoded")).to_have_attribute("src", sample)
    expect(page).to_have_url(re.compile("#n=4&temperature=1&seed=9223372036854775807&z="))
    again = open_page(urlsplit(page.url)._replace(scheme="", netloc="", path="").geturl())
    expect(again.locator("#decoded")).to_have_attribute("src", sample)
    expect(again.locator("#sample-grid img").nth(2)).to_have_attribute("src", sample)
    again.evaluate("location.hash = 'n=2&seed=5'")
    expect(again.locator("#sample-grid button")).to_have_count(2)


def test_samples_are_saved_as_picture_and_as_numbers(page: Page) -> None:
    page.get_by_label("Number", exact=True).fill("6")
    expect(page.locator("#sample-grid button")).to_have_count(6)
    files = {}
    for form in ("PNG", "npy"):
        with page.expect_download() as download:
            page.locator("#samples").get_by_role("button", name=f"Save as {form}").click()
        assert download.value.suggested_filename == f"samples-seed-7.{form.lower()}"
        files[form] = Path(download.value.path()).read_bytes()
    assert Image.open(io.BytesIO(files["PNG"])).size == (3 * 28, 2 * 28)
    assert np.load(io.BytesIO(files["npy"])).shape == (6, 1, 28, 28)
    page.locator("#sample-grid button").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.firstChild.alt") == "Sample 2"
    page.get_by_label("Seed").fill("seven")
    assert page.evaluate("document.getElementById('seed').validationMessage").startswith("A seed is a whole number")
    page.get_by_role("button", name="Roll again").click()
    expect(page.get_by_label("Seed")).to_have_value(re.compile(r"^\d+$"))
    expect(page.locator("#sample-grid button")).to_have_count(6)
