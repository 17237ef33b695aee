"""What a training says of itself, read back."""

import json
import sys
from pathlib import Path

import pytest

from model.training_log import TrainingLog


def test_each_evaluation_is_a_line_of_json_and_a_second_log_goes_on(tmp_path: Path) -> None:
    TrainingLog(tmp_path / "run").write({"step": 5, "nats": 90.5})
    TrainingLog(tmp_path / "run").write({"step": 10, "nats": None})
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 5, "nats": 90.5}, {"step": 10, "nats": None}]


def test_tensorboard_reads_the_same_numbers_over_the_steps(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path, tensorboard=True)
    log.write({"step": 5, "nats": 90.5, "skipped": 0})
    log.write({"step": 10, "nats": None, "skipped": 1})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("skipped")] == [(5, 0), (10, 1)]
    assert [(event.step, event.value) for event in events.Scalars("nats")] == [(5, 90.5)]


def test_without_tensorboard_the_flag_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install 'vae-service\[tensorboard\]'"):
        TrainingLog(tmp_path, tensorboard=True)
