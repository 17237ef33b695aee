"""The page's map, walks and programs in a real browser: latent space explored with mouse and keys, requests run."""

import io
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from page_actions import Open, after_change, alike, copied, draw, pictures, settled
from PIL import Image
from playwright.sync_api import Page, Request, Response, expect
from service_pictures import from_base64_png

pytest_plugins = ["page_fixtures"]
pytestmark = pytest.mark.page
JSON = "application/json"
RUNNERS = {"curl": ["sh", "-c"], "Python": [sys.executable, "-c"], "JavaScript": ["node", "-e"]}


def bodies(page: Page, path: str) -> list[Any]:
    """Return a list that fills with the bodies of what the page posts to ``path``, query included."""
    sent: list[Any] = []

    def note(request: Request) -> None:
        if request.url.endswith(path):
            sent.append(request.post_data_json)

    page.on("request", note)
    return sent


def show_map(page: Page) -> None:
    """Bring the map into sight, and wait for the lattice that it asks for then."""
    with page.expect_response("**/decode?columns=15*"):
        page.locator("#map").scroll_into_view_if_needed()
    expect(page.locator("#map .problem")).to_be_hidden()


def show_traversal(page: Page) -> None:
    page.locator("#traversal").scroll_into_view_if_needed()
    expect(page.locator("#traversal-grid button")).to_have_count(12 * 7)


def latents(page: Page) -> np.ndarray:
    """Return z as the sliders have it, ``(D,)``, to two digits."""
    page.get_by_label("All dimensions").first.check()
    fields = page.locator("#slider-rows > div").evaluate_all(
        "rows => rows.map((row) => [Number(row.children[0].textContent.slice(1)), row.children[2].valueAsNumber])"
    )
    return np.array([value for _, value in sorted(fields)])


def test_the_map_is_painted_with_one_lattice_and_tells_in_words_where_the_input_lies(page: Page) -> None:
    lattices = bodies(page, "/decode?columns=15&format=png")
    show_map(page)
    expect(page.locator("#map-place")).to_have_text(re.compile(r"^−?\d\.\d\d, −?\d\.\d\d: near a \d$"))
    assert [np.shape(body["z"]) for body in lattices] == [(225, 32)]
    expect(page.locator("#map-canvas")).to_have_attribute("data-painted", "2000")
    painted = page.evaluate("document.getElementById('map-canvas').toDataURL().split(',')[1]")
    colors = from_base64_png(painted)[..., :3].astype(int)
    assert ((np.ptp(colors, axis=2) > 60).sum(axis=(0, 1))) > 20_000  # dots are colored, the lattice is gray
    assert 10 < colors[np.ptp(colors, axis=2) == 0].mean() < 120
    expect(page.locator("#map-legend li")).to_have_text([str(label) for label in range(10)])
    expect(page.locator("#map-near")).to_have_text(re.compile(r"^The 10 nearest to the input: \d(, \d){9}\.$"))
    page.get_by_role("checkbox", name="Held-out images").uncheck()
    expect(page.locator("#map-canvas")).to_have_attribute("data-painted", "0")
    assert len(lattices) == 1


def test_a_drawn_zero_lies_among_zeros(page: Page) -> None:
    show_map(page)
    page.locator("#pad").scroll_into_view_if_needed()
    after_change(page, lambda: draw(page, 0))
    near = page.locator("#map-near").inner_text()
    assert near.removeprefix("The 10").count("0") > 7


