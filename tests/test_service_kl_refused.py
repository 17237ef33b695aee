"""POST /kl of discrete distributions, and all that /kl refuses, saying which."""

import json
import math

import httpx
import numpy as np
import pytest
from service_answers import answer, problem, words
from service_pictures import JSON
from service_witness import kl_discrete, relative_error


def discrete(http: httpx.Client, p: list, q: list, **query: str) -> float:
    got = answer(http.post("/kl", json={"p": {"probs": p}, "q": {"probs": q}}, params=query))
    assert len(got["kl"]) == 1
    return float(got["kl"][0])


@pytest.mark.parametrize("size", [1, 2, 10, 1000])
def test_two_discrete_distributions_agree_with_50_digits(http: httpx.Client, size: int) -> None:
    rng = np.random.default_rng(size)
    p, q = (rng.dirichlet([0.5] * size).tolist() for _ in range(2))
    if size == 1:
        assert discrete(http, [1], [1]) == 0
    else:
        assert relative_error(discrete(http, p, q), kl_discrete(p, q)) <= 1e-9


def test_worked_cases_with_zeros(http: httpx.Client) -> None:
    assert discrete(http, [0, 1], [0.5, 0.5]) == pytest.approx(math.log(2), rel=1e-15)
    assert discrete(http, [0.5, 0.5, 0], [0.5, 0.5, 0]) == 0
    assert discrete(http, [0.5, 0.5], [0.25, 0.75]) == pytest.approx(0.5 * math.log(4 / 3), rel=1e-12)
    assert discrete(http, [0, 1], [0.5, 0.5], unit="bits") == pytest.approx(1, rel=1e-15)


@pytest.mark.parametrize("delta", [2.0**-8, 2.0**-16, 2.0**-24, 2.0**-30])
def test_a_tiny_divergence_of_discrete_distributions_keeps_its_digits(http: httpx.Client, delta: float) -> None:
    q = [0.5, 0.25, 0.125, 0.125]
    p = [0.5 + delta, 0.25 - delta, 0.125 + delta / 4, 0.125 - delta / 4]
    assert sum(p) == 1
    assert relative_error(discrete(http, p, q), kl_discrete(p, q)) <= 1e-9


def test_probabilities_may_miss_1_by_1e_6_and_no_more(http: httpx.Client) -> None:
    near, far = [0.5, 0.5 + 9e-7], [0.5, 0.5 + 2e-6]
    assert abs(discrete(http, near, [0.5, 0.5])) < 1e-5
    assert abs(discrete(http, [0.5, 0.5], near)) < 1e-5
    for name, p, q in (("p", far, [0.5, 0.5]), ("q", [0.5, 0.5], far)):
        got = http.post("/kl", json={"p": {"probs": p}, "q": {"probs": q}})
        assert name in words(problem(got, 422, "not_normalized")).replace(",", " ").replace(".", " ").split()


def test_mass_where_q_has_none_is_an_infinite_divergence(http: httpx.Client) -> None:
    got = http.post("/kl", json={"p": {"probs": [0.5, 0.5]}, "q": {"probs": [1, 0]}})
    problem(got, 422, "infinite_divergence")
    assert discrete(http, [1, 0], [0.5, 0.5]) == pytest.approx(math.log(2))


