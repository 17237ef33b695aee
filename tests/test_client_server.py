"""The Python client against a real server: arrays come back right, and refusals as the server's own errors."""

import asyncio
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from service_pictures import png
from service_process import Server

from app import errors
from app.client import AsyncClient, Client


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


def test_every_form_of_an_image_has_the_same_latent(
    client: Client, strokes: np.ndarray, mu_tolerance: float, tmp_path: Path
) -> None:
    first = strokes[0]
    path = tmp_path / "digit.png"
    path.write_bytes(png(first))
    wanted = client.encode(first)
    assert wanted.mu.dtype == wanted.sigma.dtype == np.float32
    assert (wanted.z, wanted.seed) == (None, None)
    for images in (first[None, None], first / 255, path, str(path), png(first), Image.open(path), [first]):
        mu = client.encode(images).mu
        assert np.abs((mu - wanted.mu) / wanted.sigma).max() <= mu_tolerance


def test_many_files_come_back_in_order(client: Client, strokes: np.ndarray, mu_tolerance: float) -> None:
    by_array, by_files = client.encode(strokes), client.encode([png(image) for image in strokes])
    assert by_files.mu.shape == (len(strokes), client.model()["latent_dim"])
    assert np.abs((by_array.mu - by_files.mu) / by_array.sigma).max() <= mu_tolerance


def test_draws_lie_around_mu_and_a_seed_repeats_them(client: Client, strokes: np.ndarray) -> None:
    posterior = client.encode(strokes[:2], draws=5, seed=11)
    assert posterior.z is not None
    assert posterior.z.shape == (2, 5, posterior.mu.shape[1])
    assert posterior.seed == 11
    again = client.encode(strokes[:2], draws=5, seed=11)
    assert np.allclose(posterior.z, again.z, atol=1e-4)


def test_samples_are_decoded_from_their_latents_and_a_seed_repeats_the_first_of_them(
    client: Client, pixel_tolerance: float
) -> None:
    samples = client.sample(4, seed=7)
    more = client.sample(9, seed=7)
    assert np.array_equal(samples.z, more.z[:4])
    assert np.abs(client.decode(samples.z) - samples.images).max() <= pixel_tolerance
    assert samples.seed == 7
    fresh = client.sample(1)
    assert np.array_equal(client.sample(1, seed=fresh.seed).z, fresh.z)
    assert np.array_equal(client.sample(2, temperature=0).z, np.zeros_like(samples.z[:2]))


def test_reconstruction_is_what_mu_decodes_to(client: Client, strokes: np.ndarray, pixel_tolerance: float) -> None:
    images = client.reconstruct(strokes)
    assert images.dtype == np.float32
    assert np.abs(images - client.decode(client.encode(strokes).mu)).max() <= 10 * pixel_tolerance


def test_server_draws_pictures(client: Client) -> None:
    picture = client.send(Client.sample(6, seed=3).as_png(columns=3))
    assert picture.seed == 3
    assert Image.open(io.BytesIO(picture.png)).size == (3 * 28, 2 * 28)


def test_divergences_are_float64_and_agree_with_numbers_worked_by_hand(client: Client) -> None:
    found = client.kl_posterior([[1.0, 0.0]], [[1.0, 2.0]])
    assert found.kl == pytest.approx([0.5 + 1.5 - np.log(2)], rel=1e-12)
    assert found.per_dimension == pytest.approx(np.array([[0.5, 1.5 - np.log(2)]]), rel=1e-12)
    full = client.kl_gaussians({"mean": [0], "std": [1]}, {"mean": np.array([1]), "cov": np.array([[4.0]])})
    assert full.kl == pytest.approx([np.log(2) + 2 / 8 - 0.5], rel=1e-12)
    coin = client.kl_discrete([0.5, 0.5], [0.9, 0.1], unit="bits")
    assert coin.kl == pytest.approx([0.5 * np.log2(0.5 / 0.9) + 0.5 * np.log2(0.5 / 0.1)], rel=1e-12)
    assert (coin.unit, coin.per_dimension) == ("bits", None)


def test_divergence_of_images_is_that_of_their_posteriors(client: Client, strokes: np.ndarray) -> None:
    mu, sigma, _, _ = client.encode(strokes)
    of_images, of_posteriors = client.kl_images(strokes), client.kl_posterior(mu, sigma)
    assert of_images.kl == pytest.approx(of_posteriors.kl, rel=1e-2)


