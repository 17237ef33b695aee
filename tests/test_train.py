"""Training: what a run leaves behind, what it computes, and how it refuses."""

import copy
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from model import checkpoint
from model.batches import VALIDATION_SEED
from model.data import Dataset
from model.elbo import ObjectiveName, elbo_terms
from model.optimize import DivergedError, MovingAverage
from model.scores import bounds
from model.training import Training
from model.training_state import read_state
from tests import runs
from tests.runs import TINY, run, traces


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate after every epoch, which has 5 steps here."""
    monkeypatch.setattr("model.training.STEPS_BETWEEN_EVALUATIONS", 1)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The arguments of a run."""
    return runs.arguments(tmp_path)


def log_of(out: Path) -> list[dict[str, Any]]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--resume"], "state.safetensors: no such file; there is no training to resume"),
        (["--data", "/nowhere"], "/nowhere: neither a folder nor one of mnist, fashion-mnist"),
        (["--height", "9"], "both sides must be multiples of 2"),
        (["--device", "abacus"], "--device abacus: "),
        (["--ema", "2"], "--ema: got 2.0; expected 0 to 1"),
    ],
)
def test_what_cannot_be_trained_is_one_readable_line(command: list[str], arguments: list[str], words: str) -> None:
    refused = run(*command, *arguments)
    assert refused.exit_code == 1
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert words in last
    assert "Traceback" not in refused.output


def test_resume_refuses_another_seed_in_one_line(command: list[str]) -> None:
    assert run(*command, "--max-steps", "1").exit_code == 0
    refused = run("--resume", "--seed", "5", *command[-4:])
    assert refused.exit_code == 1
    assert refused.stderr.splitlines()[-1] == "Error: --seed cannot change with --resume; this run has 0"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_one_readable_line(command: list[str]) -> None:
    refused = run(*command, "--device", "cuda")
    assert refused.exit_code == 1
    assert refused.stderr.splitlines()[-1].startswith("Error: --device cuda: ")


def test_unreadable_images_are_named_on_stderr(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "images" / "broken.png").write_bytes(b"nothing")
    done = run(*command, "--max-steps", "1")
    assert "skipped broken.png: the file is neither PNG nor JPEG" in done.stderr
    assert "images: " in done.stderr
    assert "1 files skipped; sizes 8x8 (120)" in done.stderr


# --------------------------------------------------------------------------------------------- what a run leaves


def test_a_run_leaves_models_that_load_a_log_in_json_and_pictures(tmp_path: Path, often: None) -> None:
    training = runs.train(tmp_path)
    lines = log_of(tmp_path)
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 24]
    assert {path.name for path in tmp_path.iterdir()} == {
        "best.safetensors", "last.safetensors", "state.safetensors", "log.jsonl", "samples.png", "reconstructions.png",
    }  # fmt: skip
    best = checkpoint.load(tmp_path / "best.safetensors")
    last = checkpoint.load(tmp_path / "last.safetensors")
    losses = {line["step"]: line["validation_negative_elbo"] for line in lines}
    assert losses[best.notes.training["steps"]] == min(losses.values()) == round(training.state.best, 4)
    assert last.notes.training["steps"] == 24
    assert last.notes.trained_on == "squares"
    assert len(last.notes.golden_images) == 16
    assert last.notes.training["command"] == TINY.command()
    assert last.notes.training["train_images"] == 90
    for name, value in last.vae.state_dict().items():
        assert torch.equal(value, training.state.average.values[name])  # the average is served
        assert not torch.equal(value, training.state.vae.state_dict()[name])


@pytest.mark.parametrize("objective", ["iwae", "dreg"])
def test_the_best_weights_are_those_of_the_bound_that_is_trained_for(
    tmp_path: Path, often: None, objective: ObjectiveName
) -> None:
    training = runs.train(tmp_path, objective=objective, draws=3)
    lines = log_of(tmp_path)
    losses = {line["step"]: line["validation_negative_bound"] for line in lines}
    assert all(line["validation_negative_bound"] < line["validation_negative_elbo"] for line in lines)
    best = checkpoint.load(tmp_path / "best.safetensors")
    assert losses[best.notes.training["steps"]] == min(losses.values()) == round(training.state.best, 4)
    x = training.batches.validation
    again = -bounds(best.vae, x, 3, np.arange(len(x)), VALIDATION_SEED).mean()
    assert again == pytest.approx(training.state.best, abs=1e-4)


