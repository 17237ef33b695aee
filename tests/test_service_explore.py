"""Interpolations, traversals and the map, through real server processes."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import StartServer, client_of
from service_answers import answer, as_float32, problem, same_bits, timing
from service_pictures import (
    JSON,
    NPY,
    base64_text,
    digit,
    from_base64_png,
    from_npy,
    from_png,
    from_tensors,
    ink,
    jpeg,
    npy,
    png,
)
from service_process import Server
from tiny import save_tiny

from model import checkpoint
from model.latent_map import make_map, map_path, save_map
from model.walk import arc, line

Ends = tuple[list[float], list[float]]


@pytest.fixture(scope="module")
def ends(latent_dim: int) -> Ends:
    """Two latents on a grid of 1/8, exact in JSON."""
    grid = np.random.default_rng(5).integers(-12, 13, (2, latent_dim)) / 8
    return grid[0].tolist(), grid[1].tolist()


def interpolated(http: httpx.Client, query: str = "", **body: object) -> httpx.Response:
    named = {"from" if name == "start" else name: value for name, value in body.items()}
    return http.post(f"/interpolate{query}", json=named)


def pixels_of(http: httpx.Client, z: np.ndarray) -> np.ndarray:
    return from_npy(http.post("/decode?format=npy", content=npy(z), headers=NPY).raise_for_status().content)


# ------------------------------------------------------------------------------------------------- interpolation


@pytest.mark.parametrize(("path", "walk"), [("linear", line), ("spherical", arc)])
def test_an_interpolation_decodes_every_step_of_the_walk(
    http: httpx.Client, ends: Ends, path: str, walk: Callable[..., np.ndarray], pixel_tolerance: float
) -> None:
    got = interpolated(http, start=ends[0], to=ends[1], steps=7, path=path)
    body = answer(got)
    assert set(body) == {"images", "z"}
    z = as_float32(body["z"])
    assert same_bits(z, walk(*(np.array(end, np.float32) for end in ends), 7))
    pixels = np.stack([from_base64_png(text) for text in body["images"]])
    assert abs(pixels / 255 - pixels_of(http, z)[:, 0]).max() <= 0.5 / 255 + pixel_tolerance
    assert timing(got)["device"] > 0


def test_nine_steps_on_a_line_are_the_default(http: httpx.Client, ends: Ends) -> None:
    plain = answer(interpolated(http, start=ends[0], to=ends[1]))
    assert plain == answer(interpolated(http, start=ends[0], to=ends[1], steps=9, path="linear"))
    assert len(plain["z"]) == 9
    assert plain["z"][0] == ends[0]
    assert plain["z"][-1] == ends[1]


@pytest.mark.parametrize("steps", [2, 64])
def test_every_format_has_the_same_pictures(http: httpx.Client, ends: Ends, steps: int) -> None:
    asked: dict[str, Any] = {"start": ends[0], "to": ends[1], "steps": steps, "path": "spherical"}
    in_json = answer(interpolated(http, **asked))
    array = from_npy(interpolated(http, "?format=npy", **asked).content)
    tensors = from_tensors(interpolated(http, "?format=safetensors", **asked).content)
    sheet = from_png(interpolated(http, "?format=png", **asked).content)
    assert array.shape == (steps, 1, 28, 28)
    assert same_bits(array, tensors["images"])
    assert same_bits(as_float32(in_json["z"]), tensors["z"])
    assert sheet.shape == (28, 28 * steps)  # one strip
    np.testing.assert_array_equal(sheet[:, -28:], from_base64_png(in_json["images"][-1]))
    two = from_png(interpolated(http, "?format=png&columns=1", **asked).content)
    assert two.shape == (28 * steps, 28)


def test_between_images_the_walk_goes_from_mu_to_mu(http: httpx.Client) -> None:
    first, second = ink(2), ink(7)
    mu = from_tensors(
        http.post("/encode?format=safetensors", content=npy(np.stack([first, second])), headers=NPY).content
    )["mu"]
    files = [base64_text(png(one)) for one in (first, second)]
    lists = [(one // 255).tolist() for one in (first, second)]
    for start, end in (files, lists, (files[0], lists[1]), (f"data:image/png;base64,{files[0]}", [lists[1]])):
        z = as_float32(answer(interpolated(http, start=start, to=end, steps=5, path="spherical"))["z"])
        assert same_bits(z[0], mu[0])
        assert same_bits(z[-1], mu[1])
        assert same_bits(z, arc(mu[0], mu[1], 5))


def test_image_files_of_another_size_are_resized_unless_that_is_refused(http: httpx.Client) -> None:
    large = base64_text(jpeg(np.kron(digit(4), np.ones((4, 4), np.uint8))))
    assert answer(interpolated(http, start=large, to=base64_text(png(ink())), steps=2))
    body = problem(interpolated(http, "?resize=never", start=large, to=large), 422, "wrong_shape")
    assert body["errors"][0]["where"] == "body.from"


def test_opposite_zero_and_equal_ends_are_walked_between(http: httpx.Client, latent_dim: int) -> None:
    one, none = [0.5] * latent_dim, [0] * latent_dim
    for start, end in ((one, [-0.5] * latent_dim), (none, one), (none, none), (one, one)):
        z = as_float32(answer(interpolated(http, start=start, to=end, path="spherical"))["z"])
        assert np.linalg.norm(z, axis=1).max() <= np.linalg.norm(one) + 1e-5


def test_what_is_no_pair_of_ends_is_422_and_says_where(http: httpx.Client, latent_dim: int) -> None:
    z, image = [0.5] * latent_dim, base64_text(png(ink()))
    for body, code in (
        ({}, "invalid_field"),
        ({"from": z}, "invalid_field"),
        ({"from": z, "to": image}, "invalid_field"),
        ({"from": z, "to": z[:-1]}, "wrong_shape"),
        ({"from": [z], "to": [z]}, "wrong_shape"),
        ({"from": [], "to": []}, "wrong_shape"),
        ({"from": z, "to": [*z[1:], "1"]}, "invalid_field"),
        ({"from": z, "to": [*z[1:], 1e300]}, "not_finite"),
        ({"from": z, "to": [*z[1:], 1e7]}, "out_of_range"),
        ({"from": [[2.0] * 28] * 28, "to": image}, "out_of_range"),
        ({"from": z, "to": z, "steps": 1}, "out_of_range"),
        ({"from": z, "to": z, "steps": 65}, "out_of_range"),
        ({"from": z, "to": z, "steps": 2.5}, "invalid_field"),
        ({"from": z, "to": z, "steps": True}, "invalid_field"),
        ({"from": z, "to": z, "path": "zigzag"}, "invalid_field"),
        ({"from": z, "to": z, "more": 1}, "invalid_field"),
        ({"start": z, "end": z}, "invalid_field"),
        ({"from": None, "to": None}, "invalid_field"),
    ):
        problem(http.post("/interpolate", json=body), 422, code)
    wrong = problem(http.post("/interpolate", json={"from": z, "to": [*z[1:], "1"]}), 422)
    assert wrong["errors"][0]["where"] == f"body.to.{latent_dim - 1}"


def test_broken_images_and_bodies_are_400_and_other_types_415(http: httpx.Client) -> None:
    body = problem(
        interpolated(http, start=base64_text(png(ink())), to=base64_text(b"nothing")), 400, "malformed_image"
    )
    assert body["errors"][0]["where"] == "body.to"
    for route in ("/interpolate", "/traverse"):
        problem(http.post(route, content=b"{", headers=JSON), 400, "malformed_json")
        refused = http.post(route, content=npy(np.zeros((2, 32), np.float32)), headers=NPY)
        problem(refused, 415)
        assert refused.headers["accept-post"] == "application/json"


# ----------------------------------------------------------------------------------------------------- traversal


def test_a_traversal_has_a_row_for_each_dimension(http: httpx.Client, ends: Ends, pixel_tolerance: float) -> None:
    asked = {"z": ends[0], "dims": [3, 0], "low": -2, "high": 2, "steps": 5}
    body = answer(http.post("/traverse", json=asked))
    assert set(body) == {"images", "z", "dims", "values"}
    assert body["dims"] == [3, 0]
    assert body["values"] == [-2, -1, 0, 1, 2]
    z = as_float32(body["z"]).reshape(2, 5, -1)
    for row, dim in zip(z, [3, 0], strict=True):
        np.testing.assert_array_equal(row[:, dim], body["values"])
        np.testing.assert_array_equal(np.delete(row, dim, 1), [np.delete(np.float32(ends[0]), dim)] * 5)
    pixels = np.stack([from_base64_png(text) for text in body["images"]])
    assert abs(pixels / 255 - pixels_of(http, z.reshape(10, -1))[:, 0]).max() <= 0.5 / 255 + pixel_tolerance
    sheet = from_png(http.post("/traverse?format=png", json=asked).content)
    assert sheet.shape == (2 * 28, 5 * 28)
    np.testing.assert_array_equal(sheet[28:, :28], pixels[5])


def test_without_dims_all_of_them_come_ordered_by_their_divergence(http: httpx.Client, latent_dim: int) -> None:
    kl = np.array(answer(http.get("/map"))["kl_per_dimension"])
    for asked in ({"z": [0] * latent_dim}, {"z": [0] * latent_dim, "dims": None}):
        body = answer(http.post("/traverse", json=asked))
        assert sorted(body["dims"]) == list(range(latent_dim))
        assert (np.diff(kl[body["dims"]]) <= 0).all()
        assert body["values"] == np.linspace(-3, 3, 9, dtype=np.float32).tolist()
        assert len(body["images"]) == len(body["z"]) == 9 * latent_dim


def test_tensors_of_a_traversal_keep_whole_numbers_whole(http: httpx.Client, ends: Ends) -> None:
    asked = {"z": ends[0], "dims": [1, 2], "steps": 3}
    tensors = from_tensors(http.post("/traverse?format=safetensors", json=asked).content)
    assert {name: array.shape for name, array in tensors.items()} == {
        "images": (6, 1, 28, 28), "z": (6, len(ends[0])), "dims": (2,), "values": (3,),
    }  # fmt: skip
    assert tensors["dims"].dtype == np.int64
    assert same_bits(from_npy(http.post("/traverse?format=npy", json=asked).content), tensors["images"])


def test_what_is_no_traversal_is_422(http: httpx.Client, latent_dim: int) -> None:
    z = [0.0] * latent_dim
    for body, code in (
        ({}, "invalid_field"),
        ({"z": z[:-1]}, "wrong_shape"),
        ({"z": [z]}, "invalid_field"),
        ({"z": z, "dims": []}, "empty"),
        ({"z": z, "dims": [latent_dim]}, "out_of_range"),
        ({"z": z, "dims": [-1]}, "out_of_range"),
        ({"z": z, "dims": [0.5]}, "invalid_field"),
        ({"z": z, "dims": "all"}, "invalid_field"),
        ({"z": z, "low": 1, "high": 1}, "out_of_range"),
        ({"z": z, "low": 3, "high": -3}, "out_of_range"),
        ({"z": z, "high": 1e7}, "out_of_range"),
        ({"z": z, "steps": 1}, "out_of_range"),
        ({"z": z, "steps": 65}, "out_of_range"),
    ):
        problem(http.post("/traverse", json=body), 422, code)


def test_so_many_images_and_no_more_come_of_one_request(small: httpx.Client, latent_dim: int) -> None:
    z = [0.0] * latent_dim
    answer(interpolated(small, start=z, to=z, steps=5))
    answer(small.post("/traverse", json={"z": z, "dims": [0], "steps": 5}))
    for got in (
        interpolated(small, start=z, to=z, steps=6),
        small.post("/traverse", json={"z": z, "dims": [0], "steps": 6}),
        small.post("/traverse", json={"z": z, "dims": [0] * 3, "steps": 2}),
        small.post("/traverse", json={"z": z}),
    ):
        assert "VAE_MAX_ITEMS" in problem(got, 413, "too_many_items")["detail"]


# ----------------------------------------------------------------------------------------------------------- map


def test_the_map_shows_held_out_images_and_the_axes_of_latent_space(http: httpx.Client, latent_dim: int) -> None:
    got = http.get("/map")
    body = answer(got)
    mu, axes = np.array(body["mu"]), np.array(body["axes"])
    assert mu.shape == (2000, latent_dim)
    assert len(body["labels"]) == 2000
    assert set(body["labels"]) <= set(range(len(body["label_names"])))
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-5)
    centred = mu - np.array(body["mean"])
    np.testing.assert_allclose(((centred @ axes.T) ** 2).mean(0), body["variance"], rtol=0.15)
    assert len(body["kl_per_dimension"]) == latent_dim
    assert 0 < body["active_units"] <= latent_dim
    assert body["digest"] == got.headers["x-model-digest"]


def test_the_map_comes_as_arrays_too(http: httpx.Client, latent_dim: int) -> None:
    body = answer(http.get("/map"))
    tensors = from_tensors(http.get("/map?format=safetensors").content)
    assert set(tensors) == {"mu", "labels", "mean", "axes", "variance", "kl_per_dimension"}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, np.array(body[name]).astype(tensor.dtype))
    assert tensors["labels"].dtype == np.int64
    assert same_bits(from_npy(http.get("/map?format=npy").content), tensors["mu"])
    problem(http.get("/map?format=png"), 406)


def test_the_map_is_asked_for_again_by_its_tag(http: httpx.Client) -> None:
    tags = set()
    for form in ("json", "npy", "safetensors"):
        got = http.get(f"/map?format={form}")
        assert got.headers["cache-control"] == "no-cache"
        assert got.headers["vary"] == "Accept"
        again = http.get(f"/map?format={form}", headers={"If-None-Match": got.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == got.headers["etag"]
        assert http.get(f"/map?format={form}").content == got.content
        tags.add(got.headers["etag"])
    assert len(tags) == 3


def write_tiny_map(path: Path, count: int, digest: str = "") -> None:
    loaded = checkpoint.load(path)
    images = np.random.default_rng(count).integers(0, 256, (count, 1, 8, 8), np.uint8)
    save_map(map_path(path), make_map(loaded.vae, images), digest or loaded.digest)


def reloaded(running: Server, times: int) -> None:
    """Send SIGHUP and wait until the log says so."""
    os.kill(running.pid, signal.SIGHUP)
    end = time.monotonic() + 30
    while running.log.read_text().count(": ready: ") < times:
        assert time.monotonic() < end, running.tail()
        time.sleep(0.05)


def test_a_reload_brings_the_map_of_the_new_weights_and_ignores_another(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = save_tiny(tmp_path_factory.mktemp("models") / "tiny.safetensors")
    running = start_server(model=path)
    with client_of(running) as client:
        detail = problem(client.get("/map"), 404, "no_map")["detail"]
        assert "vae evaluate" in detail
        dims = answer(client.post("/traverse", json={"z": [0] * 4, "steps": 2}))["dims"]
        assert dims == [0, 1, 2, 3]  # nothing says which of them matter
        write_tiny_map(path, 30)
        reloaded(running, 2)
        first = client.get("/map")
        body = json.loads(first.content)
        assert len(body["mu"]) == 30
        assert body["labels"] is None
        assert body["label_names"] is None
        assert len(answer(client.post("/traverse", json={"z": [0] * 4, "steps": 2}))["dims"]) == 4
        write_tiny_map(path, 40)  # other images, the same weights
        reloaded(running, 3)
        assert client.get("/map", headers={"If-None-Match": first.headers["etag"]}).status_code == 200
        save_tiny(path, seed=1)
        reloaded(running, 4)
        problem(client.get("/map"), 404, "no_map")
        assert "the map is of other weights" in running.log.read_text()


def test_a_damaged_map_does_not_keep_the_server_from_starting(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("models")
    path = save_tiny(folder / "tiny.safetensors")
    map_path(path).write_bytes(b"pickle")
    running = start_server(model=path)
    with client_of(running) as client:
        problem(client.get("/map"), 404, "no_map")
        assert answer(client.get("/model"))["name"] == "tiny"
    assert "WARNING vae: ignored: " in running.log.read_text()
    shutil.rmtree(folder)


@pytest.mark.parametrize("route", ["/interpolate", "/traverse"])
def test_a_walk_answers_the_same_under_v1_and_holds_to_the_digest(http: httpx.Client, ends: Ends, route: str) -> None:
    body = {"from": ends[0], "to": ends[1]} if route == "/interpolate" else {"z": ends[0], "dims": [0]}
    plain, twin = (http.post(path, json=body) for path in (route, f"/v1{route}"))
    assert plain.status_code == twin.status_code == 200
    assert plain.content == twin.content
    digest = plain.headers["x-model-digest"]
    assert http.post(route, json=body, headers={"If-Model-Match": digest}).status_code == 200
    problem(http.post(route, json=body, headers={"If-Model-Match": "0" * 16}), 412, "model_mismatch")
    problem(http.post(route, json=body, headers={"Accept": "text/plain"}), 406)
    problem(http.post(route, json=body, headers={"X-Timeout-Ms": "0"}), 422)
    browser = {"Accept": "text/html,image/avif,image/webp,*/*;q=0.8"}
    assert http.post(route, json=body, headers=browser).headers["content-type"] == "image/png"