def test_any_place_on_the_map_is_decoded_by_mouse_or_keys_and_gives_its_latent_to_the_sliders(
    page: Page, http: httpx.Client
) -> None:
    show_map(page)
    decoded = bodies(page, "/decode")
    with page.expect_response("**/decode"):
        page.locator("#map-field").hover(position={"x": 60, "y": 200})
    expect(page.locator("#map-place")).to_have_text(re.compile("^−"))
    image = http.post("/decode", json=decoded[-1]).json()["images"][0]
    expect(page.locator("#map-decoded")).to_have_attribute("src", f"data:image/png;base64,{image}")
    page.locator("#map-field").click(position={"x": 60, "y": 200})
    expect(page).to_have_url(re.compile("&z="))
    assert np.abs(latents(page) - decoded[-1]["z"][0]).max() < 0.0051

    across = page.get_by_label("Across").last
    before, count = float(across.input_value()), len(decoded)
    across.focus()
    with page.expect_request("**/decode"):
        page.keyboard.press("ArrowRight")
    assert float(across.input_value()) == pytest.approx(before + 0.02)
    assert (across.get_attribute("aria-valuetext") or "") in page.locator("#map-place").inner_text()
    page.get_by_role("button", name="Take this z").click()
    assert len(decoded) > count
    assert np.abs(latents(page) - decoded[count]["z"][0]).max() < 0.0051


def test_the_map_turns_to_two_dimensions_which_the_address_keeps_and_goes_through_z(
    page: Page, open_page: Open, http: httpx.Client
) -> None:
    show_map(page)
    lattices = bodies(page, "/decode?columns=15&format=png")
    with page.expect_response("**/decode?columns=15*"):
        page.locator("#map-x").select_option("z24")
    expect(page.locator("#map-y")).to_be_visible()
    first, second = 24, int(page.locator("#map-y").input_value())
    expect(page).to_have_url(re.compile(f"dims=24%2C{second}"))
    z, mean = np.array(lattices[-1]["z"]), np.array(http.get("/map").json()["mean"])
    assert (np.ptp(np.delete(z, [first, second], axis=1), axis=0) == 0).all()
    assert np.abs(np.delete(z, [first, second], axis=1)[0] - np.delete(mean, [first, second])).max() < 1e-4
    assert (np.diff(z[:15, first]) > 0).all()
    assert (np.diff(z[::15, second]) < 0).all()

    with page.expect_response("**/decode?columns=15*"):
        page.get_by_label("Plane through z").check()
    rest = np.delete(latents(page), [first, second])
    assert np.abs(np.delete(lattices[-1]["z"][0], [first, second]) - rest).max() < 0.0051

    again = settled(open_page(f"#{urlsplit(page.url).fragment}"))
    show_map(again)
    assert [again.locator(name).input_value() for name in ("#map-x", "#map-y")] == [str(first), str(second)]


def test_an_interpolation_leads_from_the_input_to_the_end_that_one_chose(page: Page, http: httpx.Client) -> None:
    expect(page.locator("#strip button")).to_have_count(9)  # it is in sight from the beginning
    sent = bodies(page, "/interpolate")
    page.locator("#sample-grid button").nth(2).click()
    chosen = page.locator("#sample-grid img").nth(2).get_attribute("src")
    with page.expect_response("**/interpolate"):
        page.get_by_role("group", name="B, the end").get_by_role("button", name="Sliders").click()
    with page.expect_response("**/interpolate"):
        page.get_by_role("spinbutton", name="Steps").fill("5")
    expect(page.locator("#strip button")).to_have_count(5)
    expect(page.locator("#strip img").last).to_have_attribute("src", str(chosen))
    with page.expect_response("**/interpolate"):
        page.get_by_label("Path").select_option("linear")
    assert (sent[-1]["steps"], sent[-1]["path"], sent[0]["path"]) == (5, "linear", "spherical")
    ends = http.post("/decode", json={"z": [sent[-1]["from"], sent[-1]["to"]]}).json()["images"]
    assert alike([pictures(page, "#strip")[i] for i in (0, -1)], ends)

    page.locator("#strip button").nth(3).click()
    expect(page.locator("#frame")).to_have_attribute("src", str(page.locator("#strip img").nth(3).get_attribute("src")))
    middle = np.array(sent[-1]["from"]) * 0.25 + np.array(sent[-1]["to"]) * 0.75
    assert np.abs(latents(page) - middle).max() < 0.0051
    page.get_by_role("button", name="Play").click()
    expect(page.locator("#strip button").first).to_have_class(re.compile("now"))
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Play")).to_be_visible()


