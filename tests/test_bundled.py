"""The bundled models: small enough to ship, what their cards say, and served by name."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import StartServer, client_of
from pages import MODELS
from service_answers import answer
from service_pictures import NPY, from_npy, npy

from model import checkpoint
from model.card import card
from model.golden import drawn_images, with_golden
from model.latent_map import load_map, map_path

MAX_BYTES = 16 * 2**20
LEAST = {"mnist": 82.0, "mnist-flow": 80.0, "fashion": 227.0}  # nats: what a bundled model must at least reach
PROTOCOL = {"images": 10_000, "few": 100, "many": 5000, "control_images": 500, "seed": 20_200_522}


@pytest.mark.parametrize("name", MODELS)
def test_a_bundled_model_is_small_and_its_files_say_what_was_measured(name: str) -> None:
    path = checkpoint.resolve(name)
    assert path.stat().st_size <= MAX_BYTES
    loaded = checkpoint.load(path)
    metrics = loaded.notes.metrics
    assert json.loads(path.with_suffix(".json").read_text()) == metrics
    assert path.with_suffix(".md").read_text() == card(path, loaded.vae.config, loaded.notes, loaded.digest)
    assert {key: metrics[key] for key in PROTOCOL} == PROTOCOL
    assert metrics["nll_5000"] <= LEAST[name]
    assert metrics["nll_5000"] < metrics["nll_100"] < metrics["negative_elbo"]
    assert load_map(map_path(path), loaded.digest[:16], loaded.vae.config.latent_dim)
    for kind in ("samples", "reconstructions"):
        assert path.with_name(f"{name}-{kind}.png").is_file()


@pytest.mark.parametrize("name", MODELS)
def test_a_bundled_model_finds_its_own_golden_batch(name: str) -> None:
    loaded = checkpoint.load(checkpoint.resolve(name))
    again = with_golden(loaded.vae, replace(loaded.notes))
    np.testing.assert_array_equal(again.golden_images, loaded.notes.golden_images)
    np.testing.assert_allclose(again.golden_mu, loaded.notes.golden_mu, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "mnist"])
def test_a_bundled_model_is_served_by_its_name(name: str, start_server: StartServer) -> None:
    vae = checkpoint.load(checkpoint.resolve(name)).vae
    images = drawn_images(vae, 20, 3)
    noise = np.random.default_rng(1).integers(0, 256, images.shape, np.uint8)
    with client_of(start_server(model=name)) as client:
        told = answer(client.get("/model"))
        assert (told["name"], told["prior"]) == (name, vae.config.prior)
        got = from_npy(client.post("/encode?format=npy", content=npy(images), headers=NPY).content)
        assert got.shape == (2, 20, vae.config.latent_dim)
        scored = answer(
            client.post("/score?samples=16&seed=1", content=npy(np.concatenate([images, noise])), headers=NPY)
        )
        assert np.median(scored["percentile"][:20]) > 5  # what it draws is not strange to it
        assert max(scored["percentile"][20:]) < 1
        assert from_npy(client.get("/sample?n=3&seed=1&format=npy").content).shape == (3, *vae.config.image_shape)
