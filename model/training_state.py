"""Everything that a training needs to go on where it stopped, in one safetensors file.

Random numbers are not in it: each step seeds its own generator from the run's seed and the step's number, so the
step's number is all the state they have.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from model.checkpoint import CheckpointError, write_atomically
from model.optimize import MovingAverage, StepGuard
from model.vae import VAE


@dataclass(frozen=True)
class SavedState:
    """What is in a state file.

    Attributes:
        path: the file.
        tensors: all of them, under their names there.
        numbers: everything else.
    """

    path: Path
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration of the run, with how far it went."""
        config: dict[str, Any] = self.numbers["config"]
        return config


@dataclass
class TrainingState:
    """A training between two steps.

    Attributes:
        vae: the network being trained.
        optimizer: its AdamW.
        average: the moving average of its weights, which is what gets served.
        guard: the gradient norms seen last.
        step: updates done, skipped ones included.
        seconds: training time so far, over all resumes.
        best: lowest negative bound on the validation images so far, in nats; infinite before the first.
    """

    vae: VAE
    optimizer: torch.optim.Optimizer
    average: MovingAverage
    guard: StepGuard = field(default_factory=StepGuard)
    step: int = 0
    seconds: float = 0.0
    best: float = float("inf")

    def save(self, path: Path, config: dict[str, Any]) -> None:
        """Write the state atomically, with the resolved training configuration beside it."""
        tensors = {f"network.{name}": value for name, value in self.vae.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.values.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
        numbers = {
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best if self.best < float("inf") else None,
            "norms": list(self.guard.norms),
            "skipped": self.guard.skipped,
            "in_a_row": self.guard.in_a_row,
            "config": config,
        }
        contiguous = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        write_atomically(path, serialize(contiguous, {"state": json.dumps(numbers)}))

    def restore(self, saved: SavedState) -> None:
        """Take over what :meth:`save` wrote; the network's shape must be the same.

        Raises:
            CheckpointError: the state is of another network.
        """
        try:
            self._take(saved.tensors, saved.numbers)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{saved.path}: this training state is of another network") from error

    def _take(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        averages = _under(tensors, "average.")
        wanted = {name: value.shape for name, value in self.average.values.items()}
        if {name: value.shape for name, value in averages.items()} != wanted:
            raise ValueError("the averages are those of other parameters")
        self.vae.load_state_dict(_under(tensors, "network."))
        self._take_optimizer(_under(tensors, "optimizer."))
        for name, value in averages.items():
            self.average.values[name].copy_(value)
        self.step, self.seconds = numbers["step"], numbers["seconds"]
        self.best = float("inf") if numbers["best"] is None else numbers["best"]
        self.guard.norms.extend(numbers["norms"])
        self.guard.skipped, self.guard.in_a_row = numbers["skipped"], numbers["in_a_row"]

    def _take_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            index, slot = name.split(".", 1)
            state.setdefault(int(index), {})[slot] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        for parameter, slots in self.optimizer.state.items():
            for slot in slots.keys() - {"step"}:
                if slots[slot].shape != parameter.shape:
                    raise ValueError(f"{slot} of the optimizer is of another parameter")
                slots[slot] = torch.empty_like(parameter).copy_(slots[slot])  # laid out in memory as it was


def read_state(path: Path) -> SavedState:
    """Return what is in a state file.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()  # a method of the file, which is no dictionary
            tensors = {name: file.get_tensor(name) for name in names}
            return SavedState(path, tensors, json.loads((file.metadata() or {})["state"]))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; there is no training to resume") from error
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable training state") from error


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