def test_scores_add_up_and_percentiles_follow_the_elbo(client: Client, strokes: np.ndarray) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 28, 28), np.uint8)
    scores = client.score(np.concatenate([noise, strokes[:3]]), samples=8, seed=1)
    assert scores.elbo.shape == (4,)
    assert scores.seed == 1
    assert scores.elbo == pytest.approx(scores.reconstruction - scores.kl, rel=1e-4)
    assert (np.diff(scores.percentile[scores.elbo.argsort()]) >= 0).all()
    assert ((scores.percentile >= 0) & (scores.percentile <= 100)).all()


def test_walks_between_latents_and_between_images_are_the_same(client: Client, strokes: np.ndarray) -> None:
    mu = client.encode(strokes[:2]).mu
    by_latents = client.interpolate(mu[0], mu[1:], steps=5, path="spherical")
    assert by_latents.images.shape == (5, 1, 28, 28)
    files = [png(one) for one in strokes[:2]]
    for start, end in (strokes[:2], strokes[:2, None] / np.float32(255), files, (strokes[0], files[1])):
        walk = client.interpolate(start, end, steps=5, path="spherical")
        np.testing.assert_allclose(walk.z, by_latents.z, atol=1e-6)
    picture = client.send(Client.interpolate(mu[0], mu[1], steps=4).as_png())
    assert Image.open(io.BytesIO(picture.png)).size == (4 * 28, 28)
    with pytest.raises(errors.Unprocessable):
        client.interpolate(mu[0], files[0])


def test_a_traversal_has_rows_of_images_and_the_map_says_which_come_first(client: Client) -> None:
    found = client.map()
    z = client.sample(1, seed=1).z
    around = client.traverse(z, steps=3)
    assert around.images.shape == (z.shape[1], 3, 1, 28, 28)
    assert (np.diff(found.kl_per_dimension[around.dims]) <= 0).all()
    some = client.traverse(z[0], [2, 5], low=-1, high=1, steps=2)
    assert some.dims.tolist() == [2, 5]
    assert some.values.tolist() == [-1, 1]
    assert some.z[1, :, 5].tolist() == [-1, 1]
    np.testing.assert_array_equal(some.z[0, 0, 3:], z[0, 3:])


def test_the_map_has_a_labeled_point_for_each_held_out_image(client: Client) -> None:
    found = client.map()
    assert found.labels is not None
    assert found.label_names is not None
    assert found.mu.shape == (len(found.labels), len(found.mean))
    assert found.axes.shape == (2, len(found.mean))
    assert found.digest == client.model()["digest"]
    assert found.active_units <= len(found.mean)


def test_refusals_of_the_server_are_its_own_errors(client: Client, server: Server) -> None:
    with pytest.raises(errors.Unprocessable) as caught:
        client.decode([[1.0, 2.0, 3.0]])
    assert caught.value.code == "wrong_shape"
    assert caught.value.request_id
    with pytest.raises(errors.BadRequest, match="PNG"):
        client.encode(b"GIF89a")
    with pytest.raises(errors.ContentTooLarge, match="VAE_MAX_ITEMS"):
        client.sample(10**6)
    with Client(server.url, digest="0" * 16) as other, pytest.raises(errors.PreconditionFailed):
        other.decode([[0.0]])


def test_async_client_asks_many_things_at_once(client: Client, server: Server, strokes: np.ndarray) -> None:
    async def ask() -> tuple[bool, list[Any]]:
        async with AsyncClient(server.url) as many:
            answers = await asyncio.gather(*(many.encode(image) for image in strokes))
            return await many.ready(), answers

    ready, answers = asyncio.run(ask())
    assert ready
    together = client.encode(strokes)
    for one, mu, sigma in zip(answers, together.mu, together.sigma, strict=True):
        assert np.abs((one.mu[0] - mu) / sigma).max() <= 0.05


def test_examples_of_the_page_run(
    server: Server, strokes: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digit.png").write_bytes(png(strokes[0]))
    page = (Path(__file__).parent.parent / "docs" / "client.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    known: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("http://127.0.0.1:8000", server.url), known)
    assert known["samples"].images.shape == (64, 1, 28, 28)
    assert f"print(coin.kl)  # {known['coin'].kl}" in page
    assert len(known["posteriors"]) == 8
    assert (tmp_path / "s.png").exists()
