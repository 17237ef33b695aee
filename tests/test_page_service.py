"""The page and the service in a real browser: requests shown, refusals, keys, ``/docs``; and that all can use it."""

import html
import json
import re
import subprocess
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from page_actions import Open, after_change, seen, settled
from playwright.sync_api import Page, Route, expect
from service_process import Server

pytest_plugins = ["page_fixtures"]
pytestmark = pytest.mark.page
INDEX = Path(__file__).resolve().parent.parent / "app" / "static" / "index.html"
KEY = "a key of the test, long enough"


def violations(page: Page) -> list[str]:
    """Return what axe finds wrong: rule and element."""
    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html']}" for rule in found for node in rule["nodes"]]


def test_a_request_is_shown_with_its_status_and_its_times(page: Page) -> None:
    page.locator("#posterior").get_by_text("Show request").click()
    expect(page.locator("#posterior .entry p").first).to_have_text(
        re.compile("^200 in .* ms: .* in line, .* on the device, .* in the service$")
    )
    expect(page.locator("#posterior pre").first).to_contain_text("curl -s")
    page.locator("#posterior").get_by_role("button", name="Python").click()
    expect(page.locator("#posterior pre").first).to_contain_text("from urllib.request import")
    page.locator("#reconstruction").get_by_text("Show request").click()
    expect(page.locator("#reconstruction pre").first).to_contain_text("from urllib.request import")
    expect(page.get_by_role("button", name="Python").first).to_have_attribute("aria-pressed", "true")


def test_the_card_of_the_model_tells_what_was_measured(page: Page, http: httpx.Client) -> None:
    page.get_by_text("Model card").click()
    measured = http.get("/model").json()["metrics"]
    expect(page.locator("#card")).to_contain_text(f"negative elbo{measured['negative_elbo']:.3f}")
    expect(page.locator("#card")).to_contain_text(f"images{measured['images']}")


def test_a_complaint_is_shown_in_the_words_of_the_service_and_a_full_queue_is_asked_again(open_page: Open) -> None:
    problems = [
        {"status": 429, "detail": "the queue is full", "retry_after_ms": 30},
        {"status": 422, "detail": "got a picture of a cat"},
    ]

    def refuse(route: Route) -> None:
        problem = problems.pop(0) if problems else None
        if not problem:
            return route.continue_()
        headers = {"X-Request-ID": "the-id", "Content-Type": "application/problem+json"}
        return route.fulfill(status=int(str(problem["status"])), headers=headers, body=json.dumps(problem))

    page = open_page(foreseen="429|422", prepare=lambda page: page.route("**/encode", refuse))
    complaint = page.locator("#posterior .problem")
    expect(complaint).to_have_text("got a picture of a cat Request the-id")  # the 429 was asked again, and got the 422
    expect(page.locator("#reconstruction .problem")).to_be_hidden()
    after_change(page, page.get_by_role("button", name="Example 2").click)
    expect(complaint).to_be_hidden()


def test_under_a_learned_prior_the_kl_is_drawn_by_a_seed_and_each_dimension_has_its_own(open_page: Open) -> None:
    asked: list[str] = []

    def learned(route: Route) -> None:
        answer = route.fetch()
        asked.append(route.request.url)
        kept = {name: part for name, part in answer.json().items() if name != "per_dimension"}
        route.fulfill(response=answer, json=kept | ({"prior": "realnvp"} if "prior" in kept else {}))

    page = settled(open_page(prepare=lambda page: page.route(re.compile(r"/(model|kl)(\?.*)?$"), learned)))
    assert asked[-1].endswith("/kl?seed=0")
    expect(page.locator("#posterior-summary")).to_have_text(
        re.compile(r"^2\d of 32 dimensions active; KL \d+\.\d\d nats$")
    )


def test_an_answer_from_other_weights_is_noticed(page: Page) -> None:
    def other(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, headers=answer.headers | {"x-model-digest": "0" * 16})

    page.route(re.compile(r"/(decode|interpolate|traverse)$"), other)  # whatever is asked for the new z
    page.get_by_role("button", name="Zero").click()
    expect(page.get_by_text("The service runs other weights now")).to_be_visible()


