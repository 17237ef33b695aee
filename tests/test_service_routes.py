"""Routes through a real server: the table, the /v1 twins, HEAD, wrong paths and methods, docs without internet."""

import re
from urllib.parse import urljoin

import httpx
import pytest
from service_answers import GET_ROUTES, POST_ROUTES, problem, strict_json
from service_pictures import JSON, NPY, PNG, from_npy, ink, npy, png

IMAGE_ROUTES = ("/encode", "/reconstruct", "/kl")
ASSET = re.compile(r"""(?:src|href)\s*=\s*["']([^"'#]+)["']""")
EXTERNAL = re.compile(r"""(?:src|href|action)\s*=\s*["']?(?:https?:)?//|(?:url|import|fetch)\(\s*["']?https?://""")


@pytest.mark.parametrize("route", IMAGE_ROUTES)
def test_an_image_route_answers_the_same_under_v1(http: httpx.Client, route: str) -> None:
    body = png(ink())
    plain, twin = (http.post(path, content=body, headers=PNG) for path in (route, f"/v1{route}"))
    assert plain.status_code == twin.status_code == 200
    assert plain.content == twin.content
    assert plain.headers["content-type"] == twin.headers["content-type"]


def test_score_answers_the_same_under_v1(http: httpx.Client) -> None:
    paths = ("/score?samples=8&seed=1", "/v1/score?samples=8&seed=1")
    plain, twin = (http.post(path, content=png(ink()), headers=PNG) for path in paths)
    assert plain.status_code == twin.status_code == 200
    assert plain.content == twin.content


def test_decode_answers_the_same_under_v1(http: httpx.Client, latent_dim: int) -> None:
    body = {"z": [[0.25] * latent_dim]}
    plain, twin = (http.post(path, json=body) for path in ("/decode", "/v1/decode"))
    assert plain.status_code == twin.status_code == 200
    assert plain.content == twin.content


@pytest.mark.parametrize("route", ["/sample?n=2&seed=5", *GET_ROUTES[1:]])
def test_a_get_route_answers_under_v1_too(http: httpx.Client, route: str) -> None:
    plain, twin = http.get(route), http.get(f"/v1{route}")
    assert plain.status_code == twin.status_code == 200
    assert plain.headers["content-type"] == twin.headers["content-type"]
    if route != "/metrics" and not route.startswith("/docs"):
        assert plain.content == twin.content