@pytest.mark.parametrize(("validation", "scored"), [(10, 10), (0, 100)])
def test_a_model_that_was_not_evaluated_yet_has_scores_to_compare_others_with(
    tmp_path: Path, validation: int, scored: int
) -> None:
    runs.train(tmp_path, validation=validation, max_steps=1)
    scores = checkpoint.load(tmp_path / "last.safetensors").notes.held_out_elbo
    assert len(scores) == scored
    assert scores.tolist() == sorted(scores.tolist())
    assert -64 < scores[0] <= scores[-1] < 0


def test_training_lowers_the_negative_elbo(tmp_path: Path) -> None:
    runs.train(tmp_path, max_steps=150, ema=0.9)
    lines = log_of(tmp_path)
    assert [line["step"] for line in lines] == [50, 100, 150]  # epochs of 5 steps are too short to be evaluated each
    assert lines[-1]["validation_negative_elbo"] < 30  # 64 pixels times ln 2, 44, before the first step
    assert lines[-1]["validation_kl"] > 0.5


def test_the_scale_of_pixels_is_learned_twenty_times_as_fast(tmp_path: Path) -> None:
    training = Training(replace(TINY, likelihood="gaussian", warmup_steps=0), runs.dataset(), tmp_path)
    scale, weight = training.state.vae.likelihood.log_scale, training.state.vae.encoder.mu.bias
    before = [float(parameter.detach().flatten()[0]) for parameter in (scale, weight)]
    training.update()  # Adam's first step is the rate itself
    after = [float(parameter.detach().flatten()[0]) for parameter in (scale, weight)]
    moved = [abs(b - a) for a, b in zip(before, after, strict=True)]
    assert moved[0] == pytest.approx(20 * moved[1], rel=0.01)


def test_without_validation_images_the_newest_model_is_the_best(tmp_path: Path, often: None) -> None:
    runs.train(tmp_path, validation=0)
    assert traces(tmp_path)["best"] == traces(tmp_path)["last"]
    assert {line["validation_negative_elbo"] for line in log_of(tmp_path)} == {None}
    assert not (tmp_path / "reconstructions.png").exists()


def test_the_loss_is_summed_over_pixels_and_latents_and_averaged_over_the_batch(tmp_path: Path) -> None:
    training = Training(runs.replace(TINY, precision="fp32"), runs.dataset(), tmp_path)
    x, epsilon = training.batches.at(0, TINY.latent_dim)
    with torch.no_grad():
        terms = elbo_terms(training.state.vae, x, epsilon[:, 0])
    assert training.update() == pytest.approx(-float(terms.elbo.mean()), rel=1e-6)
    assert 40 < -float(terms.elbo.mean()) < 50  # 64 pixels times ln 2 before the first step


def norm_of(parameters: Iterable[torch.nn.Parameter]) -> float:
    return math.sqrt(sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None))


def test_gradients_are_those_of_the_mean_weighted_loss_clipped_to_the_global_norm(tmp_path: Path) -> None:
    training = Training(runs.replace(TINY, precision="fp32", clip=0.01), runs.dataset(), tmp_path)
    vae = copy.deepcopy(training.state.vae)
    x, epsilon = training.batches.at(0, TINY.latent_dim)
    terms = elbo_terms(vae, x, epsilon[:, 0])
    (0.1 * terms.kl - terms.reconstruction).mean().backward()
    training.update()
    assert training.state.guard.norms[0] == pytest.approx(norm_of(vae.parameters()), rel=1e-5)
    assert norm_of(training.state.vae.parameters()) == pytest.approx(0.01, rel=1e-3)


def test_a_run_ends_at_the_first_of_its_limits(tmp_path: Path) -> None:
    assert runs.train(tmp_path / "a", max_steps=7).state.step == 7
    assert runs.train(tmp_path / "b", max_steps=0, epochs=2).state.step == 10
    assert runs.train(tmp_path / "c", max_steps=7, epochs=1).state.step == 5


def test_a_time_budget_counts_all_resumes_and_ends_annealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, rates = [1000.0], []
    monkeypatch.setattr("model.training.time", SimpleNamespace(monotonic=lambda: now[0]))
    update = Training.update

    def second(training: Training) -> float:
        loss = update(training)
        now[0] += 1
        rates.append(training.state.optimizer.param_groups[0]["lr"])
        return loss

    monkeypatch.setattr(Training, "update", second)
    config = runs.replace(TINY, max_steps=0, time_budget=20.0, warmup_steps=1)
    training = Training(config, runs.dataset(), tmp_path)
    runs.stop_after(training, 8)
    training.run()
    now[0] += 100_000  # the pause does not count
    training = Training(config, runs.dataset(), tmp_path)
    training.resume(read_state(tmp_path / "state.safetensors"))
    assert training.progress() == pytest.approx(8 / 20)
    training.run()
    assert training.state.step == 20
    assert training.state.seconds == 20
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(TINY.learning_rate)
    assert rates[-1] < 0.01 * TINY.learning_rate


