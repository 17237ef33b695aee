"""The model card: every figure that was measured, and none that was not."""

import re
from pathlib import Path
from typing import Any

import pytest

from model import checkpoint
from model.card import card
from tests.tiny import CONFIG

METRICS: dict[str, Any] = {
    "data": "MNIST",
    "few": 100,
    "many": 5000,
    "control": 500,
    "seed": 20_200_522,
    "images": 9876,
    "binarization": "dynamic, frozen for the evaluation",
    "targets_sha256": "ab" * 32,
    "negative_elbo": 91.234,
    "reconstruction": -65.432,
    "kl": 25.802,
    "train_negative_elbo": 89.123,
    "train_test_gap": 2.111,
    "active_units": 27,
    "kl_per_dimension": [0.1, 0.2],
    "nll_100": 88.765,
    "nll_5000": 87.654,
    "nll_standard_error": 0.034,
    "nll_standard_error_over_images": 0.256,
    "control_images": 432,
    "linear_probe_accuracy": 0.9438,
    "encode_mflop": 20.61,
    "decode_mflop": 18.43,
    "seconds": 777.4,
    "hardware": "some processor, 3 threads, fp32",
}
TRAINING = {
    "command": "vae train --seed 8",
    "epochs_done": 123.4,
    "steps": 54_321,
    "train_images": 59_000,
    "torch": "9.9.9",
}
SHOWN = ["91.23", "65.43", "25.80", "89.12", "27 of 4", "88.77", "87.65 ± 0.03", "0.26", "94.4 %", "20.6, 18.4"]
SHOWN += ["9876", "K = 100", "K = 5000", "432 random images", "777 s", "some processor, 3 threads, fp32", "c0ffee"]
SHOWN += ["123.4 epochs", "54321 steps", "59000 training images", "torch 9.9.9", "vae train --seed 8", "MNIST"]


def written(**changes: Any) -> str:
    notes = checkpoint.Notes("digits", "MNIST", metrics=METRICS | changes, training=TRAINING)
    return card(Path("models/digits.safetensors"), CONFIG, notes, "c0ffee")


@pytest.mark.parametrize("figure", SHOWN)
def test_the_card_shows_what_was_measured(figure: str) -> None:
    assert figure in written()


def test_the_card_has_no_figure_of_its_own() -> None:
    text = re.sub(r"1x8x8|8x8|with 4 latents|`percentile` near 0", "", written())  # the configuration; a word
    for figure in sorted(SHOWN, key=len, reverse=True):
        text = text.replace(figure, "")
    left = [number for number in re.findall(r"\d+(?:\.\d+)?", text) if number not in ("5000", "100", "256")]
    assert left == []  # 5000 and 100 draws are named in the text too; SHA-256 is a name
    assert "SHA-256" in text


@pytest.mark.parametrize(
    "name", ["negative_elbo", "kl", "nll_5000", "active_units", "seconds", "images", "encode_mflop"]
)
def test_a_figure_on_the_card_follows_its_measurement(name: str) -> None:
    assert written(**{name: METRICS[name] + 1}) != written()


def test_a_model_without_labels_or_binarization_has_a_card_without_them() -> None:
    text = written(linear_probe_accuracy=None, binarization="none")
    assert "linear probe" not in text
    assert "| on 9876 held-out images of MNIST | |" in text


def test_a_model_that_was_not_evaluated_has_no_card() -> None:
    with pytest.raises(KeyError):
        card(Path("a.safetensors"), CONFIG, checkpoint.Notes("a"), "0")


def test_the_card_of_a_run_without_a_recorded_command_says_so() -> None:
    text = card(Path("a.safetensors"), CONFIG, checkpoint.Notes("digits", "MNIST", metrics=METRICS), "0")
    assert text.startswith("# digits\n")
    assert "the command was not recorded" in text
    assert "? epochs, ? steps" in text
