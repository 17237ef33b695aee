"""The evaluation: its figures against brute force, and what it writes."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_digits

from model import checkpoint, evaluate
from model.data import Dataset
from model.elbo import importance_bound, log_weights
from model.evaluate import Protocol, flops, log_likelihood
from model.gaussian import noise
from model.golden import drawn_images
from model.pictures import COLUMNS, reconstruction_rows, save_grid
from model.probe import linear_probe
from model.scores import frozen_targets
from tests import runs
from tests.runs import FLAGS
from tests.tiny import CONFIG, tiny_vae

FEW = Protocol(few=4, many=32, control=10)


def labelled(count: int) -> Dataset:
    labels = np.arange(count, dtype=np.uint8) % 2
    images = runs.squares(count) // 2 + 127 * labels[:, None, None, None]
    return Dataset("halves", images, images[:40], labels, labels[:40])


# ------------------------------------------------------------------------------------------------------ figures


def test_the_nll_with_all_images_as_control_is_brute_force() -> None:
    vae, x = tiny_vae(), frozen_targets(runs.squares(12), True, 0)
    figures = log_likelihood(vae, x, Protocol(few=4, many=32, control=12, seed=3))
    weights = log_weights(vae, x, *vae.encode(x), torch.from_numpy(noise(3, 12, (32, CONFIG.latent_dim))))
    assert figures["nll_4"] == pytest.approx(-float(importance_bound(weights[:, :4]).mean()), rel=1e-6)
    assert figures["nll_32"] == pytest.approx(-float(importance_bound(weights).mean()), rel=1e-6)
    assert figures["control_images"] == 12


def test_the_nll_with_some_images_as_control_is_brute_force_within_its_standard_error() -> None:
    vae, x = tiny_vae(), frozen_targets(runs.squares(80), True, 0)
    weights = log_weights(vae, x, *vae.encode(x), torch.from_numpy(noise(3, 80, (32, CONFIG.latent_dim))))
    brute = -float(importance_bound(weights).mean())
    errors = []
    for seed in range(40):  # other control images, but the noise of seed 3
        chosen = evaluate._some(80, 20, seed)
        few, many = importance_bound(weights[:, :4]), importance_bound(weights)
        gain = (many - few)[torch.from_numpy(chosen)]
        errors.append((-float(few.mean() + gain.mean()) - brute) / float(gain.std() / 20**0.5))
    assert abs(np.mean(errors)) < 0.7
    assert np.std(errors) < 1.5
    figures = log_likelihood(vae, x, Protocol(few=4, many=32, control=20, seed=3))
    assert abs(figures["nll_32"] - brute) < 4 * figures["nll_standard_error"]


def test_random_images_are_neither_a_prefix_nor_drawn_twice() -> None:
    chosen = evaluate._some(100, 20, 0)
    assert len(set(chosen.tolist())) == 20
    assert max(chosen) > 50
    np.testing.assert_array_equal(chosen, evaluate._some(100, 20, 0))
    assert sorted(evaluate._some(5, 20, 0)) == [0, 1, 2, 3, 4]


def test_every_figure_is_a_finite_number_of_json() -> None:
    figures = evaluate.evaluate(tiny_vae(), labelled(60), FEW)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["images"] == 40
    assert figures["negative_elbo"] == pytest.approx(figures["kl"] - figures["reconstruction"])
    assert figures["kl"] == pytest.approx(sum(figures["kl_per_dimension"]), abs=1e-3)
    assert figures["train_test_gap"] == pytest.approx(figures["negative_elbo"] - figures["train_negative_elbo"])
    assert figures["nll_4"] > figures["nll_32"]
    assert 0 <= figures["active_units"] <= CONFIG.latent_dim
    assert re.fullmatch("[0-9a-f]{64}", figures["targets_sha256"])


def test_training_images_are_compared_by_a_random_choice_since_folders_are_sorted_by_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[np.ndarray] = []
    dataset = labelled(60)
    original = evaluate.frozen_targets

    def noting(images: np.ndarray, binarize: bool, seed: int) -> Any:
        seen.append(images)
        return original(images, binarize, seed)

    monkeypatch.setattr(evaluate, "frozen_targets", noting)
    evaluate.evaluate(tiny_vae(), dataset, FEW)
    assert [len(images) for images in seen] == [40, 40]
    assert not np.array_equal(seen[1], dataset.train[:40])


def test_the_same_protocol_gives_the_same_figures() -> None:
    first, second = (evaluate.evaluate(tiny_vae(), labelled(50), FEW) for _ in range(2))
    assert first == second


def test_flops_are_those_of_the_convolutions_and_matrices() -> None:
    counts = flops(tiny_vae())
    encode = 2 * (16 * (4 * 8 * 9 + 2 * 8 * 8 * 9) + 128 * 16 + 2 * 16 * 4)  # 4x4 cells; a multiply-add is two
    decode = 2 * (4 * 16 + 16 * 128 + 4 * 8 + 16 * (2 * 8 * 8 * 9 + 8 * 4 * 9))
    assert counts == {"encode_mflop": pytest.approx(encode / 1e6), "decode_mflop": pytest.approx(decode / 1e6)}


def test_a_linear_probe_reads_separable_labels_and_guesses_random_ones() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 600)
    centers = np.float32([[0, 0], [40, 0], [0, 0.1]])
    features = torch.from_numpy(centers[labels] + generator.normal(0, [5, 0.01], (600, 2)).astype(np.float32)).float()
    assert linear_probe(features[:300], labels[:300], features[300:], labels[300:]) > 0.95
    shuffled = generator.permutation(labels)
    assert linear_probe(features[:300], shuffled[:300], features[300:], shuffled[300:]) < 0.55


# --------------------------------------------------------------------------------------------- pictures, command


def test_reconstructions_lie_below_their_originals_also_where_a_row_is_not_full() -> None:
    vae, x = tiny_vae(), frozen_targets(runs.squares(COLUMNS + 3), True, 0)
    rows = reconstruction_rows(vae, x)
    assert len(rows) == 4 * COLUMNS
    mean = torch.sigmoid(vae.decode(vae.encode(x)[0]))
    np.testing.assert_array_equal(rows[:COLUMNS], 255 * x[:COLUMNS].numpy())
    np.testing.assert_allclose(rows[COLUMNS : 2 * COLUMNS], 255 * mean[:COLUMNS], atol=0.51)
    np.testing.assert_array_equal(rows[2 * COLUMNS : 2 * COLUMNS + 3], 255 * x[COLUMNS:].numpy())
    np.testing.assert_allclose(rows[3 * COLUMNS : 3 * COLUMNS + 3], 255 * mean[COLUMNS:], atol=0.51)
    assert not rows[3 * COLUMNS + 3 :].any()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_is_a_png_of_all_images(tmp_path: Path, channels: int) -> None:
    images = runs.squares(6, channels)
    save_grid(images, 3, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        pixels = np.asarray(picture).reshape(16, 24, channels)
    np.testing.assert_array_equal(pixels[8:, 16:], images[5].transpose(1, 2, 0))


def test_drawn_images_depend_on_the_seed_and_the_first_do_not_depend_on_the_number() -> None:
    vae = tiny_vae()
    np.testing.assert_array_equal(drawn_images(vae, 3, 1), drawn_images(vae, 9, 1)[:3])
    assert not np.array_equal(drawn_images(vae, 3, 1), drawn_images(vae, 3, 2))


def test_digits_as_a_folder_of_pngs_are_trained_on_evaluated_and_described(tmp_path: Path) -> None:
    for number, digit in enumerate(load_digits().images[:300]):
        folder = tmp_path / "digits" / str(number % 7)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digit * 15.9).astype(np.uint8)).save(folder / f"{number}.png")
    out, cache = tmp_path / "out", ["--data-dir", str(tmp_path / "cache")]
    trained = runs.run(*FLAGS, "--data", str(tmp_path / "digits"), "--max-steps", "40", "--out", str(out), *cache)
    assert trained.exit_code == 0, trained.output
    path = out / "best.safetensors"
    before = checkpoint.load(path)
    few = ["--few", "3", "--many", "9", "--control", "5"]
    scored = CliRunner().invoke(evaluate.main, [str(path), *few, *cache])
    assert scored.exit_code == 0, scored.output
    after = checkpoint.load(path)
    assert after.digest == before.digest
    metrics = json.loads((out / "best.json").read_text())
    assert after.notes.metrics == metrics
    assert metrics["images"] == len(after.notes.held_out_elbo)
    assert (metrics["few"], metrics["many"], metrics["control_images"]) == (3, 9, 5)
    assert 15 < metrics["nll_9"] <= metrics["negative_elbo"] + 1 < 64
    assert "linear_probe_accuracy" not in metrics  # a folder has no labels
    for name in ("best.md", "best-samples.png", "best-reconstructions.png"):
        assert (out / name).stat().st_size > 500
    assert before.notes.training["command"] in (out / "best.md").read_text()
    command = CliRunner().invoke(evaluate.main, [str(path), *few, *cache, "--command", "vae train by hand"])
    assert command.exit_code == 0
    assert checkpoint.load(path).notes.training["command"] == "vae train by hand"


@pytest.mark.parametrize("arguments", [["--control", "1"], ["--few", "0"], ["--many", "-3"]])
def test_too_few_draws_or_images_are_a_usage_error(tmp_path: Path, arguments: list[str]) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, tiny_vae(), checkpoint.Notes("a"))
    assert CliRunner().invoke(evaluate.main, [str(path), *arguments]).exit_code == 2


def test_what_cannot_be_evaluated_is_one_readable_line(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, tiny_vae(), checkpoint.Notes("a", training={"data": "/nowhere"}))
    before = path.read_bytes()
    missing = CliRunner().invoke(evaluate.main, [str(path), "--data-dir", str(tmp_path)])
    assert missing.exit_code == 1
    assert missing.stderr == "Error: /nowhere: neither a folder nor one of mnist, fashion-mnist\n"
    assert path.read_bytes() == before
    path.write_bytes(b"pickle")
    damaged = CliRunner().invoke(evaluate.main, [str(path)])
    assert damaged.stderr.startswith(f"Error: {path}: not a readable safetensors file")