# ------------------------------------------------------------------------------------------------ when it diverges


@pytest.mark.parametrize("name", ["decoder.output.weight", "encoder.mu.bias"])
def test_a_weight_that_is_not_finite_ends_the_run_by_its_name(tmp_path: Path, name: str) -> None:
    training = Training(TINY, runs.dataset(), tmp_path / "out")
    with torch.no_grad():
        parameter = dict(training.state.vae.named_parameters())[name]
        parameter[(0,) * parameter.ndim] = torch.nan
    with pytest.raises(
        DivergedError, match=f"11 gradients could not be used.*first tensor that is not finite: {name}$"
    ):
        training.run()
    assert not (tmp_path / "out").exists()


def test_a_gradient_that_is_not_finite_ends_the_run_by_its_name(tmp_path: Path) -> None:
    training = Training(TINY, runs.dataset(), tmp_path / "out")
    dict(training.state.vae.named_parameters())["encoder.mu.bias"].register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(DivergedError, match=r"not finite: gradient of encoder.mu.bias$"):
        training.run()


def test_a_single_bad_batch_is_skipped_and_the_log_stays_json(
    tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(TINY, runs.dataset(), tmp_path)
    at = training.batches.at

    def poisoned(step: int, latent_dim: int, draws: int) -> Any:
        x, epsilon = at(step, latent_dim, draws)
        return (x * torch.nan if step in (3, 10, 11, 12, 13, 14) else x), epsilon

    monkeypatch.setattr(training.batches, "at", poisoned)
    training.run()
    assert training.state.guard.skipped == 6
    assert [line["skipped"] for line in log_of(tmp_path)] == [1, 1, 6, 6, 6]
    assert [line["train_negative_elbo"] is None for line in log_of(tmp_path)] == [False, False, True, False, False]
    checkpoint.load(tmp_path / "best.safetensors")


def test_averages_that_are_not_finite_are_never_written(tmp_path: Path, often: None) -> None:
    training = Training(TINY, runs.dataset(), tmp_path / "out")
    training.state.average = MovingAverage(training.state.vae, 0.999)
    training.state.average.values["encoder.hidden.bias"][0] = torch.inf
    with pytest.raises(DivergedError, match=r"the average of encoder.hidden.bias is not finite"):
        training.run()
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------- small data


def test_a_hundred_images_are_enough_with_the_presets_batch_and_validation_size(tmp_path: Path) -> None:
    training = runs.train(tmp_path, batch_size=256, validation=1000, max_steps=3)
    assert training.batches.size == training.batches.count == 90
    assert len(training.batches.validation) == 10
    assert checkpoint.load(tmp_path / "best.safetensors").notes.training["steps"] == 3


def test_training_does_not_change_its_data(tmp_path: Path) -> None:
    images = runs.squares(100)
    before = images.copy()
    Training(TINY, Dataset("squares", images, images[:2]), tmp_path).run()
    np.testing.assert_array_equal(images, before)


def test_a_run_can_start_from_another_model_and_learn_a_prior_for_it(tmp_path: Path, often: None) -> None:
    runs.train(tmp_path / "first")
    source = tmp_path / "first" / "best.safetensors"
    given = checkpoint.load(source).vae.state_dict()
    config = runs.replace(TINY, prior="realnvp", flow_couplings=2, flow_hidden=4, start_from=str(source))
    training = Training(config, runs.dataset(), tmp_path / "second")
    training.start_from(checkpoint.load(source).vae)
    for values in (training.state.vae.state_dict(), training.state.average.values):
        assert all(torch.equal(values[name], value) for name, value in given.items())
    training.run()
    assert checkpoint.load(tmp_path / "second" / "best.safetensors").vae.config.prior == "realnvp"


def test_a_run_does_not_start_from_a_model_of_another_shape(tmp_path: Path) -> None:
    training = Training(runs.replace(TINY, hidden=17), runs.dataset(), tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match=r"--start-from: .*another shape"):
        training.start_from(Training(TINY, runs.dataset(), tmp_path).state.vae)


def test_what_to_start_from_is_named_on_the_command_line(tmp_path: Path) -> None:
    result = runs.run(*runs.arguments(tmp_path), "--start-from", str(tmp_path / "missing"))
    assert result.exit_code == 1
    assert "missing: no such file and no such bundled model" in result.output
