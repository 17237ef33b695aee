"""Training in several processes: the same steps as in one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import checkpoint
from model.parallel import Team, team_on
from tests import runs

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent


def test_a_team_of_one_leaves_everything_as_it_is() -> None:
    with team_on(CPU, 7) as team:
        assert team == Team(0, 1, CPU)
        rows = torch.arange(7)
        assert torch.equal(team.share(rows), rows)
        team.average([rows])
        assert torch.equal(rows, torch.arange(7))
        assert team.agree(0.25, True) == (0.25, True)


def test_the_shares_of_a_team_are_the_whole_batch() -> None:
    rows = torch.arange(12)
    shares = [Team(rank, 3, CPU).share(rows) for rank in range(3)]
    assert {len(share) for share in shares} == {4}
    assert sorted(torch.cat(shares).tolist()) == rows.tolist()


def test_a_batch_that_cannot_be_shared_out_evenly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with (
        pytest.raises(ValueError, match="--batch-size: got 16; expected a multiple of the 3 processes"),
        team_on(CPU, 16),
    ):
        pass


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(tmp_path: Path) -> None:
    arguments = [*runs.arguments(tmp_path)[:-2], "--precision", "fp32", "--max-steps", "30", "--out"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for command, out in (([sys.executable], "one"), (launcher, "two")):
        words = [*command, "-m", "model.train", *arguments, str(tmp_path / out)]
        done = subprocess.run(
            words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{tmp_path / out / 'best.safetensors'}\n"
    one, two = (checkpoint.load(tmp_path / out / "last.safetensors") for out in ("one", "two"))
    torch.testing.assert_close(one.vae.state_dict(), two.vae.state_dict(), rtol=1e-3, atol=1e-5)
    assert len((tmp_path / "two" / "log.jsonl").read_text().splitlines()) == len(
        (tmp_path / "one" / "log.jsonl").read_text().splitlines()
    )