N2 = {"mean": [0, 0], "std": [1, 1]}
SYMMETRIC = [[2.0, 0.5], [0.5, 1.0]]
WRONG: dict[str, tuple[dict, str | None, tuple[str, ...]]] = {
    "sigma of zero": ({"mu": [[0, 1]], "sigma": [[1, 0]]}, None, ("sigma",)),
    "sigma below zero": ({"mu": [[0]], "sigma": [[-1]]}, None, ("sigma",)),
    "mu and sigma of different widths": ({"mu": [[0, 1]], "sigma": [[1]]}, None, ("mu", "sigma")),
    "mu and sigma of different lengths": ({"mu": [[0], [1]], "sigma": [[1]]}, None, ("mu", "sigma")),
    "ragged mu": ({"mu": [[0], [1, 2]], "sigma": [[1], [1, 1]]}, None, ("mu",)),
    "mu without sigma": ({"mu": [[0]]}, None, ("sigma",)),
    "sigma without mu": ({"sigma": [[1]]}, None, ("mu",)),
    "no rows": ({"mu": [], "sigma": []}, None, ()),
    "rows of nothing": ({"mu": [[]], "sigma": [[]]}, None, ("mu",)),
    "mu that is flat": ({"mu": [0], "sigma": [1]}, None, ("mu",)),
    "mu that is text": ({"mu": [["0"]], "sigma": [[1]]}, None, ("mu",)),
    "mu that is true": ({"mu": [[True]], "sigma": [[1]]}, None, ("mu",)),
    "p without q": ({"p": N2}, None, ("q",)),
    "q without p": ({"q": N2}, None, ("p",)),
    "std of zero in p": ({"p": {"mean": [0, 0], "std": [1, 0]}, "q": N2}, None, ("p", "std")),
    "std below zero in q": ({"p": N2, "q": {"mean": [0, 0], "std": [1, -1]}}, None, ("q", "std")),
    "mean and std of different lengths": ({"p": {"mean": [0], "std": [1, 1]}, "q": N2}, None, ("p", "mean")),
    "p and q of different lengths": ({"p": {"mean": [0], "std": [1]}, "q": N2}, None, ("p", "q")),
    "mean and cov of different sizes": ({"p": {"mean": [0], "cov": SYMMETRIC}, "q": N2}, None, ("p", "cov")),
    "cov that is not square": ({"p": {"mean": [0, 0], "cov": [[1, 0]]}, "q": N2}, None, ("p", "cov")),
    "cov that is ragged": ({"p": {"mean": [0, 0], "cov": [[1, 0], [0]]}, "q": N2}, None, ("cov",)),
    "cov that is not symmetric": (
        {"p": {"mean": [0, 0], "cov": [[2, 0.5], [0.4, 1]]}, "q": N2},
        "not_symmetric",
        ("p", "symmetric"),
    ),
    "cov of q that is not symmetric": (
        {"p": N2, "q": {"mean": [0, 0], "cov": [[2, 0.5], [0.4, 1]]}},
        "not_symmetric",
        ("q", "symmetric"),
    ),
    "cov that is indefinite": (
        {"p": {"mean": [0, 0], "cov": [[1, 2], [2, 1]]}, "q": N2},
        "not_positive_definite",
        ("p", "positive definite"),
    ),
    "cov of q that is singular": (
        {"p": N2, "q": {"mean": [0, 0], "cov": [[1, 1], [1, 1]]}},
        "not_positive_definite",
        ("q", "positive definite"),
    ),
    "cov of zeros": (
        {"p": {"mean": [0, 0], "cov": [[0, 0], [0, 0]]}, "q": N2},
        "not_positive_definite",
        ("p", "positive definite"),
    ),
    "both std and cov": ({"p": N2 | {"cov": SYMMETRIC}, "q": N2}, None, ("p", "std", "cov")),
    "neither std nor cov": ({"p": {"mean": [0, 0]}, "q": N2}, None, ("p", "std", "cov")),
    "no mean": ({"p": {"std": [1, 1]}, "q": N2}, None, ("p", "mean")),
    "an empty mean": ({"p": {"mean": [], "std": []}, "q": {"mean": [], "std": []}}, None, ("mean",)),
    "probs against a normal": ({"p": {"probs": [0.5, 0.5]}, "q": N2}, None, ("probs",)),
    "probs of different lengths": ({"p": {"probs": [1]}, "q": {"probs": [0.5, 0.5]}}, None, ("p", "q")),
    "probs below zero": ({"p": {"probs": [1.5, -0.5]}, "q": {"probs": [0.5, 0.5]}}, None, ("p", "probs")),
    "no probs": ({"p": {"probs": []}, "q": {"probs": []}}, None, ("probs",)),
    "probs of percent": ({"p": {"probs": [50, 50]}, "q": {"probs": [0.5, 0.5]}}, None, ("p",)),
    "nothing": ({}, None, ()),
    "two questions at once": ({"mu": [[0]], "sigma": [[1]], "p": N2, "q": N2}, None, ()),
    "latents": ({"z": [[0]]}, None, ()),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_distribution_is_422_and_the_message_says_which(http: httpx.Client, name: str) -> None:
    body, code, named = WRONG[name]
    said = words(problem(http.post("/kl", json=body), 422, code))
    tokens = "".join(c if c.isalnum() else " " for c in said).split()
    for word in named:
        assert (word in said) if " " in word else (word in tokens), said


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "null", '"1"', "9" * 400])
@pytest.mark.parametrize(
    "text",
    [
        '{"mu": [[?]], "sigma": [[1]]}',
        '{"mu": [[0]], "sigma": [[?]]}',
        '{"p": {"mean": [?], "std": [1]}, "q": {"mean": [0], "std": [1]}}',
        '{"p": {"mean": [0], "cov": [[?]]}, "q": {"mean": [0], "std": [1]}}',
        '{"p": {"probs": [?]}, "q": {"probs": [1]}}',
    ],
)
def test_what_is_no_finite_number_is_refused_everywhere(http: httpx.Client, text: str, number: str) -> None:
    got = http.post("/kl", content=text.replace("?", number).encode(), headers=JSON)
    assert got.status_code in {400, 422}
    problem(got, got.status_code)


@pytest.mark.parametrize("unit", ["dits", "", "NATS ", "bit"])
def test_an_unknown_unit_is_422(http: httpx.Client, unit: str) -> None:
    got = http.post("/kl", params={"unit": unit}, json={"mu": [[0]], "sigma": [[1]]})
    assert "unit" in words(problem(got, 422))


def test_a_body_of_great_width_is_refused_or_answered(http: httpx.Client) -> None:
    wide = {"mu": [[0] * 200_000], "sigma": [[1] * 200_000]}
    got = http.post("/kl", content=json.dumps(wide).encode(), headers=JSON)
    assert got.status_code in {200, 413, 422}
    if got.status_code != 200:
        problem(got, got.status_code)


def test_the_docs_say_how_equation_5_of_the_mission_is_misprinted() -> None:
    from service_answers import DOCS

    text = DOCS.read_text()
    assert "equation (5)" in text or "(5)" in text


@pytest.mark.parametrize(
    "body",
    [
        {"mu": [[1.26e154, 1.26e154]], "sigma": [[1, 1]]},
        {"p": {"mean": [1.26e154, 1.26e154], "std": [1, 1]}, "q": {"mean": [0, 0], "std": [1, 1]}},
    ],
)
def test_a_divergence_that_is_finite_in_nats_alone_is_refused_in_bits(http: httpx.Client, body: dict) -> None:
    assert answer(http.post("/kl", json=body))["kl"] == [pytest.approx(1.26e154**2)]
    assert "nats" in words(problem(http.post("/kl", json=body, params={"unit": "bits"}), 422, "out_of_range"))
