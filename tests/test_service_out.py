"""Out: Accept and format decide, floats are exact in every format, the contact sheet is its single pictures."""

import httpx
import numpy as np
import pytest
from service_answers import answer, as_float32, problem, same_bits
from service_pictures import NPY, PNG, from_base64_png, from_npy, from_png, from_tensors, ink, npy, png

TYPES = {
    "json": "application/json",
    "npy": "application/x-npy",
    "safetensors": "application/x-safetensors",
    "png": "image/png",
}
WRITES = {
    "/encode": {"json", "npy", "safetensors"},
    "/decode": {"json", "npy", "safetensors", "png"},
    "/reconstruct": {"json", "npy", "safetensors", "png"},
    "/sample": {"json", "npy", "safetensors", "png"},
    "/kl": {"json", "safetensors"},
    "/score": {"json", "safetensors"},
}
CHROME = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
    "application/signed-exchange;v=b3;q=0.7"
)
PLAIN = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
IMG = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"


@pytest.fixture(scope="module")
def ask(http: httpx.Client, latent_dim: int):
    """Send one good request to a route, with an Accept (None: no header at all) and a query."""

    def send(route: str, accept: str | None = "*/*", **query: object) -> httpx.Response:
        query = {**({"n": 2, "seed": 9} if route == "/sample" else {}), **query}
        if route == "/score":
            query = {"samples": 4, "seed": 9, **query}
        headers = {} if accept is None else {"Accept": accept}
        if route == "/sample":
            request = http.build_request("GET", route, params=query, headers=headers)
        elif route == "/decode":
            z = np.linspace(-1, 1, 2 * latent_dim, dtype=np.float32).reshape(2, latent_dim)
            request = http.build_request("POST", route, params=query, headers=NPY | headers, content=npy(z))
        else:
            request = http.build_request("POST", route, params=query, headers=PNG | headers, content=png(ink()))
        if accept is None:
            del request.headers["accept"]
        return http.send(request)

    return send


CASES = [(route, form) for route in WRITES for form in TYPES]


@pytest.mark.parametrize(("route", "form"), CASES)
def test_accept_and_format_choose_what_the_table_says(ask, route: str, form: str) -> None:
    by_accept, by_format = ask(route, TYPES[form]), ask(route, "text/csv;q=0.5", format=form)
    if form in WRITES[route]:
        for got in (by_accept, by_format):
            assert got.status_code == 200, got.text
            assert got.headers["content-type"].split(";")[0] == TYPES[form]
            assert "accept" in got.headers["vary"].lower()
        assert by_accept.content == by_format.content
    else:
        for got in (by_accept, by_format):
            detail = problem(got, 406, "not_acceptable")["detail"]
            assert all((TYPES[able] in detail) == (able in WRITES[route]) for able in TYPES), detail


@pytest.mark.parametrize("route", WRITES)
@pytest.mark.parametrize("accept", ["text/html", "image/webp", "application/pdf", "application/json;q=0"])
def test_a_type_that_the_route_cannot_write_is_406_and_lists_what_it_can(ask, route: str, accept: str) -> None:
    if route == "/sample" and accept in {"text/html", "image/webp"}:
        return  # a browser's words: the next tests
    detail = problem(ask(route, accept), 406, "not_acceptable")["detail"]
    assert all(TYPES[form] in detail for form in WRITES[route])


@pytest.mark.parametrize("route", WRITES)
@pytest.mark.parametrize("form", ["bmp", "JSONP", "", "csv"])
def test_a_format_that_nobody_writes_is_refused_and_not_echoed(ask, route: str, form: str) -> None:
    got = ask(route, format=form)
    if form:
        assert got.status_code == 406
        assert form not in problem(got, 406)["detail"].split()
    else:
        assert got.status_code in {200, 406, 422}


@pytest.mark.parametrize("route", WRITES)
@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "application/*", "*/*;q=0.1"])
def test_no_header_and_any_type_mean_json(ask, route: str, accept: str | None) -> None:
    answer(ask(route, accept))


WEIGHED = {
    "application/json;q=0.2, application/x-npy;q=0.9": "npy",
    "application/json;q=0.9, application/x-npy;q=0.2": "json",
    "application/x-npy;q=0, */*": "json",
    "*/*;q=0.1, application/x-npy": "npy",
    "application/x-npy, */*;q=0.1": "npy",
    "application/x-safetensors;q=0.5, application/x-npy;q=0.51": "npy",
    "text/html, application/x-safetensors;q=0.001": "safetensors",
    "APPLICATION/X-NPY": "npy",
    "application/x-npy ; q=1.0 , application/json ; q=0.999": "npy",
    "application/json;q=0, application/x-safetensors;q=0, */*;q=0.5": "npy",
    "application/*;q=0.9, application/json;q=0.1, application/x-npy;q=0.2": "safetensors",
    "application/json;charset=utf-8": "json",
}


@pytest.mark.parametrize("accept", WEIGHED)
def test_q_values_are_weighed(ask, accept: str) -> None:
    got = ask("/encode", accept)
    assert got.status_code == 200, got.text
    assert got.headers["content-type"].split(";")[0] == TYPES[WEIGHED[accept]]


@pytest.mark.parametrize("accept", [accept for accept in WEIGHED if "," in accept])
def test_several_lines_are_one_list(http: httpx.Client, accept: str) -> None:
    headers = [*PNG.items(), *(("Accept", part.strip()) for part in accept.split(","))]
    got = http.post("/encode", headers=headers, content=png(ink()))
    assert len(got.request.headers.get_list("accept")) > 1
    assert got.status_code == 200, got.text
    assert got.headers["content-type"].split(";")[0] == TYPES[WEIGHED[accept]]


