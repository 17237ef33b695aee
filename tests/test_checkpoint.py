"""A checkpoint is loaded whole and right, or refused in one readable line, and no code of the file is run."""

import json
import os
import pickle
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load as read_tensors
from safetensors.numpy import save as write_tensors

from model import checkpoint
from model.checkpoint import CheckpointError, Notes, atomic_file, digest_of, write_atomically
from model.golden import with_golden
from model.vae import VAEConfig
from tests.tiny import CONFIG, save_tiny, tiny_vae

NOTES = Notes("tiny", "noise", metrics={"nll": 1.5}, training={"seed": 3}, held_out_elbo=np.float32([-3, -2, -1]))
HEADER = 8  # bytes of the header's length


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a good checkpoint with everything in it."""
    return save_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors").read_bytes()


@pytest.fixture
def path(tmp_path: Path, whole: bytes) -> Path:
    """A good checkpoint, to be spoilt."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole)
    return path


def refusal(path: Path) -> str:
    """Return the one line that refuses the file; it names the file."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < 600
    return text.removeprefix(f"{path}: ")


def metadata_of(path: Path) -> dict[str, str]:
    raw = path.read_bytes()
    header = json.loads(raw[HEADER : HEADER + int.from_bytes(raw[:HEADER], "little")])
    metadata: dict[str, str] = header["__metadata__"]
    return metadata


def forge(path: Path, change: Callable[[dict[str, Any], dict[str, str]], None]) -> None:
    """Change tensors or metadata as somebody would who knows how to make digest and checksum right again."""
    arrays, metadata = read_tensors(path.read_bytes()), metadata_of(path)
    del metadata["checksum"]
    change(arrays, metadata)
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    weights = {name: array for name, array in arrays.items() if name.startswith("network.")}
    if "digest" in metadata:
        metadata["digest"] = digest_of(weights)
    metadata["checksum"] = digest_of(arrays, metadata)
    path.write_bytes(write_tensors(arrays, metadata))


def test_a_checkpoint_gives_back_network_notes_and_digest(tmp_path: Path) -> None:
    vae, path = tiny_vae(), tmp_path / "new" / "model.safetensors"
    notes = with_golden(vae, NOTES)
    digest = checkpoint.save(path, vae, notes)
    loaded = checkpoint.load(path)
    assert loaded.digest == digest
    assert loaded.vae.config == CONFIG
    assert not loaded.vae.training
    for (name, one), (other_name, other) in zip(vae.state_dict().items(), loaded.vae.state_dict().items(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
    for field in ("name", "trained_on", "metrics", "training"):
        assert getattr(loaded.notes, field) == getattr(notes, field)
    for field in ("held_out_elbo", "golden_images", "golden_mu", "golden_sigma"):
        np.testing.assert_array_equal(getattr(loaded.notes, field), getattr(notes, field))
    mu, _ = loaded.vae.encode(torch.from_numpy(notes.golden_images / np.float32(255)))
    np.testing.assert_allclose(mu, notes.golden_mu, atol=1e-5)


@pytest.mark.parametrize("likelihood", ["gaussian", "discretized_logistic"])
def test_what_a_likelihood_has_learned_is_kept(tmp_path: Path, likelihood: Any) -> None:
    vae = tiny_vae(config=replace(CONFIG, channels=3, likelihood=likelihood))
    checkpoint.save(tmp_path / "a.safetensors", vae, Notes("a"))
    loaded = checkpoint.load(tmp_path / "a.safetensors")
    assert torch.equal(loaded.vae.likelihood.log_scale, vae.likelihood.log_scale)  # type: ignore[union-attr]


def test_the_golden_batch_of_a_color_model_is_kept_whatever_its_layout_in_memory(tmp_path: Path) -> None:
    vae = tiny_vae(config=replace(CONFIG, channels=3, likelihood="discretized_logistic"))
    notes = with_golden(vae, Notes("color"))
    assert not notes.golden_images.flags.c_contiguous  # as the network leaves them: the channels last in memory
    checkpoint.save(tmp_path / "a.safetensors", vae, notes)
    loaded = checkpoint.load(tmp_path / "a.safetensors").notes
    np.testing.assert_array_equal(loaded.golden_images, notes.golden_images)


def test_notes_may_be_almost_empty(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.safetensors", tiny_vae(), Notes("bare"))
    notes = checkpoint.load(tmp_path / "a.safetensors").notes
    assert notes.name == "bare"
    assert len(notes.golden_images) == len(notes.held_out_elbo) == 0


def test_the_digest_depends_on_the_weights_and_on_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    digest = checkpoint.save(path, tiny_vae(), NOTES)
    assert checkpoint.save(path, tiny_vae(), Notes("other", metrics={"x": 2})) == digest
    assert checkpoint.load(path).digest == digest
    assert checkpoint.save(path, checkpoint.load(path).vae, NOTES) == digest  # whatever the layout in memory
    vae = tiny_vae()
    next(vae.parameters())[0, 0, 0, 0] += 1e-6
    assert checkpoint.save(path, vae, NOTES) != digest


def test_notes_that_json_has_no_words_for_are_refused_before_the_file_changes(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(path, tiny_vae(), replace(NOTES, metrics={"nll": float("nan")}))
    assert path.read_bytes() == before


def test_the_file_is_readable_by_everybody_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        checkpoint.save(tmp_path / "a.safetensors", tiny_vae(), NOTES)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o644


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_a_crash_in_the_middle_of_writing_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = path.read_bytes()

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, crash)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, tiny_vae(seed=1), NOTES)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_contents_reach_the_disk_before_the_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, swap = os.fsync, os.replace

    def seen_fsync(handle: int) -> None:
        steps.append("fsync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "fsync file")
        fsync(handle)

    def seen_swap(source: str, target: Path) -> None:
        steps.append("rename")
        assert Path(source).read_bytes() == b"whole"
        swap(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_swap)
    write_atomically(tmp_path / "file", b"whole")
    assert steps == ["fsync file", "rename", "fsync folder"]


def test_a_file_written_piece_by_piece_appears_only_when_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "file"
    with atomic_file(target) as file:
        file.write(b"one ")
        assert not target.exists()
        file.write(b"two")
    assert target.read_bytes() == b"one two"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.safetensors") == "no such file"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "not a readable safetensors file" in refusal(tmp_path)


def test_an_empty_file_is_refused(path: Path) -> None:
    path.write_bytes(b"")
    assert "not a readable safetensors file" in refusal(path)


def test_a_giant_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "giant.safetensors"
    with path.open("wb") as file:
        file.truncate(checkpoint.MAX_FILE_BYTES + 1)  # takes no space
    assert f"at most {checkpoint.MAX_FILE_BYTES}" in refusal(path)


def test_a_truncated_file_is_refused_wherever_it_ends(path: Path, whole: bytes) -> None:
    ends = [1, 7, 8, 9, 100, 1000, *np.linspace(2000, len(whole) - 1, 20).astype(int).tolist()]
    for end in ends:
        path.write_bytes(whole[:end])
        refusal(path)


def test_a_flipped_bit_is_found_wherever_it_is(path: Path, whole: bytes) -> None:
    start = HEADER + int.from_bytes(whole[:HEADER], "little")
    header = [*range(HEADER), *np.linspace(HEADER, start - 1, 150).astype(int).tolist()]
    tensors = np.linspace(start, len(whole) - 1, 100).astype(int).tolist()
    generator = np.random.default_rng(0)
    for place in header + tensors:
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(spoilt)
        if place >= start or not _says_the_same(spoilt, whole, start):
            refusal(path)


def _says_the_same(spoilt: bytes, whole: bytes, start: int) -> bool:
    """Return whether a header still means what it meant: one that is padded with a tab in place of a blank does."""
    try:
        return bool(json.loads(spoilt[HEADER:start]) == json.loads(whole[HEADER:start])) and spoilt[:8] == whole[:8]
    except ValueError:
        return False


def test_a_pickle_in_disguise_is_refused_and_not_run(path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(path.parent / "harm"),)

    for data in (pickle.dumps(Harm()), pickle.dumps({"network": Harm()}, protocol=0)):
        path.write_bytes(data)
        assert "not a readable safetensors file" in refusal(path)
    torch.save({"network": Harm()}, path)
    refusal(path)
    assert not (path.parent / "harm").exists()


def test_somebody_elses_safetensors_file_is_refused(path: Path) -> None:
    path.write_bytes(write_tensors({"weight": np.zeros(3, np.float32)}))
    assert "not a checkpoint of this project" in refusal(path)


def test_another_format_version_is_refused(path: Path) -> None:
    forge(path, lambda arrays, metadata: metadata.update(format="vae-service/2"))
    assert "not a checkpoint of this project (vae-service/1)" in refusal(path)


FIRST = "network.encoder.trunk.0.weight"


def set_tensor(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, Any], dict[str, str]], None]:
    return lambda arrays, metadata: arrays.update({name: make(arrays[name])})


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array.flat[-1] = value
    return array


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_tensor(FIRST, lambda a: a[:-1]), f"tensor {FIRST} is float32 (7, 4, 3, 3), expected float32 (8, 4, 3, 3)"),
        (set_tensor(FIRST, lambda a: a.ravel()), "expected float32 (8, 4, 3, 3)"),
        (set_tensor(FIRST, lambda a: a.astype(np.float16)), f"tensor {FIRST} is float16"),
        (set_tensor(FIRST, lambda a: a.astype(np.float64)), f"tensor {FIRST} is float64"),
        (set_tensor(FIRST, lambda a: a.astype(np.int32)), f"tensor {FIRST} is int32"),
        (set_tensor(FIRST, lambda a: with_value(a, np.nan)), f"tensor {FIRST} holds values that are not finite"),
        (set_tensor(FIRST, lambda a: with_value(a, -np.inf)), f"tensor {FIRST} holds values that are not finite"),
        (lambda arrays, metadata: arrays.pop(FIRST), f"tensor {FIRST} is missing"),
        (lambda arrays, metadata: arrays.pop("notes.golden_mu"), "tensor notes.golden_mu is missing"),
        (
            lambda arrays, metadata: arrays.update({"network.extra": np.zeros(1, np.float32)}),
            "tensor network.extra is unknown to this configuration",
        ),
        (lambda arrays, metadata: arrays.update({"extra": np.zeros(1, np.float32)}), "tensor extra is unknown"),
        (set_tensor("notes.golden_mu", lambda a: a[:, :-1]), "tensor notes.golden_mu is float32 (16, 3)"),
        (set_tensor("notes.golden_mu", lambda a: with_value(a, np.nan)), "notes.golden_mu holds values"),
        (set_tensor("notes.golden_sigma", lambda a: a * 0), "golden batch has no spread"),
        (set_tensor("notes.golden_images", lambda a: a.astype(np.float32)), "tensor notes.golden_images is float32"),
        (set_tensor("notes.golden_images", lambda a: a[:, :, :-1]), "expected uint8 (16, 1, 8, 8)"),
        (set_tensor("notes.golden_images", lambda a: a[0, 0, 0, 0]), "tensor notes.golden_images is uint8 ()"),
        (set_tensor("notes.held_out_elbo", lambda a: a[::-1].copy()), "not sorted"),
        (set_tensor("notes.held_out_elbo", lambda a: a[None]), "tensor notes.held_out_elbo"),
        (lambda arrays, metadata: metadata.update(digest="0"), None),
        (lambda arrays, metadata: metadata.pop("digest"), "do not match its digest"),
        (lambda arrays, metadata: metadata.pop("config"), "its configuration cannot be read: 'config'"),
        (lambda arrays, metadata: metadata.pop("notes"), "its configuration cannot be read: 'notes'"),
        (lambda arrays, metadata: metadata.update(config="[]"), "missing or unknown to this release"),
        (lambda arrays, metadata: metadata.update(config="7"), "its configuration cannot be read"),
        (lambda arrays, metadata: metadata.update(config="{"), "its configuration cannot be read"),
        (lambda arrays, metadata: metadata.update(config="[" * 100_000), "its configuration cannot be read"),
        (lambda arrays, metadata: metadata.update(notes="[]"), "its notes are not those of a checkpoint"),
        (lambda arrays, metadata: metadata.update(notes='{"name": 7}'), "its notes are not those of a checkpoint"),
    ],
)
def test_a_file_that_does_not_fit_itself_is_refused_though_its_checksum_is_right(
    path: Path, change: Callable[[dict[str, Any], dict[str, str]], None], words: str | None
) -> None:
    forge(path, change)
    if words is None:  # the forger makes the digest right again: the control of this test
        assert checkpoint.load(path).notes.name == "tiny"
    else:
        assert words in refusal(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latent_dim": 5}, "tensor network.encoder.mu.weight is float32 (4, 16), expected float32 (5, 16)"),
        ({"blocks": (2,)}, "is missing"),
        ({"likelihood": "gaussian"}, "tensor network.likelihood.log_scale is missing"),
    ],
)
def test_weights_of_another_configuration_are_refused(path: Path, change: dict[str, Any], words: str) -> None:
    config = json.dumps(replace(CONFIG, **change).to_dict())
    forge(path, lambda arrays, metadata: metadata.update(config=config))
    assert words in refusal(path)


@pytest.mark.parametrize(
    "change",
    [
        {"likelihood": "nonsense"},
        {"prior": {"a": 1}},
        {"height": -8},
        {"hidden": 10**15},
        {"widths": [8] * 1000},
        {"blocks": [10**6]},
        {"patch": 3},
    ],
)
def test_a_configuration_that_makes_no_network_or_an_endless_one_is_refused(path: Path, change: dict[str, Any]) -> None:
    config = json.dumps(CONFIG.to_dict() | change)
    forge(path, lambda arrays, metadata: metadata.update(config=config))
    assert "its configuration cannot be read" in refusal(path)


def test_a_bundled_name_goes_before_a_file_and_a_path_names_its_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundled = tmp_path / "weights"
    monkeypatch.setattr(checkpoint, "WEIGHTS", bundled)
    save_tiny(bundled / "digits.safetensors")
    assert checkpoint.resolve("digits") == bundled / "digits.safetensors"
    assert checkpoint.resolve(str(path)) == path
    with pytest.raises(CheckpointError, match=r"^faces: no such file and no such bundled model \(bundled: digits\)$"):
        checkpoint.resolve("faces")
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.resolve("../weights/digits")


def test_a_checkpoint_of_the_default_configuration_loads(tmp_path: Path) -> None:
    digest = checkpoint.save(tmp_path / "a.safetensors", tiny_vae(config=VAEConfig()), Notes("mnist"))
    assert checkpoint.load(tmp_path / "a.safetensors").digest == digest
