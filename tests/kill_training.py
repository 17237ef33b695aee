"""Kill a training with SIGKILL at random moments, resume it each time, and look at its files after each death.

``python -m tests.kill_training FOLDER OUT KILLS SEED``: a small run of its own process for each life, forked from
one that has imported torch already. Prints one line of JSON for each death, then lets the run come to its end.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from model import checkpoint, train, training
from model.training_state import read_state
from tests.runs import FLAGS

EVALUATIONS_A_LIFE = 6  # on average more than a life has: the run must not be over before the last kill


def live(arguments: list[str]) -> int:
    """Train in a process of its own and return its number; it evaluates, and writes its files, every 5 steps."""
    if number := os.fork():
        return number
    status = 70
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 2)
        os.dup2(silence, 1)
        train.main(arguments, standalone_mode=False)
        status = 0
    finally:
        os._exit(status)


def lines(out: Path) -> int:
    log = out / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def examine(out: Path) -> dict[str, object]:
    """Load everything that is there; what cannot be loaded ends this script."""
    found: dict[str, object] = {"evaluations": lines(out)}
    for name in ("best", "last"):
        if (out / f"{name}.safetensors").exists():
            found[name] = checkpoint.load(out / f"{name}.safetensors").notes.training["steps"]
    if (out / "state.safetensors").exists():
        found["state"] = read_state(out / "state.safetensors").numbers["step"]
    return found


def main(folder: str, out: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).zero_grad()  # imports half of torch, here once
    training.STEPS_BETWEEN_EVALUATIONS = 1
    chance = random.Random(seed)
    steps = str(5 * EVALUATIONS_A_LIFE * (kills + 1))
    begin = [*FLAGS, "--max-steps", steps, "--data", folder, "--data-dir", str(out.parent), "--out", str(out)]
    resume = ["--resume", "--data-dir", str(out.parent), "--out", str(out)]
    for _ in range(kills):
        before = lines(out)
        child = live(resume if (out / "state.safetensors").exists() else begin)
        while lines(out) == before and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)  # until it has come further than its predecessor
        time.sleep(chance.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"the run was over before it was killed: {status}"
        print(json.dumps(examine(out)), flush=True)
    _, status = os.waitpid(live(resume if (out / "state.safetensors").exists() else begin), 0)
    assert status == 0, f"the last run ended with {status}"
    print(json.dumps(examine(out)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
