"""Which engine serves: the fastest that is accurate, and one line for the operator where there is none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app import compiled, loading
from app.engine import Engine
from app.settings import Settings, SettingsError
from model import checkpoint
from model.prior import PriorName
from tests.tiny import CONFIG, save_tiny


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("loading") / "tiny.safetensors")


needs_openvino = pytest.mark.skipif(not compiled.is_available(), reason="there is no OpenVINO for this processor")


def golden_errors_by(monkeypatch: pytest.MonkeyPatch, errors: dict[tuple[str, str], float]) -> None:
    """Make engines of a precision and path as wrong in mu as said, in units of sigma; others are exact."""
    monkeypatch.setattr(Engine, "golden_errors", lambda self: (errors.get((self.precision, self.path), 0.0), 0.0))


@needs_openvino
@pytest.mark.parametrize(
    ("bf16", "errors", "expected"),
    [
        (True, {}, ("bf16", "openvino")),
        (False, {}, ("fp32", "openvino")),
        (True, {("bf16", "openvino"): 0.021}, ("fp32", "openvino")),
        (True, {("bf16", "openvino"): 0.021, ("fp32", "openvino"): 0.021}, ("fp32", "torch")),
    ],
)
def test_auto_is_the_fastest_on_this_processor_that_the_golden_batch_allows(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bf16: bool,
    errors: dict[tuple[str, str], float],
    expected: tuple[str, str],
) -> None:
    monkeypatch.setattr(compiled, "has_bf16", lambda: bf16)
    golden_errors_by(monkeypatch, errors)
    engine = loading.load(Settings(model=str(path), device="cpu", max_batch=2))
    assert (engine.precision, engine.path) == expected


@needs_openvino
@pytest.mark.parametrize(
    ("has_openvino", "prior", "given_back"),
    [(True, "standard_normal", True), (True, "realnvp", False), (False, "standard_normal", False)],
)
def test_memory_is_given_back_where_torch_computes_next_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_openvino: bool, prior: PriorName, given_back: bool
) -> None:
    path, calls = save_tiny(tmp_path / "model.safetensors", config=replace(CONFIG, prior=prior)), list[bool]()
    monkeypatch.setattr(compiled, "is_available", lambda: has_openvino)
    monkeypatch.setattr(loading, "give_back_memory", lambda: calls.append(True))
    loading.load(Settings(model=str(path), device="cpu", max_batch=2))
    assert bool(calls) == given_back


def test_without_openvino_torch_computes_in_fp32(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "is_available", lambda: False)
    engine = loading.load(Settings(model=str(path), device="cpu", max_batch=2))
    assert (engine.precision, engine.path) == ("fp32", "torch")


@needs_openvino
def test_a_network_that_cannot_be_compiled_is_served_by_torch_with_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise TypeError("got a layer Attention that has no operation in a graph")

    monkeypatch.setattr(compiled, "CompiledVAE", refuse)
    with caplog.at_level("WARNING", "vae"):
        engine = loading.load(Settings(model=str(path), device="cpu", max_batch=2))
    assert (engine.precision, engine.path) == ("fp32", "torch")
    assert "not compiled, so slower" in caplog.text
    assert "Attention" in caplog.text


def test_weights_that_disagree_with_their_golden_batch_end_the_start(path: Path, tmp_path: Path) -> None:
    loaded = checkpoint.load(path)
    shifted = replace(loaded.notes, golden_mu=loaded.notes.golden_mu + 1)
    checkpoint.save(wrong := tmp_path / "wrong.safetensors", loaded.vae, shifted)
    with pytest.raises(SettingsError, match="golden batch is off by"):
        loading.load(Settings(model=str(wrong), device="cpu"))


def test_bf16_by_name_is_used_with_a_warning_where_auto_would_not_take_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Engine, "golden_errors", lambda _: (0.03, 0.0))
    with caplog.at_level("WARNING", "vae"):
        assert loading.load(Settings(model=str(path), device="cpu", precision="bf16")).precision == "bf16"
    assert "off by 0.03 sigma" in caplog.text
    monkeypatch.setattr(Engine, "golden_errors", lambda _: (3.0, 0.0))
    with pytest.raises(SettingsError, match="off by 3 sigma"):
        loading.load(Settings(model=str(path), device="cpu", precision="bf16"))


def test_a_checkpoint_that_was_never_scored_is_refused_with_the_remedy(path: Path, tmp_path: Path) -> None:
    loaded = checkpoint.load(path)
    notes = replace(loaded.notes, held_out_elbo=np.zeros(0, np.float32))
    checkpoint.save(unscored := tmp_path / "unscored.safetensors", loaded.vae, notes)
    with pytest.raises(SettingsError, match="run `vae evaluate"):
        loading.load(Settings(model=str(unscored), device="cpu"))


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert loading.choose_device("cuda") == "cuda:0"
    with pytest.raises(SettingsError, match="got 'cuda:1'; there are 1 CUDA devices"):
        loading.choose_device("cuda:1")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="VAE_DEVICE"):
        loading.choose_device("mps")


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading.choose_device("auto") == "cuda:0"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert loading.choose_device("auto") == "cpu"


def test_an_unknown_model_is_refused_with_the_bundled_names() -> None:
    with pytest.raises(SettingsError, match=r"VAE_MODEL: nonsense: no such file and no such bundled model"):
        loading.load(Settings(model="nonsense", device="cpu"))