def test_a_page_that_loses_the_service_says_so_and_goes_on_when_it_is_back(open_page: Open) -> None:
    page = settled(open_page(foreseen="ERR_INTERNET_DISCONNECTED"))
    page.context.set_offline(True)
    page.get_by_role("button", name="Invert").click()
    expect(page.locator("#readiness")).to_have_text("unreachable")
    expect(page.locator("#posterior .problem")).to_contain_text("cannot be reached")
    inverted = seen(page)
    page.context.set_offline(False)
    expect(page.locator("#readiness")).to_have_text("ready")
    for panel in ("#posterior", "#reconstruction"):
        expect(page.locator(f"{panel} .problem")).to_be_hidden()
    assert (seen(page) == inverted).all()


def test_a_key_that_the_service_wants_is_asked_for_and_kept_in_the_tab(open_page: Open) -> None:
    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == f"Bearer {KEY}":
            return route.continue_()
        problem = {"detail": "a wrong key" if "authorization" in route.request.headers else "no key"}
        return route.fulfill(status=401, content_type="application/problem+json", body=json.dumps(problem))

    def guarded(page: Page) -> None:
        page.route(re.compile(r"/(model|sample|encode|decode|kl|score|reconstruct)(\?.*)?$"), guard)

    page = open_page(foreseen="401", prepare=guarded)
    field = page.get_by_label("This service wants a key")
    expect(field).to_be_focused()
    expect(page.locator("#key-problem")).to_be_hidden()
    field.fill("wrong")
    field.press("Enter")
    expect(page.locator("#key-problem")).to_have_text("a wrong key")
    field.fill(KEY)
    page.get_by_role("button", name="Use it").click()
    settled(page)
    expect(field).to_be_hidden()
    page.locator("#sliders summary").click()
    expect(page.locator("#sliders pre")).to_contain_text('-H "Authorization: Bearer $VAE_API_KEY"')
    with page.expect_download():
        page.get_by_role("button", name="Save as npy").click()
    page.reload()
    settled(page)
    assert KEY not in page.content()
    assert page.evaluate("[localStorage.length, document.cookie.length]") == [0, 0]
    page.get_by_role("button", name="Forget the key").click()
    expect(field).to_be_focused()


def test_axe_finds_nothing_in_any_panel_in_any_size_and_color_scheme(page: Page) -> None:
    page.emulate_media(reduced_motion="reduce")
    for summary in page.locator("summary").all():
        summary.click()  # which brings every panel into sight
    expect(page.locator("#map-place")).not_to_be_empty()
    expect(page.locator("#traversal-grid button").first).to_be_visible()
    for width, height in [(1280, 800), (390, 844)]:
        page.set_viewport_size({"width": width, "height": height})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert violations(page) == [], (width, scheme)
    page.get_by_role("button", name="Show table").click()
    expect(page.locator("#posterior-table tbody tr").first).to_be_visible()
    assert violations(page) == []


def test_pictures_of_the_page_in_every_size_and_color_scheme(page: Page, tmp_path: Path) -> None:
    for width, height in [(1280, 800), (390, 844), (320, 568), (640, 400)]:  # the last: 1280 x 800 at 200 %
        page.set_viewport_size({"width": width, "height": height})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.screenshot(path=tmp_path / f"{width}x{height}-{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") == width
    page.emulate_media(forced_colors="active")
    page.screenshot(path=tmp_path / "forced-colors.png", full_page=True)
    assert len(list(tmp_path.iterdir())) == 9


def test_without_javascript_three_lines_tell_what_to_do_and_they_run(server: Server, tmp_path: Path) -> None:
    text = re.search(r"<noscript>.*<pre>(.*?)</pre>", INDEX.read_text(), re.DOTALL)
    assert text
    script = html.unescape(text[1]).replace("http://localhost:8000", server.url)
    assert len(script.splitlines()) == 3
    out = subprocess.run(["sh", "-ec", script], cwd=tmp_path, capture_output=True, check=True, timeout=60).stdout
    encoded, score = re.findall(rb"\{.*?\}", out)
    assert len(json.loads(encoded)["mu"]) == len(json.loads(score)["percentile"]) == 1


def test_the_reference_lists_every_operation_and_tries_one_out(open_page: Open, http: httpx.Client) -> None:
    page = open_page("docs")
    paths = http.get("/openapi.json").json()["paths"]
    expect(page.locator(".opblock")).to_have_count(sum(len(operations) for operations in paths.values()))
    sample = page.locator(".opblock", has=page.locator("[data-path='/sample']"))
    sample.locator("button").first.click()
    sample.get_by_role("button", name="Execute").click()
    expect(sample.locator(".live-responses-table td.response-col_status").last).to_have_text("200")
    expect(sample.locator(".live-responses-table")).to_contain_text('"seed"')
