"""The map of the latent space: what it says, how it is kept, and that a stranger's file is not believed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
from click.testing import CliRunner
from idx_files import SOURCE
from safetensors.numpy import load_file, save_file
from tiny import CONFIG, save_tiny, tiny_vae

from model import checkpoint, data, latent_map
from model.gaussian import kl_to_standard_normal
from model.latent_map import LatentMap, MapError, load_map, make_map, map_path, save_map
from model.pixels import to_unit
from model.vae import VAEConfig

IMAGES = np.random.default_rng(1).integers(0, 256, (60, 1, 8, 8), np.uint8)
LABELS = (np.arange(60) % 3).astype(np.uint8)
NAMES = ("no", "perhaps", "yes")
DIGEST = "0123456789abcdef" * 4


def same(a: LatentMap, b: LatentMap) -> bool:
    arrays = ("mu", "labels", "mean", "axes", "variance", "kl_per_dimension")
    return (a.label_names, a.active_units) == (b.label_names, b.active_units) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays
    )


@pytest.fixture(scope="module")
def made() -> LatentMap:
    return make_map(tiny_vae(), IMAGES, LABELS, NAMES)


def test_means_stand_in_the_map_with_their_labels(made: LatentMap) -> None:
    mu, _ = tiny_vae().encode(torch.from_numpy(to_unit(IMAGES)))
    assert made.mu.shape == (60, 4)
    assert made.labels is not None
    distances = np.abs(made.mu[:, None] - mu.numpy()[None]).max(2)  # (60, 60)
    found = distances.argmin(1)
    assert sorted(found) == list(range(60))
    assert distances.min(1).max() <= 0.0005 + 1e-6
    np.testing.assert_array_equal(made.labels, LABELS[found])


def test_the_axes_are_those_of_the_covariance(made: LatentMap) -> None:
    mu = tiny_vae().encode(torch.from_numpy(to_unit(IMAGES)))[0].double().numpy()
    covariance = np.cov(mu.T)
    np.testing.assert_allclose(made.axes @ made.axes.T, np.eye(2), atol=1e-6)
    for axis, variance in zip(made.axes, made.variance, strict=True):
        np.testing.assert_allclose(covariance @ axis, variance * axis, atol=1e-7)
        assert axis[np.abs(axis).argmax()] > 0
    np.testing.assert_allclose(made.variance, np.linalg.eigvalsh(covariance)[::-1][:2], rtol=1e-5)
    np.testing.assert_allclose(made.mean, mu.mean(0), atol=1e-6)


def test_the_divergence_of_each_dimension_is_the_mean_over_images(made: LatentMap) -> None:
    mu, sigma = tiny_vae().encode(torch.from_numpy(to_unit(IMAGES)))
    np.testing.assert_allclose(made.kl_per_dimension, kl_to_standard_normal(mu, sigma).mean(0).numpy(), rtol=1e-4)
    assert made.active_units == int((mu.var(0) > 0.01).sum())


def test_at_most_two_thousand_images_are_on_a_map() -> None:
    many = np.random.default_rng(2).integers(0, 256, (2100, 1, 8, 8), np.uint8)
    assert make_map(tiny_vae(), many).mu.shape == (2000, 4)


def test_a_single_latent_has_a_single_axis(tmp_path: Path) -> None:
    one = make_map(tiny_vae(config=replace(CONFIG, latent_dim=1)), IMAGES)
    np.testing.assert_array_equal(one.axes, [[1]])
    assert one.variance.shape == (1,)
    save_map(tmp_path / "m", one, DIGEST)
    again = load_map(tmp_path / "m", DIGEST, 1)
    assert again is not None
    assert same(again, one)


def test_under_a_learned_prior_a_dimension_tells_what_its_posteriors_differ_by() -> None:
    vae = tiny_vae(config=VAEConfig(**(CONFIG.to_dict() | {"prior": "realnvp"})))
    with torch.no_grad():
        vae.encoder.mu.bias[2] += 5  # the prior may be anywhere: a shift tells nothing
    kl = make_map(vae, IMAGES).kl_per_dimension
    mu, sigma = vae.encode(torch.from_numpy(to_unit(IMAGES)))
    expected = 0.5 * torch.log(mu.var(0, correction=0) + sigma.square().mean(0)) - sigma.log().mean(0)
    np.testing.assert_allclose(kl, expected.numpy(), atol=1e-4)
    assert kl[2] < 2


def test_what_is_saved_is_loaded_by_the_whole_digest_or_its_beginning(tmp_path: Path, made: LatentMap) -> None:
    for labeled in (made, replace(made, labels=None, label_names=None), replace(made, label_names=None)):
        save_map(tmp_path / "m.safetensors", labeled, DIGEST)
        for digest in (DIGEST, DIGEST[:16]):
            again = load_map(tmp_path / "m.safetensors", digest, 4)
            assert again is not None
            assert same(again, labeled)


def test_no_file_is_no_map(tmp_path: Path) -> None:
    assert load_map(tmp_path / "nothing", DIGEST, 4) is None


def test_a_map_of_other_weights_is_refused(tmp_path: Path, made: LatentMap) -> None:
    save_map(tmp_path / "m", made, DIGEST)
    with pytest.raises(MapError, match="other weights"):
        load_map(tmp_path / "m", "f" * 16, 4)


def broken(path: Path, made: LatentMap, **changes: object) -> None:
    """A file whose checksum holds, but not what it says."""
    save_map(path, replace(made, **changes), DIGEST)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"mu": np.zeros((60, 3), np.float32)},
        {"mu": np.zeros((60, 4), np.float64)},
        {"mu": np.full((60, 4), np.nan, np.float32)},
        {"mean": np.zeros(5, np.float32)},
        {"axes": np.zeros((3, 4), np.float32)},
        {"variance": np.array([np.inf, 1], np.float32)},
        {"kl_per_dimension": np.zeros((4, 1), np.float32)},
        {"labels": np.zeros(59, np.int64)},
        {"labels": np.full(60, -1)},
        {"labels": np.full(60, 3)},
        {"labels": None},
        {"label_names": (1, 2, 3)},
        {"active_units": "many"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_map_that_contradicts_itself_is_refused(tmp_path: Path, made: LatentMap, changes: dict[str, object]) -> None:
    broken(tmp_path / "m", made, **changes)
    with pytest.raises(MapError):
        load_map(tmp_path / "m", DIGEST, 4)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path, made: LatentMap) -> None:
    path = tmp_path / "m"
    save_map(path, made, DIGEST)
    whole = path.read_bytes()
    for data_of_file in (b"", b"pickle", whole[:-5], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(data_of_file)
        with pytest.raises(MapError):
            load_map(path, DIGEST, 4)
    save_file({"mu": np.zeros((2, 4), np.float32)}, path)
    with pytest.raises(MapError, match="not a map"):
        load_map(path, DIGEST, 4)


def test_a_map_is_no_bundled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path / "tiny.safetensors")
    (tmp_path / "tiny-map.safetensors").write_bytes(b"")
    monkeypatch.setattr(checkpoint, "WEIGHTS", tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match=r"\(bundled: tiny\)"):
        checkpoint.resolve("other")


def test_the_command_writes_the_map_of_a_checkpoint_beside_it(tmp_path: Path) -> None:
    runs.write_folder(tmp_path / "squares")
    path = save_tiny(tmp_path / "tiny.safetensors")
    flags = ["--data", str(tmp_path / "squares"), "--data-dir", str(tmp_path)]
    done = CliRunner().invoke(latent_map.main, [str(path), *flags])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{tmp_path / 'tiny-map.safetensors'}\n"
    found = load_map(map_path(path), checkpoint.load(path).digest, 4)
    assert found is not None
    assert found.labels is None
    assert CliRunner().invoke(latent_map.main, [str(path), "--data", "/nowhere"]).exit_code == 1


def test_the_bundled_map_is_of_the_bundled_weights() -> None:
    for path in checkpoint.WEIGHTS.glob("*.safetensors"):
        if not path.name.endswith(checkpoint.MAP_SUFFIX):
            loaded = checkpoint.load(path)
            found = load_map(map_path(path), loaded.digest, loaded.vae.config.latent_dim)
            assert found is not None, path
            assert len(found.mu) == 2000
            assert found.label_names is not None
            assert len(load_file(map_path(path))["labels"]) == 2000


def test_idx_data_sets_name_their_classes() -> None:
    for source in data.SOURCES.values():
        assert source.classes is not None
        assert len(set(source.classes)) == 10
    assert SOURCE.classes is None
