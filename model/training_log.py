"""What a training says of itself at each evaluation: a line of JSON, and TensorBoard's events where they are wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class TrainingLog:
    """Writes to ``log.jsonl`` in a run's folder; a resumed run goes on in the same file."""

    def __init__(self, out: Path, tensorboard: bool = False) -> None:
        """Write nothing yet.

        Args:
            out: the run's folder, made with the first line.
            tensorboard: whether to write event files there too.

        Raises:
            ValueError: TensorBoard is wanted and not installed.
        """
        self._out, self._writer = out, None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError("--tensorboard: not installed; pip install 'vae-service[tensorboard]'") from error
            self._writer = SummaryWriter(str(out))

    def write(self, line: dict[str, Any]) -> None:
        """Add a line; its numbers are drawn over its ``step``."""
        self._out.mkdir(parents=True, exist_ok=True)
        with (self._out / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        if self._writer:
            for name, value in line.items():
                if value is not None and name != "step":
                    self._writer.add_scalar(name, value, line["step"])
            self._writer.flush()
