"""The commands that ask a server, against a real one: files in, files and tables out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner, Result
from PIL import Image
from service_pictures import jpeg, png
from service_process import Server

from app.cli import main


class Vae:
    """``vae`` on a server, in a folder with twelve pictures."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder

    def __call__(self, *arguments: object) -> Result:
        env = {"VAE_URL": self.url, "VAE_API_KEY": None}
        return CliRunner().invoke(main, [str(argument) for argument in arguments], env=env)

    def json(self, *arguments: object) -> dict[str, Any]:
        result = self(*arguments, "--json")
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.count("\n") == 1
        found = json.loads(result.stdout)
        assert isinstance(found, dict)
        return found


@pytest.fixture
def vae(server: Server, strokes: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vae:
    (tmp_path / "digits" / "more").mkdir(parents=True)
    for i, image in enumerate(strokes):
        folder = tmp_path / "digits" / ("more" if i > 9 else "")
        (folder / f"{i:02}.png").write_bytes(png(image))
    monkeypatch.chdir(tmp_path)
    return Vae(server.url, tmp_path)


@pytest.fixture
def with_bad_files(vae: Vae) -> Vae:
    (vae.folder / "digits" / "broken.jpg").write_bytes(jpeg(np.zeros((20, 20), np.uint8))[:100])
    (vae.folder / "digits" / "notes.png").write_text("no picture at all")
    return vae


def drawn_in(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image) / 255


def test_latents_are_printed_as_json_or_as_a_table(vae: Vae, latent_dim: int) -> None:
    found = vae.json("encode", "digits")
    assert found["files"] == [f"digits/{'more/' if i > 9 else ''}{i:02}.png" for i in range(12)]
    assert np.shape(found["mu"]) == np.shape(found["sigma"]) == (12, latent_dim)
    assert found["skipped"] == {}
    lines = vae("encode", "digits/03.png").stdout.splitlines()
    assert lines[0].split()[:4] == ["mu", "0", "mu", "1"]
    assert lines[1].split() == [f"{value:.3f}" for value in found["mu"][3][:6]] + ["digits/03.png"]


@pytest.mark.parametrize("suffix", [".safetensors", ".npy", ".json"])
def test_latents_go_to_a_file_that_decode_reads(vae: Vae, suffix: str, latent_dim: int, pixel_tolerance: float) -> None:
    assert vae("encode", "digits", "--out", f"l{suffix}").stdout == f"l{suffix}: 12 latents\n"
    assert vae.json("decode", f"l{suffix}", "--out", "d.npy") == {"out": "d.npy", "images": 12}
    mu = np.array(vae.json("encode", "digits")["mu"], np.float32)
    if suffix == ".npy":
        assert np.allclose(np.load("l.npy"), mu, atol=1e-4)
    np.save("mu.npy", mu)
    assert vae("decode", "mu.npy", "--out", "e.npy").exit_code == 0
    assert np.abs(np.load("d.npy") - np.load("e.npy")).max() <= 10 * pixel_tolerance


def test_array_files_keep_the_names_of_their_rows(vae: Vae) -> None:
    assert vae("encode", "digits", "--out", "l.safetensors").exit_code == 0
    with safetensors.safe_open("l.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["files"])[0] == "digits/00.png"
        assert set(file.keys()) == {"mu", "sigma"}
    assert vae("encode", "digits", "--out", "l.json").exit_code == 0
    assert json.loads(Path("l.json").read_text())["files"][11] == "digits/more/11.png"


def test_json_numbers_give_the_same_float32(vae: Vae) -> None:
    assert vae("encode", "digits/00.png", "--out", "l.npy").exit_code == 0
    assert np.array_equal(np.array(vae.json("encode", "digits/00.png")["mu"], np.float32), np.load("l.npy"))


def test_decoding_draws_one_image_or_a_sheet(vae: Vae, latent_dim: int) -> None:
    np.save("z.npy", np.zeros((6, latent_dim)))
    assert vae("decode", "z.npy", "--out", "d.png", "--columns", 3).stdout == "d.png: 6 images\n"
    assert drawn_in("d.png").shape == (2 * 28, 3 * 28)
    np.save("z.npy", np.zeros(latent_dim))
    assert vae("decode", "z.npy", "--out", "d.png").stdout == "d.png: 1 image\n"
    assert drawn_in("d.png").shape == (28, 28)


def test_samples_of_a_seed_are_the_same_in_every_file(vae: Vae, pixel_tolerance: float) -> None:
    assert vae("sample", "--n", 4, "--seed", 7, "--out", "s.png").stdout == "s.png: 4 images, seed 7\n"
    assert vae.json("sample", "--n", 4, "--seed", 7, "--out", "s.npy") == {"out": "s.npy", "images": 4, "seed": 7}
    assert vae("sample", "--n", 4, "--seed", 7, "--out", "s.safetensors").exit_code == 0
    images, tensors = np.load("s.npy"), safetensors.numpy.load_file("s.safetensors")
    assert np.abs(images - tensors["images"]).max() <= pixel_tolerance
    sheet = drawn_in("s.png")
    assert np.abs(sheet[:28, 28:] - images[1, 0]).max() <= 1 / 255 + pixel_tolerance


def test_fresh_seed_is_printed(vae: Vae) -> None:
    seed = vae.json("sample", "--out", "a.npy")["seed"]
    assert vae("sample", "--seed", seed, "--out", "b.npy").exit_code == 0
    assert np.allclose(np.load("a.npy"), np.load("b.npy"), atol=1e-5)


def test_reconstructions_are_drawn_or_written(vae: Vae) -> None:
    assert vae("reconstruct", "digits", "--out", "r.png").stdout == "r.png: 12 images\n"
    assert vae("reconstruct", "digits", "--out", "r.npy").stdout == "r.npy: 12 images\n"
    sheet, images = drawn_in("r.png"), np.load("r.npy")
    assert images.shape == (12, 1, 28, 28)
    assert np.abs(sheet[28:56, :28] - images[4, 0]).max() <= 0.02  # four in a row


def test_interpolation_is_drawn_as_a_strip_or_written(vae: Vae, latent_dim: int) -> None:
    ends = ("digits/00.png", "digits/03.png")
    assert vae("interpolate", *ends, "--steps", 5, "--out", "w.png").stdout == "w.png: 5 images\n"
    assert drawn_in("w.png").shape == (28, 5 * 28)
    assert vae.json("interpolate", *ends, "--out", "w.safetensors") == {"out": "w.safetensors", "images": 9}
    walk = safetensors.numpy.load_file("w.safetensors")
    assert (walk["images"].shape, walk["z"].shape) == ((9, 1, 28, 28), (9, latent_dim))
    mu = np.array(vae.json("encode", *ends)["mu"], np.float32)
    assert np.allclose(walk["z"][[0, -1]], mu, atol=1e-4)
    assert np.allclose(walk["z"][4], mu.mean(0), atol=1e-4)
    assert vae("interpolate", *ends, "--path", "spherical", "--out", "w.npy").exit_code == 0
    assert not np.allclose(np.load("w.npy")[4], walk["images"][4], atol=1e-4)


def test_divergence_of_images_and_of_numbers(vae: Vae) -> None:
    of_images = vae.json("kl", "digits")
    assert (len(of_images["kl"]), of_images["unit"], of_images["files"][0]) == (12, "nats", "digits/00.png")
    assert np.sum(of_images["per_dimension"], 1) == pytest.approx(of_images["kl"])
    assert vae.json("kl", "--mu", "[[1, 0]]", "--sigma", "[[1, 1]]")["kl"] == [0.5]
    Path("q.json").write_text('{"mean": [1], "cov": [[1]]}')
    assert vae.json("kl", "--p", '{"mean": [0], "std": [1]}', "--q", "@q.json")["kl"] == pytest.approx([0.5])
    coins = vae("kl", "--p", '{"probs": [1, 0]}', "--q", '{"probs": [0.5, 0.5]}', "--unit", "bits")
    assert [line.split() for line in coins.stdout.splitlines()] == [["KL", "(bits)", "of"], ["1.0", "0"]]


def test_score_ranks_the_strangest_first(vae: Vae) -> None:
    found = vae.json("score", "digits", "--samples", 8)
    elbos = [image["elbo"] for image in found["images"]]
    assert elbos == sorted(elbos)
    assert (len(elbos), found["samples"], found["seed"]) == (12, 8, 0)
    assert {image["file"] for image in found["images"]} == set(vae.json("encode", "digits")["files"])
    lines = vae("score", "digits", "--samples", 8, "--worst", 2).stdout.splitlines()
    assert len(lines) == 3
    assert lines[1].split()[-1] == found["images"][0]["file"]


def test_model_is_printed_with_dotted_names(vae: Vae, latent_dim: int) -> None:
    rows = dict(line.split(maxsplit=1) for line in vae("model").stdout.splitlines())
    assert rows["latent_dim"] == str(latent_dim)
    assert rows["image.channels"] == "1"
    assert vae.json("model")["latent_dim"] == latent_dim


@pytest.mark.parametrize(
    "arguments",
    [
        ("encode", "--json"),
        ("encode", "--out", "l.json"),
        ("score", "--json"),
        ("kl", "--json"),
        ("reconstruct", "--out", "r.png"),
        ("reconstruct", "--out", "r.npy"),
    ],
)
def test_unreadable_files_are_named_and_counted_and_the_others_are_answered(
    with_bad_files: Vae, arguments: tuple[str, ...]
) -> None:
    result = with_bad_files(arguments[0], "digits", *arguments[1:])
    assert result.exit_code == 65
    *skipped, last = result.stderr.splitlines()
    assert [line.partition(":")[0] for line in skipped] == ["skipped digits/broken.jpg", "skipped digits/notes.png"]
    assert last == "Error: 2 of 14 files could not be read"
    if "--json" in arguments:
        found = json.loads(result.stdout)
        assert set(found["skipped"]) == {"digits/broken.jpg", "digits/notes.png"}
        assert len(found.get("files") or found["images"]) == 12
    else:
        assert "12" in result.stdout


def test_nothing_is_written_where_no_file_can_be_read(with_bad_files: Vae) -> None:
    result = with_bad_files("reconstruct", "digits/notes.png", "--out", "r.png")
    assert (result.exit_code, result.stdout) == (65, "")
    assert not Path("r.png").exists()


def test_refusal_of_the_server_is_its_detail_and_code(vae: Vae) -> None:
    result = vae("sample", "--n", 100_000, "--out", "s.png")
    assert result.exit_code == 1
    assert "VAE_MAX_ITEMS" in result.stderr
    assert "(too_many_items, request " in result.stderr
    assert vae("score", "digits", "--samples", 100_000).exit_code == 1  # and not: twelve unreadable files
