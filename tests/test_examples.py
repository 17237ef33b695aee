"""The example scripts, run as a reader runs them, on images that the model itself draws."""

import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from service_pictures import png
from service_process import Server

ROOT = Path(__file__).resolve().parent.parent
COUNT = 70  # more than one request


def scatter(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "docs/examples/latent_scatter.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(http: httpx.Client, tmp_path: Path) -> Path:
    """Samples of the model, and one picture of noise, which it has never seen the like of."""
    answer = http.get("/sample", params={"n": COUNT, "seed": 5, "temperature": 0.7, "format": "png", "columns": 10})
    (tmp_path / "sheet").write_bytes(answer.raise_for_status().content)
    (tmp_path / "in").mkdir()
    with Image.open(tmp_path / "sheet") as sheet:
        side = sheet.width // 10
        for i in range(COUNT):
            cell = sheet.crop((i % 10 * side, i // 10 * side, (i % 10 + 1) * side, (i // 10 + 1) * side))
            cell.save(tmp_path / "in" / f"{i:02}.png")
    noise = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    (tmp_path / "in" / "noise.png").write_bytes(png(noise))
    return tmp_path / "in"


def test_folder_becomes_a_scatter_plot_and_a_list_of_outliers(server: Server, folder: Path, tmp_path: Path) -> None:
    done = scatter(folder, tmp_path / "scatter.png", "--worst", 3, "--url", server.url)
    assert (done.returncode, done.stderr) == (0, "")
    head, *listed = done.stdout.splitlines()
    assert head.startswith(f"{tmp_path}/scatter.png: {COUNT + 1} images, ")
    assert len(listed) == 3
    assert listed[0].endswith("noise.png  outlier")
    percentiles = [float(line.split()[0]) for line in listed]
    assert percentiles == sorted(percentiles)
    with Image.open(tmp_path / "scatter.png") as plot:
        assert (plot.format, plot.mode) == ("PNG", "RGB")
        pixels = np.asarray(plot)
    assert (pixels == [255, 0, 0]).all(2).sum() > 100  # the frame around the noise
    assert (pixels != 255).any(2).mean() > 0.01  # and the images


def test_one_image_is_a_plot_too(server: Server, folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("[0-9]*.png"):
        path.unlink()
    assert scatter(folder, tmp_path / "one.png", "--url", server.url).returncode == 0


def test_empty_folder_is_told(tmp_path: Path) -> None:
    done = scatter(tmp_path, tmp_path / "none.png")
    assert done.returncode == 2
    assert "there is no PNG or JPEG file" in done.stderr