def test_the_openapi_document_lists_every_route_of_the_table_and_no_v1_twin(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    assert not [path for path in document["paths"] if path.startswith("/v1")]
    for route in POST_ROUTES:
        assert "post" in document["paths"][route], route
    for route in ("/sample", "/model", "/livez", "/readyz", "/metrics"):
        assert "get" in document["paths"][route], route


def test_the_openapi_document_names_every_type_that_images_may_come_in(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    for route in ("/encode", "/reconstruct", "/score", "/kl"):
        content = document["paths"][route]["post"]["requestBody"]["content"]
        assert {"image/png", "image/jpeg", "multipart/form-data", "application/json"} <= set(content), route
        assert {"application/x-npy", "application/x-safetensors"} <= set(content), route


@pytest.mark.parametrize("path", ["/nothing", "/encode/", "/v1", "/v2/encode", "/v1/v1/encode", "/%2e%2e/etc/passwd"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_404(http: httpx.Client, path: str, method: str) -> None:
    problem(http.request(method, path), 404, "not_found")


def test_an_unknown_path_is_not_echoed(http: httpx.Client) -> None:
    assert "zebra" not in http.get("/zebra-42").text


def test_an_unknown_static_file_and_a_path_that_climbs_out_are_404(http: httpx.Client) -> None:
    problem(http.get("/static/nothing.js"), 404)
    problem(http.get("/static/..%2f..%2fpyproject.toml"), 404)
    problem(http.get("/static/%2e%2e/%2e%2e/pyproject.toml"), 404)


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize("route", POST_ROUTES)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"])
def test_another_method_than_post_is_405_and_allow_names_post(
    http: httpx.Client, prefix: str, route: str, method: str
) -> None:
    answer = http.request(method, prefix + route)
    problem(answer, 405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]


def test_a_method_that_nobody_knows_is_an_error_of_the_same_form(http: httpx.Client) -> None:
    answer = http.request("BREW", "/encode")
    assert answer.status_code in {400, 405}
    problem(answer, answer.status_code)


@pytest.mark.parametrize("route", GET_ROUTES)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_another_method_than_get_is_405_and_allow_names_get_and_head(
    http: httpx.Client, route: str, method: str
) -> None:
    answer = http.request(method, route)
    problem(answer, 405, "method_not_allowed")
    assert {"GET", "HEAD"} <= {word.strip() for word in answer.headers["allow"].split(",")}


@pytest.mark.parametrize("route", POST_ROUTES)
def test_head_of_a_post_route_is_405_without_a_body(http: httpx.Client, route: str) -> None:
    answer = http.head(route)
    assert answer.status_code == 405
    assert answer.content == b""


@pytest.mark.parametrize("route", ["/", "/sample?n=3&seed=5", "/sample?n=3&seed=5&format=png", *GET_ROUTES[1:]])
def test_head_answers_as_get_does_without_the_body(http: httpx.Client, route: str) -> None:
    get, head = http.get(route), http.head(route)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    if route != "/metrics":
        assert head.headers["content-length"] == str(len(get.content)) or "content-encoding" in get.headers
    assert {"x-request-id", "x-model-digest"} <= set(head.headers)


def test_a_body_after_head_never_reaches_the_next_answer_of_the_connection(http: httpx.Client) -> None:
    for _ in range(3):
        assert http.head("/sample?n=2&seed=1").status_code == 200
        assert http.get("/livez").json()["status"]


def test_head_of_an_unknown_path_is_404_without_a_body(http: httpx.Client) -> None:
    answer = http.head("/nothing")
    assert answer.status_code == 404
    assert answer.content == b""


@pytest.mark.parametrize("route", ["/livez", "/readyz"])
def test_a_health_route_says_200_and_a_status(http: httpx.Client, route: str) -> None:
    answer = http.get(route)
    assert answer.status_code == 200
    assert answer.headers["content-type"].split(";")[0] == "application/json"
    assert strict_json(answer.text)["status"]


def test_the_docs_page_and_all_that_it_loads_come_from_the_service_itself(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert not EXTERNAL.search(page.text)
    assets = ASSET.findall(page.text)
    for asset in assets:
        answer = http.get(urljoin("/docs", asset))
        assert answer.status_code == 200, asset
        if "javascript" in answer.headers["content-type"] or "css" in answer.headers["content-type"]:
            assert not re.search(r"""(?:import|from|url\()\s*\(?["']?https?://""", answer.text), asset


def test_the_v1_docs_page_works_as_well(http: httpx.Client) -> None:
    for asset in ASSET.findall(http.get("/v1/docs").text):
        assert http.get(urljoin("/v1/docs", asset)).status_code == 200, asset


def test_reconstruct_is_decode_of_mu(http: httpx.Client, pixel_tolerance: float) -> None:
    body, as_npy = npy(ink()), {"format": "npy"}
    rebuilt = from_npy(http.post("/reconstruct", content=body, headers=NPY, params=as_npy).content)
    mu = from_npy(http.post("/encode", content=body, headers=NPY, params=as_npy).content)[0]
    decoded = from_npy(http.post("/decode", content=npy(mu), headers=NPY, params=as_npy).content)
    assert abs(rebuilt - decoded).max() <= pixel_tolerance


def test_kl_and_decode_are_told_apart_from_routes_that_take_images_by_their_json(http: httpx.Client) -> None:
    problem(http.post("/decode", content=b'{"images": []}', headers=JSON), 422)
    problem(http.post("/encode", content=b'{"z": [[0]]}', headers=JSON), 422)
