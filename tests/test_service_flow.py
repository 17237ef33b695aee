"""Under a learned prior a KL has no closed form: what /kl, /score, /sample and the metrics then answer."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import StartServer, client_of
from PIL import Image
from service_answers import answer, problem, same_bits
from service_pictures import NPY, from_tensors, npy
from tiny import CONFIG, tiny_vae

from app import cli
from app.client import Client
from model import checkpoint
from model.elbo import log_ratio, posterior_kl, quadrature
from model.gaussian import kl_to_standard_normal, noise
from model.golden import with_golden
from model.scores import soft_elbo
from model.vae import VAE

FLOW = replace(CONFIG, prior="realnvp", flow_couplings=3, flow_hidden=8)
GREY = np.random.default_rng(4).integers(0, 256, (12, 1, 8, 8), np.uint8)
HELD_OUT = np.random.default_rng(5).integers(0, 256, (150, 1, 8, 8), np.uint8)


def save(path: Path, vae: VAE) -> Path:
    notes = checkpoint.Notes("flow", "noise", held_out_elbo=soft_elbo(vae, HELD_OUT, 16, 1))
    checkpoint.save(path, vae, with_golden(vae, notes))
    return path


def untrained(seed: int = 0) -> VAE:
    """A network whose prior is still the identity: N(0, I)."""
    vae = tiny_vae(seed, FLOW)
    vae.prior.load_state_dict(VAE(FLOW).prior.state_dict())
    return vae


def learned() -> VAE:
    """A network whose prior is far from N(0, I)."""
    vae = tiny_vae(1, FLOW)
    torch.manual_seed(2)
    for parameter in vae.prior.parameters():
        parameter.add_(0.12 * torch.randn_like(parameter))
    return vae


@pytest.fixture(scope="module")
def identity(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    running = start_server(model=save(tmp_path_factory.mktemp("identity") / "flow.safetensors", untrained()))
    with client_of(running) as client:
        yield client


@pytest.fixture(scope="module")
def flow(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    running = start_server(model=save(tmp_path_factory.mktemp("flow") / "flow.safetensors", learned()), max_items=20)
    with client_of(running) as client:
        yield client


def posted(http: httpx.Client, path: str, images: np.ndarray = GREY) -> httpx.Response:
    return http.post(path, content=npy(images), headers=NPY)


def posteriors(http: httpx.Client) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = from_tensors(posted(http, "/encode?format=safetensors").content)
    return torch.from_numpy(tensors["mu"]).double(), torch.from_numpy(tensors["sigma"]).double()


def test_the_model_route_names_the_prior(flow: httpx.Client) -> None:
    assert answer(flow.get("/model"))["prior"] == "realnvp"


def test_the_answer_says_how_it_was_found(flow: httpx.Client) -> None:
    got = posted(flow, "/kl?samples=32&seed=9")
    body = answer(got)
    assert set(body) == {"kl", "standard_error", "unit", "method", "samples", "seed"}
    assert (body["method"], body["samples"], body["seed"], body["unit"]) == ("monte_carlo", 32, 9, "nats")
    assert got.headers["x-seed"] == "9"
    assert len(body["kl"]) == len(body["standard_error"]) == len(GREY)
    assert min(body["standard_error"]) > 0
    score = answer(posted(flow, "/score?samples=32&seed=9"))
    assert score["method"] == "monte_carlo"
    assert min(score["kl_standard_error"]) > 0
    assert set(from_tensors(posted(flow, "/kl?format=safetensors").content)) == {"kl", "standard_error"}


def test_the_closed_form_says_so_too(http: httpx.Client, strokes: np.ndarray) -> None:
    body = answer(posted(http, "/kl?samples=5&seed=9", strokes))
    assert set(body) == {"kl", "per_dimension", "unit", "method"}
    assert body["method"] == "closed_form"
    assert "x-seed" not in posted(http, "/kl", strokes).headers
    score = answer(posted(http, "/score?samples=2", strokes))
    assert score["method"] == "closed_form"
    assert "kl_standard_error" not in score


def test_distributions_in_the_body_keep_their_closed_form(flow: httpx.Client) -> None:
    body = answer(flow.post("/kl", json={"mu": [[1.0, 0.0]], "sigma": [[1.0, 1.0]]}))
    assert body == {"kl": [0.5], "per_dimension": [[0.5, 0.0]], "unit": "nats", "method": "closed_form"}
    coin = {"p": {"probs": [0.5, 0.5]}, "q": {"probs": [0.5, 0.5]}}
    assert answer(flow.post("/kl", json=coin)) == {"kl": [0.0], "unit": "nats", "method": "closed_form"}


def test_an_untrained_flow_agrees_with_the_closed_form(identity: httpx.Client) -> None:
    exact = kl_to_standard_normal(*posteriors(identity)).sum(1).numpy()
    for path, kl, error in (("/kl", "kl", "standard_error"), ("/score", "kl", "kl_standard_error")):
        body = answer(posted(identity, f"{path}?samples=1024&seed=1", GREY))
        apart = np.abs(np.array(body[kl]) - exact)
        assert (apart <= 4 * np.array(body[error])).all(), path
        assert 0.3 < np.mean(apart / np.array(body[error])) < 1.6  # the error is neither too small nor too large


def test_a_learned_flow_agrees_with_draws_of_our_own(flow: httpx.Client) -> None:
    mu, sigma = posteriors(flow)
    vae, draws = learned(), 4000
    epsilon = torch.from_numpy(noise(77, len(GREY) * draws, (4,))).double()
    rows = [value.repeat_interleave(draws, 0) for value in (mu, sigma)]
    own = -log_ratio(vae, rows[0], rows[1], epsilon).view(len(GREY), draws)
    assert not np.allclose(own.mean(1), kl_to_standard_normal(mu, sigma).sum(1), atol=0.2)
    body = answer(posted(flow, "/kl?samples=64&seed=3"))
    error = np.hypot(np.array(body["standard_error"]), own.std(1).numpy() / draws**0.5)
    assert (np.abs(np.array(body["kl"]) - own.mean(1).numpy()) <= 4.5 * error).all()


def test_the_standard_error_shrinks_with_the_draws(flow: httpx.Client) -> None:
    few, many = (answer(posted(flow, f"/kl?samples={n}&seed=1"))["standard_error"] for n in (16, 64))
    assert 1.5 < np.mean(few) / np.mean(many) < 2.7  # 2 in expectation
    one = answer(posted(flow, "/kl?samples=1&seed=1", GREY[:2]))
    assert one["standard_error"] == [0, 0]


def test_the_same_seed_gives_the_same_answer_and_none_a_fresh_one(flow: httpx.Client) -> None:
    first = posted(flow, "/kl?seed=5")
    assert first.content == posted(flow, "/kl?seed=5").content
    assert answer(first)["samples"] == 64
    fresh = answer(posted(flow, "/kl"))
    assert fresh["kl"] != answer(first)["kl"]
    assert answer(posted(flow, f"/kl?seed={fresh['seed']}"))["kl"] == fresh["kl"]


def test_an_image_draws_by_its_place_alone_and_as_the_score_does(flow: httpx.Client) -> None:
    together = answer(posted(flow, "/kl?seed=5&samples=20"))
    alone = answer(posted(flow, "/kl?seed=5&samples=20", GREY[:1]))
    assert alone["kl"][0] == pytest.approx(together["kl"][0], abs=1e-5)
    score = answer(posted(flow, "/score?seed=5&samples=20"))
    assert score["kl"] == pytest.approx(together["kl"], abs=1e-4)
    assert score["kl_standard_error"] == pytest.approx(together["standard_error"], abs=1e-4)


def test_bits_scale_the_error_too(flow: httpx.Client) -> None:
    nats, bits = (answer(posted(flow, f"/kl?seed=5&unit={unit}")) for unit in ("nats", "bits"))
    for name in ("kl", "standard_error"):
        np.testing.assert_allclose(np.array(bits[name]) * np.log(2), nats[name], rtol=1e-12)


def test_a_score_adds_up_and_held_out_images_are_ordinary(flow: httpx.Client) -> None:
    body = answer(posted(flow, "/score?seed=5&samples=64", HELD_OUT[:20]))
    np.testing.assert_allclose(body["elbo"], np.subtract(body["reconstruction"], body["kl"]))
    assert (np.array(body["log_likelihood"]) >= np.array(body["elbo"]) - 1e-9).all()  # the same draws: Jensen
    assert 25 < np.mean(body["percentile"]) < 75


def test_the_draws_of_one_request_are_bounded(flow: httpx.Client) -> None:
    assert posted(flow, "/kl?samples=128", HELD_OUT[:10]).status_code == 200
    problem(posted(flow, "/kl?samples=129", HELD_OUT[:10]), 413, "too_many_items")
    for wrong in ("samples=0", "samples=1025", "seed=-1", "samples=x"):
        problem(posted(flow, f"/kl?{wrong}"), 422)


def test_samples_are_drawn_through_the_flow(flow: httpx.Client) -> None:
    tensors = from_tensors(flow.get("/sample?n=6&seed=2&format=safetensors").content)
    epsilon = torch.from_numpy(noise(2, 6, (4,)))
    np.testing.assert_allclose(tensors["z"], learned().prior.transform(epsilon).numpy(), atol=1e-5)
    assert np.abs(tensors["z"] - epsilon.numpy()).max() > 0.3
    decoded = from_tensors(flow.post("/decode?format=safetensors", content=npy(tensors["z"]), headers=NPY).content)
    np.testing.assert_allclose(decoded["images"], tensors["images"], atol=1e-5)


def test_encode_and_walks_do_not_ask_the_flow(flow: httpx.Client) -> None:
    assert posted(flow, "/encode").content == posted(flow, "/encode").content
    ends = [0.0] * 4, [1.0, 2.0, 0.0, 1.0]
    z = np.array(answer(flow.post("/interpolate", json={"from": ends[0], "to": ends[1], "steps": 3}))["z"])
    np.testing.assert_allclose(z[1], np.array(ends[1]) / 2)
    assert len(answer(flow.post("/traverse", json={"z": ends[1], "steps": 2}))["dims"]) == 4


def kl_sum(http: httpx.Client) -> float:
    text = http.get("/metrics").text
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith("vae_posterior_kl_nats_sum")))


def test_the_metric_has_the_closed_form_of_an_untrained_flow(identity: httpx.Client) -> None:
    exact = kl_to_standard_normal(*posteriors(identity)).sum()
    before = kl_sum(identity)
    posted(identity, "/encode")
    assert kl_sum(identity) - before == pytest.approx(float(exact), rel=1e-4)


def test_the_metric_is_near_the_divergence_of_a_learned_flow(flow: httpx.Client) -> None:
    before = kl_sum(flow)
    posted(flow, "/encode")
    found = kl_sum(flow) - before
    drawn = answer(posted(flow, "/kl?samples=100&seed=1"))["kl"]
    assert found == pytest.approx(sum(drawn), rel=0.25)


def test_the_quadrature_has_what_a_diagonal_quadratic_has_exactly() -> None:
    vae = untrained()
    with torch.no_grad():
        for coupling in vae.prior.couplings:  # shifts and scales alone: a normal with a diagonal covariance
            coupling.log_scale.normal_(0, 0.4)
            coupling.shift.normal_(0, 1)
    mu, sigma = torch.randn(50, 4), torch.rand(50, 4) + 0.2
    points = torch.zeros(9, 4)
    points[1:5], points[5:] = torch.eye(4), -torch.eye(4)
    log_p = vae.prior.log_prob(points)
    gradient, curvature = (log_p[1:5] - log_p[5:]) / 2, log_p[1:5] + log_p[5:] - 2 * log_p[0]
    scale = (-1 / curvature).sqrt()
    centre = gradient * scale.square()
    exact = kl_to_standard_normal((mu - centre) / scale, sigma / scale).sum(1)
    points = quadrature(4)
    np.testing.assert_allclose(posterior_kl(vae, mu, sigma, points), exact, rtol=2e-3)
    assert same_bits(*(posterior_kl(vae, mu, sigma, points).numpy() for _ in range(2)))


def test_the_client_has_the_error_of_a_divergence_and_of_a_score(flow: httpx.Client) -> None:
    with Client(str(flow.base_url)) as client:
        found = client.kl_images(GREY, samples=16, seed=4)
        assert (found.method, found.seed, found.per_dimension) == ("monte_carlo", 4, None)
        assert found.standard_error is not None
        assert found.standard_error.shape == (12,)
        assert client.kl_images(GREY, samples=16, seed=4).kl.tolist() == found.kl.tolist()
        scores = client.score(GREY, samples=16, seed=4)
        assert scores.kl_standard_error is not None
        assert client.kl_posterior([[0.0]], [[1.0]]).method == "closed_form"


def test_the_command_line_shows_an_error_in_place_of_parts(flow: httpx.Client, tmp_path: Path) -> None:
    Image.fromarray(GREY[0, 0]).save(tmp_path / "noise.png")
    arguments = ["--url", str(flow.base_url).rstrip("/"), "--json", str(tmp_path / "noise.png")]
    divergence, score = (CliRunner().invoke(cli.main, [name, *arguments]) for name in ("kl", "score"))
    assert divergence.exit_code == 0, divergence.output
    found = json.loads(divergence.stdout)
    assert found["per_dimension"] is None
    assert len(found["kl"]) == len(found["standard_error"]) == 1
    assert score.exit_code == 0, score.output
    assert json.loads(score.stdout)["images"][0]["kl_standard_error"] > 0
