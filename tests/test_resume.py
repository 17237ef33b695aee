"""An interruption of a training changes nothing: not a stop between steps, not a signal, not ``kill -9``."""

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model import checkpoint
from model.training import Training
from model.training_state import read_state
from tests import runs
from tests.runs import FLAGS, ROOT, TINY, run, traces, write_folder


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate after every epoch, which has 5 steps here."""
    monkeypatch.setattr("model.training.STEPS_BETWEEN_EVALUATIONS", 1)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The arguments of a run."""
    return runs.arguments(tmp_path)


@pytest.mark.parametrize(
    ("changes", "stops"),
    [
        ({}, (1, 2, 13, 20)),  # in the first epoch, twice; in the middle; at an evaluation
        ({"precision": "fp32", "validation": 0, "weight_decay": 0.1}, (3, 23)),
        ({"channels": 3, "likelihood": "discretized_logistic", "widths": (8, 16), "blocks": (1, 1)}, (7,)),
        ({"likelihood": "gaussian", "clip": 0.5, "kl_warmup": 0.9}, (7,)),
    ],
)
def test_an_interrupted_and_resumed_training_equals_the_uninterrupted_one_bit_for_bit(
    tmp_path: Path, often: None, changes: dict[str, Any], stops: tuple[int, ...]
) -> None:
    runs.train(tmp_path / "whole", **changes)
    runs.train(tmp_path / "pieces", stops=stops, **changes)
    whole, pieces = traces(tmp_path / "whole"), traces(tmp_path / "pieces")
    assert whole["step"] == 24
    assert [name for name in whole if whole[name] != pieces[name]] == []
    assert whole.keys() == pieces.keys()


@pytest.mark.parametrize("lost", ["norms", "optimizer.0.exp_avg", "average.encoder.mu.weight", "step"])
def test_each_part_of_the_state_matters(tmp_path: Path, often: None, lost: str) -> None:
    """The control of the test above: without this part the resumed run is another one, or there is none."""
    runs.train(tmp_path / "whole", clip=0.5)
    training = Training(TINY, runs.dataset(), tmp_path / "pieces")
    runs.stop_after(training, 13)
    training.run()
    saved = read_state(tmp_path / "pieces" / "state.safetensors")
    if lost in saved.tensors:
        saved.tensors[lost].zero_()
    else:
        saved.numbers[lost] = type(saved.numbers[lost])()
    again = Training(TINY, runs.dataset(), tmp_path / "pieces")
    again.resume(saved)
    again.run()
    assert traces(tmp_path / "whole") != traces(tmp_path / "pieces")


def test_a_state_file_that_is_not_whole_or_of_another_network_is_refused(tmp_path: Path) -> None:
    runs.train(tmp_path, max_steps=2)
    path = tmp_path / "state.safetensors"
    saved = read_state(path)
    other = Training(runs.replace(TINY, hidden=24), runs.dataset(), tmp_path)
    with pytest.raises(
        checkpoint.CheckpointError, match=r"state.safetensors: this training state is of another network"
    ):
        other.resume(saved)
    for name in ("network.encoder.mu.bias", "average.encoder.mu.bias"):
        lacking = runs.replace_tensors(saved, {key: value for key, value in saved.tensors.items() if key != name})
        with pytest.raises(checkpoint.CheckpointError, match="of another network"):
            Training(TINY, runs.dataset(), tmp_path).resume(lacking)
    wrong = runs.replace_tensors(saved, saved.tensors | {"optimizer.0.exp_avg": torch.zeros(1)})
    with pytest.raises(checkpoint.CheckpointError, match="of another network"):
        Training(TINY, runs.dataset(), tmp_path).resume(wrong)
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], b"\x80\x04pickle"):
        path.write_bytes(damaged)
        with pytest.raises(checkpoint.CheckpointError, match="not a readable training state"):
            read_state(path)


def test_a_run_that_goes_on_with_another_objective_forgets_the_best_of_the_first(tmp_path: Path) -> None:
    runs.train(tmp_path, max_steps=4)
    saved = read_state(tmp_path / "state.safetensors")
    training = Training(replace(TINY, objective="iwae", draws=2), runs.dataset(), tmp_path)
    training.resume(saved)
    assert saved.numbers["best"] < math.inf
    assert training.state.best == math.inf


def test_the_best_of_the_first_part_stays_the_best_where_the_second_is_worse(tmp_path: Path) -> None:
    runs.train(tmp_path, max_steps=4)
    best = traces(tmp_path)["best"]
    saved = read_state(tmp_path / "state.safetensors")
    saved.numbers["best"] = -1e9
    training = Training(TINY, runs.dataset(), tmp_path)
    training.resume(saved)
    training.run()
    assert training.state.best == -1e9
    assert traces(tmp_path)["best"] == best
    assert traces(tmp_path)["last"] != best