def test_a_traversal_has_a_row_for_each_of_the_dimensions_that_say_most(page: Page, http: httpx.Client) -> None:
    show_traversal(page)
    order = np.argsort(-np.array(http.get("/map").json()["kl_per_dimension"]), kind="stable")
    assert page.locator("#traversal-rows span").all_inner_texts() == [f"z{d}" for d in order[:12]]
    before = latents(page)
    with page.expect_response("**/traverse"):
        page.get_by_role("button", name=f"z{order[1]} = −2.00").click()
    before[order[1]] = -2
    assert np.abs(latents(page) - before).max() < 0.0051
    expect(page.get_by_role("button", name=f"z{order[1]} = −2.00")).to_have_class("now")
    with page.expect_response("**/traverse"):
        page.get_by_label("All dimensions").last.check()
    expect(page.locator("#traversal-grid button")).to_have_count(32 * 7)


def test_without_a_map_its_panel_says_why_and_the_others_go_on(open_page: Open) -> None:
    problem = {"status": 404, "code": "no_map", "detail": "this model has no map"}

    def without(page: Page) -> None:
        page.route("**/map", lambda route: route.fulfill(status=404, body=json.dumps(problem)))

    page = settled(open_page(foreseen="404", prepare=without))
    expect(page.locator("#map .problem")).to_have_text("this model has no map")
    expect(page.locator("#map .content")).to_be_hidden()
    show_traversal(page)


def test_every_program_that_is_copied_runs_and_gives_the_answer_of_its_panel(
    open_page: Open, http: httpx.Client, tmp_path: Path
) -> None:
    answers: list[Response] = []
    page = settled(open_page(prepare=lambda page: page.on("response", lambda answer: answers.append(answer))))
    show_map(page)
    show_traversal(page)
    page.locator("#pad").scroll_into_view_if_needed()
    after_change(page, lambda: draw(page, 2))
    with page.expect_download():
        page.get_by_role("button", name="Save as PNG").click()
    page.wait_for_load_state("networkidle")
    for summary in page.get_by_text("Show request").all():
        summary.click()
    expect(page.locator(".entry")).to_have_count(14)
    programs = []
    for language in RUNNERS:
        page.locator("#input").get_by_role("button", name=language, exact=True).click()
        expect(page.locator(f"#traversal pre[aria-label$='{language}']")).to_be_visible()
        for i, entry in enumerate(page.locator(".entry").all()):
            folder = tmp_path / f"{language}-{i}"
            folder.mkdir()
            programs.append((language, copied(entry.locator("button")), folder))
    with ThreadPoolExecutor(2) as threads:
        outputs = list(threads.map(run, programs))
    for (language, program, folder), output in zip(programs, outputs, strict=True):
        wanted = next(one for one in reversed(answers) if asks(program, one))
        files = list(folder.iterdir())
        if files:  # the browser hands no blob on, so what it asked is asked again
            sent = wanted.request
            again = http.request(sent.method, sent.url, content=sent.post_data, headers={"Content-Type": JSON})
            one, other = (np.asarray(Image.open(io.BytesIO(data))) for data in (files[0].read_bytes(), again.content))
            assert np.abs(one.astype(int) - other).max() <= 1, (language, program)
        else:
            assert alike(json.loads(output), wanted.json()), (language, program)
    asked = {named(program).partition("?")[0] for _, program, _ in programs}
    images = {"/encode", "/kl", "/reconstruct", "/score"}
    assert asked == {"/sample", "/decode", "/map", "/interpolate", "/traverse"} | images


def asks(program: str, answer: Response) -> bool:
    """Tell whether a program asks what the page asked when it got this answer."""
    return named(program) == named(answer.url) and (answer.request.post_data or "") in program


def named(text: str) -> str:
    """Return path and query of the first address of the service in a text."""
    found = re.search(r"https?://[\d.:]+(/[^\s'\"]*)", text)
    assert found
    return found[1]


def run(task: tuple[str, str, Path]) -> bytes:
    language, program, folder = task
    env = os.environ | {"NO_COLOR": "1"}
    return subprocess.run(
        [*RUNNERS[language], program], check=True, capture_output=True, timeout=120, cwd=folder, env=env
    ).stdout