@pytest.mark.parametrize(
    "accept", [";;;", ",", "application/json;q=abc", "*", "/", "a" * 5000, "application/json;q=-1"]
)
def test_a_senseless_accept_is_an_answer_or_a_refusal_and_never_a_failure(ask, accept: str) -> None:
    got = ask("/encode", accept)
    if got.status_code != 200:
        assert got.status_code in {400, 406}
        problem(got, got.status_code)


@pytest.mark.parametrize("accept", [CHROME, PLAIN, IMG, "image/*", "image/webp,image/png;q=0.9"])
def test_a_browser_gets_the_picture_from_sample(ask, accept: str) -> None:
    got = ask("/sample", accept, n=64)
    assert got.status_code == 200
    assert got.headers["content-type"] == "image/png"
    assert from_png(got.content).shape == (8 * 28, 8 * 28)


def test_a_browser_that_asks_for_json_gets_json_from_sample(ask) -> None:
    answer(ask("/sample", "application/json"))
    answer(ask("/sample", "application/json, text/plain, */*"))
    answer(ask("/sample", CHROME, format="json"))


@pytest.mark.parametrize("route", ["/decode", "/reconstruct"])
def test_image_any_means_png(ask, route: str) -> None:
    assert ask(route, "image/*").headers["content-type"] == "image/png"


def test_the_floats_of_encode_are_the_same_bits_in_every_format(ask, latent_dim: int) -> None:
    in_json = answer(ask("/encode"))
    in_npy = from_npy(ask("/encode", format="npy").content)
    named = from_tensors(ask("/encode", format="safetensors").content)
    assert set(in_json) == set(named) == {"mu", "sigma"}
    assert in_npy.shape == (2, 1, latent_dim)
    for i, name in enumerate(("mu", "sigma")):
        assert same_bits(as_float32(in_json[name]), in_npy[i])
        assert same_bits(named[name], in_npy[i])


@pytest.mark.parametrize("route", ["/decode", "/reconstruct", "/sample"])
def test_pictures_are_the_same_in_every_format(ask, route: str) -> None:
    in_npy = from_npy(ask(route, format="npy").content)
    named = from_tensors(ask(route, format="safetensors").content)
    assert in_npy.dtype == np.float32
    assert in_npy.shape[1:] == (1, 28, 28)
    assert in_npy.min() >= 0
    assert in_npy.max() <= 1
    assert same_bits(named["images"], in_npy)
    in_json = answer(ask(route))
    for text, pixels in zip(in_json["images"], in_npy[:, 0], strict=True):
        grey = from_base64_png(text)
        assert grey.shape == (28, 28)
        assert grey.dtype == np.uint8
        assert abs(grey - pixels * 255).max() <= 0.5 + 1e-3
    if route == "/sample":
        assert set(named) == {"images", "z"}
        assert same_bits(as_float32(in_json["z"]), named["z"])
        assert in_json["seed"] == 9


@pytest.mark.parametrize("name", ["/kl", "/score"])
def test_the_numbers_of_kl_and_score_are_float32_tensors_of_the_same_fields(ask, name: str) -> None:
    in_json = answer(ask(name))
    named = from_tensors(ask(name, format="safetensors").content)
    fields = {field for field, value in in_json.items() if isinstance(value, list)}
    assert fields <= set(named)
    for field in fields:
        assert named[field].dtype == np.float32
        np.testing.assert_allclose(named[field], np.array(in_json[field]), rtol=1e-6)


def test_one_picture_is_a_png_of_its_own_size(ask, http: httpx.Client) -> None:
    single = from_png(ask("/reconstruct", format="png").content)
    assert single.shape == (28, 28)
    assert np.array_equal(single, from_base64_png(answer(ask("/reconstruct"))["images"][0]))


@pytest.mark.parametrize(
    ("n", "columns", "wide"), [(2, None, 2), (4, None, 2), (5, None, 3), (10, None, 4), (5, 5, 5), (5, 1, 1), (7, 3, 3)]
)
def test_a_contact_sheet_is_its_pictures_row_by_row_without_gaps(ask, n: int, columns: int | None, wide: int) -> None:
    query = {"n": n} | ({} if columns is None else {"columns": columns})
    sheet = from_png(ask("/sample", format="png", **query).content)
    singles = [from_base64_png(text) for text in answer(ask("/sample", n=n))["images"]]
    assert sheet.shape[1] == wide * 28
    rows = -(-n // wide)
    assert sheet.shape[0] in ({rows * 28} if columns else {rows * 28, wide * 28})
    for i, single in enumerate(singles):
        top, left = i // wide * 28, i % wide * 28
        assert np.array_equal(sheet[top : top + 28, left : left + 28], single), i


@pytest.mark.parametrize("route", ["/decode", "/reconstruct"])
def test_decode_and_reconstruct_lay_their_sheet_by_columns_too(http: httpx.Client, latent_dim: int, route: str) -> None:
    x = npy(np.stack([ink(k) for k in (0, 1, 2)]) if route == "/reconstruct" else np.eye(3, latent_dim))
    singles = answer(http.post(route, content=x, headers=NPY))["images"]
    sheet = from_png(http.post(f"{route}?format=png&columns=3", content=x, headers=NPY).content)
    assert np.array_equal(sheet, np.hstack([from_base64_png(text) for text in singles]))


@pytest.mark.parametrize("columns", ["0", "-1", "abc", "1.5", "99999999999999999999"])
def test_columns_is_a_sensible_positive_number(ask, columns: str) -> None:
    got = ask("/sample", format="png", columns=columns)
    assert got.status_code in {413, 422}
    problem(got, got.status_code)