def test_other_training_images_than_before_are_refused(tmp_path: Path) -> None:
    runs.train(tmp_path, max_steps=2)
    training = Training(TINY, runs.dataset(count=101), tmp_path)
    with pytest.raises(ValueError, match="that run had 90 training images, there are 91 now"):
        training.resume(read_state(tmp_path / "state.safetensors"))


# -------------------------------------------------------------------------------------------- the command, signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_with_130_and_a_state_from_which_resume_reaches_the_same_end(
    tmp_path: Path, command: list[str], often: None, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    assert run(*command, "--out", str(tmp_path / "whole")).exit_code == 0
    before, update = signal.getsignal(number), Training.update

    def interrupted(training: Training) -> float:
        if training.state.step == 8:
            signal.raise_signal(number)
            assert signal.getsignal(number) is signal.SIG_DFL  # a second one would end the process
        return update(training)

    monkeypatch.setattr(Training, "update", interrupted)
    stopped = run(*command)
    assert stopped.exit_code == 130
    assert f"stopped by {number.name}; go on with --resume" in stopped.stderr
    assert signal.getsignal(number) is before
    assert read_state(tmp_path / "out" / "state.safetensors").numbers["step"] == 9
    assert (tmp_path / "out" / "log.jsonl").read_text().count("\n") == 1  # of step 6: none where it was stopped
    assert checkpoint.load(tmp_path / "out" / "last.safetensors").notes.training["steps"] == 9
    monkeypatch.setattr(Training, "update", update)
    resumed = run("--resume", *command[-4:])
    assert resumed.exit_code == 0, resumed.output
    assert resumed.stdout == f"{tmp_path / 'out' / 'best.safetensors'}\n"
    assert traces(tmp_path / "whole") == traces(tmp_path / "out")


def test_a_finished_run_resumes_to_nothing_and_a_longer_one_goes_on(tmp_path: Path, command: list[str]) -> None:
    assert run(*command).exit_code == 0
    before = traces(tmp_path / "out")
    assert run("--resume", *command[-4:]).exit_code == 0
    assert traces(tmp_path / "out") == before
    assert run("--resume", "--max-steps", "30", *command[-4:]).exit_code == 0
    assert read_state(tmp_path / "out" / "state.safetensors").numbers["step"] == 30


def test_a_folder_that_holds_a_training_is_not_trained_over(tmp_path: Path, command: list[str]) -> None:
    assert run(*command, "--max-steps", "1").exit_code == 0
    before = traces(tmp_path / "out")
    again = run(*command)
    assert again.exit_code == 1
    assert (
        again.stderr
        == f"Error: {tmp_path / 'out'} holds a training already; go on with --resume, or name another --out\n"
    )
    assert traces(tmp_path / "out") == before


# ------------------------------------------------------------------------------------------------------- kill -9


def kill(tmp_path: Path, kills: int) -> list[dict[str, int]]:
    """Kill a training so many times, and return what was found after each death and at its end."""
    folder, out = write_folder(tmp_path / "images"), tmp_path / "killed"
    command = [sys.executable, "-m", "tests.kill_training", str(folder), str(out), str(kills), "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=160, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    deaths = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(deaths) == kills + 1
    return deaths


def whole(tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the traces of a run that nobody disturbed."""
    monkeypatch.setattr("model.training.STEPS_BETWEEN_EVALUATIONS", 1)
    places = ["--data", str(tmp_path / "images"), "--data-dir", str(tmp_path), "--out", str(tmp_path / "whole")]
    assert run(*FLAGS, "--max-steps", str(steps), *places).exit_code == 0
    return traces(tmp_path / "whole")


def check_deaths(tmp_path: Path, kills: int, monkeypatch: pytest.MonkeyPatch) -> None:
    deaths = kill(tmp_path, kills)
    steps = [death.get("state", 0) for death in deaths]
    assert steps == sorted(steps)  # no death takes back what was saved before
    assert steps[-1] == deaths[-1]["last"]
    assert [death["evaluations"] for death in deaths] == sorted({death["evaluations"] for death in deaths})
    assert traces(tmp_path / "killed") == whole(tmp_path, steps[-1], monkeypatch)


def test_kill_9_leaves_files_that_load_and_resume_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_deaths(tmp_path, 3, monkeypatch)


@pytest.mark.slow
def test_kill_9_fifty_times_leaves_files_that_load_and_resume_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_deaths(tmp_path, 50, monkeypatch)
