"""A file of latents that grows: what is in it at the end, in each format, and what it is not continued with."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from app import latent_file
from app.latent_file import LatentFile, OtherLatents
from app.results import read_latents

MADE_OF = {"weights": "0123", "files": ["in"]}
MU = np.arange(20, dtype=np.float32).reshape(5, 4) / 3
SIGMA = MU + 1
NAMES = ["a.png", "b.png", "é.png", "\udcff.png", "e.png"]
PRINTED = ["a.png", "b.png", "é.png", "�.png", "e.png"]


def append(file: LatentFile, rows: slice, **skipped: str) -> None:
    file.append(NAMES[rows], {"mu": MU[rows], "sigma": SIGMA[rows]}, skipped)


def write(out: Path) -> None:
    """Write in two runs, with an answer that holds no latents between."""
    with LatentFile(out, MADE_OF) as file:
        append(file, slice(2), broken="why")
        file.append([], {}, {"empty": "why not"})
    with LatentFile(out, MADE_OF) as file:
        assert (file.rows, file.done) == (2, {"a.png", "b.png", "broken", "empty"})
        assert file.skipped == {"broken": "why", "empty": "why not"}
        append(file, slice(2, 5))
        file.finish()
    assert not file.part.exists()


def test_safetensors_file_has_both_tensors_and_the_names(tmp_path: Path) -> None:
    out = tmp_path / "l.safetensors"
    write(out)
    tensors = safetensors.numpy.load_file(out)
    assert np.array_equal(tensors["mu"], MU)
    assert np.array_equal(tensors["sigma"], SIGMA)
    with safetensors.safe_open(out, "numpy") as file:
        assert json.loads(file.metadata()["files"]) == PRINTED
    assert int.from_bytes(out.read_bytes()[:8], "little") % 8 == 0
    assert np.array_equal(read_latents(out), MU)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_names_that_do_not_fit_the_header_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_file, "MAX_METADATA", 20)
    out = tmp_path / "l.safetensors"
    write(out)
    assert np.array_equal(safetensors.numpy.load_file(out)["sigma"], SIGMA)
    assert json.loads((tmp_path / "l.safetensors.files.json").read_text()) == PRINTED


def test_npy_file_has_mu_and_the_names_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "l.npy")
    assert np.array_equal(np.load(tmp_path / "l.npy"), MU)
    assert json.loads((tmp_path / "l.npy.files.json").read_text()) == PRINTED


def test_json_file_has_everything_and_the_same_float32(tmp_path: Path) -> None:
    write(tmp_path / "l.json")
    found = json.loads((tmp_path / "l.json").read_text())
    assert found["files"] == PRINTED
    assert np.array_equal(np.array(found["mu"], np.float32), MU)
    assert np.array_equal(np.array(found["sigma"], np.float32), SIGMA)


def test_an_output_that_is_there_stays_as_it_is_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "l.npy"
    out.write_bytes(b"old")

    def fail(self: LatentFile, path: Path, names: list[str]) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(LatentFile, "_write", fail)
    with LatentFile(out, MADE_OF) as file:
        append(file, slice(5))
        with pytest.raises(OSError, match="disk full"):
            file.finish()
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.npy", "l.npy.part"]
    monkeypatch.undo()
    with LatentFile(out, MADE_OF) as file:
        file.finish()
    assert np.array_equal(np.load(out), MU)


@pytest.mark.parametrize(
    ("made_of", "differs"),
    [
        ({**MADE_OF, "weights": "4567"}, "weights"),
        ({**MADE_OF, "files": ["out"]}, "files"),
        ({"weights": "", "files": []}, "weights and files"),
    ],
)
def test_latents_are_continued_with_the_same_weights_and_files_only(
    made_of: dict[str, object], differs: str, tmp_path: Path
) -> None:
    out = tmp_path / "l.npy"
    with LatentFile(out, MADE_OF) as file:
        append(file, slice(2))
    with pytest.raises(OtherLatents, match=f"begun with other {differs}$"):
        LatentFile(out, made_of)
    with LatentFile(out, MADE_OF) as file:
        assert file.rows == 2
    with LatentFile(out, made_of, restart=True) as file:
        assert (file.rows, file.done) == (0, set())
    assert not file.part.exists()  # nothing was answered


def test_nothing_is_written_where_there_are_no_latents(tmp_path: Path) -> None:
    with LatentFile(tmp_path / "l.npy", MADE_OF) as file:
        file.append([], {}, {"a.png": "broken"})
        file.finish()
    assert list(tmp_path.iterdir()) == []
