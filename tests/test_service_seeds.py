"""Seeds: item i depends on the seed and on i alone, everywhere and always; temperature scales the noise."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from conftest import StartServer, client_of
from service_answers import answer, as_float32, problem, same_bits, words
from service_pictures import NPY, SAFETENSORS, from_npy, from_tensors, ink, npy, tensors

TOP = 2**63 - 1


def drawn_by(http: httpx.Client, **query: object) -> tuple[np.ndarray, np.ndarray]:
    """Latents ``(n, D)`` and pixels ``(n, C, H, W)`` of a sample."""
    got = http.get("/sample", params={"format": "safetensors", **query})
    assert got.status_code == 200, got.text
    named = from_tensors(got.content)
    return named["z"], named["images"]


@pytest.fixture(scope="module")
def sixty_four(http: httpx.Client) -> tuple[np.ndarray, np.ndarray]:
    return drawn_by(http, n=64, seed=7)


@pytest.mark.parametrize("n", [1, 2, 4, 5, 17, 63, 65, 130])
def test_fewer_or_more_items_of_a_seed_share_their_beginning(
    http: httpx.Client, sixty_four: tuple, pixel_tolerance: float, n: int
) -> None:
    z, x = drawn_by(http, n=n, seed=7)
    shared = min(n, 64)
    assert z.shape[0] == x.shape[0] == n
    assert same_bits(z[:shared], sixty_four[0][:shared])
    assert abs(x[:shared] - sixty_four[1][:shared]).max() <= pixel_tolerance


def test_a_seed_gives_the_same_in_company_of_other_requests(
    http: httpx.Client, sixty_four: tuple, pixel_tolerance: float
) -> None:
    def other(i: int) -> int:
        return http.get("/sample", params={"n": 1 + i % 9, "format": "npy"}).status_code

    with ThreadPoolExecutor(24) as pool:
        company = [pool.submit(other, i) for i in range(60)]
        mine = [pool.submit(drawn_by, http, n=n, seed=7) for n in (4, 1, 9, 4, 33, 2)]
        for z, x in (future.result() for future in mine):
            assert same_bits(z, sixty_four[0][: len(z)])
            assert abs(x - sixty_four[1][: len(x)]).max() <= pixel_tolerance
        assert {future.result() for future in company} == {200}


def test_a_seed_gives_the_same_after_a_restart(small: httpx.Client, sixty_four: tuple, pixel_tolerance: float) -> None:
    """The other process has other batches and other limits too."""
    for n in (4, 5, 1):
        z, x = drawn_by(small, n=n, seed=7)
        assert same_bits(z, sixty_four[0][:n])
        assert abs(x - sixty_four[1][:n]).max() <= pixel_tolerance


def test_every_seed_and_every_item_is_its_own(http: httpx.Client) -> None:
    rows = np.concatenate([drawn_by(http, n=6, seed=seed)[0] for seed in (0, 1, 2, 3, 2**32, 2**32 + 1, TOP)])
    assert len({row.tobytes() for row in rows}) == len(rows)
    correlation = np.corrcoef(rows)
    assert abs(correlation - np.eye(len(rows))).max() < 0.9


def test_the_latents_are_standard_normal(http: httpx.Client) -> None:
    z = drawn_by(http, n=512, seed=1)[0].astype(np.float64)
    n = z.size
    assert abs(z.mean()) < 5 / n**0.5
    assert abs((z**2).mean() - 1) < 5 * (2 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 5 * (96 / n) ** 0.5
    assert abs(z.mean(axis=0)).max() < 5 / 512**0.5


def test_the_pictures_of_a_sample_are_decode_of_its_latents(
    http: httpx.Client, sixty_four: tuple, pixel_tolerance: float
) -> None:
    z, x = sixty_four
    got = from_npy(http.post("/decode?format=npy", content=tensors(z=z), headers=SAFETENSORS).content)
    assert abs(got - x).max() <= pixel_tolerance


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**53 + 1, TOP])
def test_a_seed_is_told_back_exactly(http: httpx.Client, seed: int) -> None:
    got = http.get("/sample", params={"seed": seed})
    assert answer(got)["seed"] == seed
    assert got.headers["x-seed"] == str(seed)
    for form in ("png", "npy", "safetensors"):
        assert http.get("/sample", params={"seed": seed, "format": form}).headers["x-seed"] == str(seed)


def test_without_a_seed_a_fresh_one_is_drawn_and_replays_the_answer(http: httpx.Client) -> None:
    first, second = http.get("/sample?n=2"), http.get("/sample?n=2")
    assert answer(first)["seed"] != answer(second)["seed"]
    assert first.headers["x-seed"] == str(answer(first)["seed"])
    assert 0 <= answer(first)["seed"] <= TOP
    again = http.get("/sample", params={"n": 2, "seed": first.headers["x-seed"]})
    assert answer(again)["z"] == answer(first)["z"]
    unseeded = http.get("/sample?n=2&format=npy")
    z, _ = drawn_by(http, n=2, seed=unseeded.headers["x-seed"])
    assert z.shape[0] == 2


BAD_SEEDS = ["-1", str(2**63), str(2**64), "1.5", "seven", "", "0x7", "1e3", "9" * 5000, "nan", "٣"]


@pytest.mark.parametrize("seed", BAD_SEEDS)
@pytest.mark.parametrize("route", ["/sample", "/encode?draws=1", "/score?samples=2"])
def test_a_seed_out_of_its_range_is_422_and_not_echoed(http: httpx.Client, route: str, seed: str) -> None:
    path, _, query = route.partition("?")
    params = dict(pair.split("=") for pair in query.split("&") if pair) | {"seed": seed}
    if route == "/sample":
        got = http.get(path, params=params)
    else:
        got = http.post(path, params=params, content=npy(ink()), headers=NPY)
    body = problem(got, 422)
    assert "seed" in words(body)
    assert len(seed) < 6 or seed == str(2**63) or seed not in got.text


@pytest.mark.parametrize("temperature", [0.5, 2.0, 0.7, 1.0, 0.001])
def test_temperature_scales_the_noise(http: httpx.Client, sixty_four: tuple, temperature: float) -> None:
    z = drawn_by(http, n=8, seed=7, temperature=temperature)[0]
    want = sixty_four[0][:8] * np.float32(temperature)
    if temperature in (0.5, 1.0, 2.0):
        assert same_bits(z, want)
    np.testing.assert_allclose(z, want, rtol=1e-6)


def test_temperature_zero_gives_the_mean_of_the_prior_for_all(
    http: httpx.Client, latent_dim: int, pixel_tolerance: float
) -> None:
    z, x = drawn_by(http, n=5, temperature=0)
    assert not z.any()
    mean = from_npy(http.post("/decode?format=npy", json={"z": [[0] * latent_dim]}).content)
    assert abs(x - mean).max() <= pixel_tolerance
    other, _ = drawn_by(http, n=5, temperature=0, seed=99)
    assert np.array_equal(z, other)


@pytest.mark.parametrize("temperature", ["-0.1", "2.0001", "nan", "inf", "-inf", "hot", "", "1e999"])
def test_a_temperature_out_of_0_to_2_is_422(http: httpx.Client, temperature: str) -> None:
    assert "temperature" in words(problem(http.get("/sample", params={"temperature": temperature}), 422))


@pytest.mark.parametrize("n", ["0", "-1", "1.5", "many", "", "1e1"])
def test_n_is_a_positive_whole_number(http: httpx.Client, n: str) -> None:
    body = problem(http.get("/sample", params={"n": n}), 422)
    assert "n" in words(body).split() or "query.n" in words(body)


def test_n_has_a_cap_however_long_it_is(http: httpx.Client) -> None:
    for n in (10**9, 10**30, int("9" * 2000)):
        got = http.get("/sample", params={"n": str(n)})
        assert got.status_code in {413, 422}
        problem(got, got.status_code)


def test_sample_draws_one_picture_when_nothing_is_asked(http: httpx.Client) -> None:
    assert len(answer(http.get("/sample"))["images"]) == 1


def draws(http: httpx.Client, x: np.ndarray, **query: object) -> dict:
    return answer(http.post("/encode", params=query, content=npy(x), headers=NPY))


def test_draws_come_from_the_posterior_and_leave_mu_alone(
    http: httpx.Client, strokes: np.ndarray, latent_dim: int
) -> None:
    plain = draws(http, strokes[:2])
    assert "z" not in plain
    got = draws(http, strokes[:2], draws=200, seed=3)
    assert (got["mu"], got["sigma"]) == (plain["mu"], plain["sigma"])
    z = np.array(got["z"])
    assert z.shape == (2, 200, latent_dim)
    noise = (z - np.array(got["mu"])[:, None]) / np.array(got["sigma"])[:, None]
    assert abs(noise.mean()) < 5 / noise.size**0.5
    assert abs(noise.std() - 1) < 5 / (2 * noise.size) ** 0.5
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1


def test_draws_of_a_seed_are_the_same_every_time_and_begin_alike(
    http: httpx.Client, strokes: np.ndarray, mu_tolerance: float
) -> None:
    alone = np.array(draws(http, strokes[:1], draws=3, seed=5)["z"])
    assert np.array_equal(alone, np.array(draws(http, strokes[:1], draws=3, seed=5)["z"]))
    together = draws(http, strokes[:4], draws=3, seed=5)
    assert (abs(np.array(together["z"])[0] - alone[0]) <= 5 * mu_tolerance * np.array(together["sigma"])[0]).all()
    assert not np.allclose(alone, np.array(draws(http, strokes[:1], draws=3, seed=6)["z"]))


def test_draws_without_a_seed_tell_the_one_that_was_drawn(http: httpx.Client, strokes: np.ndarray) -> None:
    got = http.post("/encode?draws=2", content=npy(strokes[0]), headers=NPY)
    body = answer(got)
    assert got.headers["x-seed"] == str(body["seed"])
    assert draws(http, strokes[0], draws=2, seed=body["seed"])["z"] == body["z"]
    assert answer(http.post("/encode?draws=2", content=npy(strokes[0]), headers=NPY))["z"] != body["z"]


def test_draws_stand_in_safetensors_with_the_same_bits(http: httpx.Client, strokes: np.ndarray) -> None:
    in_json = draws(http, strokes[:2], draws=2, seed=1)
    got = http.post("/encode?draws=2&seed=1&format=safetensors", content=npy(strokes[:2]), headers=NPY)
    named = from_tensors(got.content)
    assert set(named) == {"mu", "sigma", "z"}
    assert same_bits(named["z"], as_float32(in_json["z"]))


@pytest.mark.parametrize("count", ["-1", "x", "1.5", "", "1000000000"])
def test_draws_is_a_sensible_positive_number(http: httpx.Client, count: str) -> None:
    got = http.post("/encode", params={"draws": count}, content=npy(ink()), headers=NPY)
    assert got.status_code in ({413, 422} if count == "1000000000" else {422})
    assert "draws" in words(problem(got, got.status_code))


@pytest.mark.slow
def test_in_bf16_the_latents_are_the_same_bits_and_the_pixels_agree_within_one_grey_level(
    start_server: StartServer, sixty_four: tuple
) -> None:
    with client_of(start_server(precision="bf16")) as coarse:
        z, x = drawn_by(coarse, n=64, seed=7)
        assert same_bits(z, sixty_four[0])
        for n in (1, 4, 33):
            assert same_bits(drawn_by(coarse, n=n, seed=7)[0], z[:n])
            assert abs(drawn_by(coarse, n=n, seed=7)[1] - x[:n]).max() <= 1 / 255 + 1e-6
        assert coarse.get("/model").json()["precision"] == "bf16"
