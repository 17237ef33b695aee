"""``vae encode FOLDER --out FILE``, as a process against a real server: the same bits, kills survived, names kept."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from service_answers import same_bits
from service_pictures import from_tensors, jpeg, multipart, png
from service_process import Server

from app.journal import Journal
from app.preparing import MANY_FILES

MANY = 2000


def command(url: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "app.cli", "encode", "--url", url, *(str(argument) for argument in arguments)]


def vae(folder: Path, url: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.run(command(url, *arguments), cwd=folder, env=env, capture_output=True, text=True, check=False)


def started(folder: Path, url: str, *arguments: object) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command(url, *arguments), cwd=folder, env=env, text=True, start_new_session=True, **pipes)


def wait_for_answers(part: Path, process: subprocess.Popen[str]) -> None:
    """Return when some answers, and not all of them, are in the journal."""
    while process.poll() is None and (not part.exists() or part.stat().st_size < 20_000):
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()


def names_in(path: Path) -> list[str]:
    with safetensors.safe_open(path, "numpy") as file:
        names = json.loads(file.metadata()["files"])
        assert isinstance(names, list)
        return names


@pytest.fixture
def odd_pictures(tmp_path: Path, strokes: np.ndarray) -> list[bytes]:
    """Files that need every step of the preparation."""
    color = Image.fromarray(np.random.default_rng(1).integers(0, 256, (61, 40, 3), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    see_through = color.copy()
    see_through.putalpha(Image.linear_gradient("L").resize((40, 61)))
    deep = Image.fromarray((np.arange(1600, dtype=np.uint16) * 40).reshape(40, 40))
    large = jpeg(color.resize((1200, 900)))
    return [
        *(png(image) for image in strokes),
        jpeg(color, exif=turned.tobytes()),
        png(color),
        png(see_through),
        png(color.convert("P")),
        png(deep),
        large,
    ]


@pytest.fixture
def many_files(tmp_path: Path, strokes: np.ndarray) -> Path:
    """A folder of ``MANY`` names for a dozen pictures, and two files that are no pictures."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i, image in enumerate(strokes):
        (folder / f"{i:05}.png").write_bytes(png(image))
    for i in range(len(strokes), MANY):
        os.link(folder / f"{i % len(strokes):05}.png", folder / f"{i:05}.png")
    (folder / "00000a.png").write_text("no picture")
    (folder / "99999.jpg").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def slow_server(start_server: object) -> Server:
    """A server of small requests, so that there is time to interrupt whoever asks it."""
    assert callable(start_server)
    server = start_server(max_items=1)
    assert isinstance(server, Server)
    return server


def test_latents_are_those_of_the_files_sent_to_the_server_bit_for_bit(
    server: Server, http: httpx.Client, odd_pictures: list[bytes], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for i, data in enumerate(odd_pictures):
        suffix = "png" if data.startswith(b"\x89PNG") else "jpg"
        (tmp_path / "in" / f"{i:02}.{suffix}").write_bytes(data)
    result = vae(tmp_path, server.url, "in", "--out", "l.safetensors")
    assert (result.returncode, result.stderr) == (0, "")
    parts = multipart(*odd_pictures)
    answer = http.post("/encode", params={"format": "safetensors"}, files=parts).raise_for_status()
    expected, found = from_tensors(answer.content), safetensors.numpy.load_file(tmp_path / "l.safetensors")
    assert names_in(tmp_path / "l.safetensors") == sorted(f"in/{path.name}" for path in (tmp_path / "in").iterdir())
    assert same_bits(found["mu"], expected["mu"])
    assert same_bits(found["sigma"], expected["sigma"])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_run_goes_on_where_it_stopped(
    how: signal.Signals, slow_server: Server, server: Server, many_files: Path, tmp_path: Path
) -> None:
    part, out = tmp_path / "l.safetensors.part", tmp_path / "l.safetensors"
    process = started(tmp_path, slow_server.url, "many", "--out", "l.safetensors")
    wait_for_answers(part, process)
    process.send_signal(how)
    stdout, stderr = process.communicate(timeout=60)
    assert (stdout, out.exists()) == ("", False)
    if how == signal.SIGINT:
        assert process.returncode == 130, stderr
        assert "latents are kept in 'l.safetensors.part'; the same command goes on\nError: interrupted\n" in stderr
    else:
        assert process.returncode == -how
    journal = Journal(part)
    kept = [name for fields, _ in list(journal)[1:] for name in fields["names"]]
    journal.close()
    assert 0 < len(kept) < MANY
    result = vae(tmp_path, server.url, "many", "--out", "l.safetensors")
    assert result.returncode == 65
    assert result.stdout == f"l.safetensors: {MANY} latents\n"
    going_on, *skipped, last = result.stderr.splitlines()
    assert int(going_on.split()[3]) >= len(kept)
    assert going_on.endswith(f"of {MANY + 2} files")
    assert [line.partition(":")[0] for line in skipped] == ["skipped many/00000a.png", "skipped many/99999.jpg"]
    assert last == f"Error: 2 of {MANY + 2} files could not be read"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.safetensors", "many"]
    names = names_in(out)
    assert names == [f"many/{i:05}.png" for i in range(MANY)]
    tensors = safetensors.numpy.load_file(out)
    assert same_bits(tensors["mu"], tensors["mu"][np.arange(MANY) % 12])


def test_processes_that_prepare_give_the_same_and_end_with_their_parent(
    slow_server: Server, server: Server, many_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos.sched_getaffinity = lambda pid: set(range(4))\n")
    assert MANY >= MANY_FILES
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), str(tmp_path)])}
    arguments = command(slow_server.url, "many", "--out", "l.npy")
    process = subprocess.Popen(arguments, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for_answers(tmp_path / "l.npy.part", process)  # type: ignore[arg-type]
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(children) >= 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    done = subprocess.run(
        command(server.url, "many", "--out", "l.npy"), cwd=tmp_path, env=env, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (65, f"l.npy: {MANY} latents\n".encode())
    assert same_bits(np.load(tmp_path / "l.npy"), np.load(tmp_path / "l.npy")[np.arange(MANY) % 12])


def test_names_of_an_npy_file_lie_beside_it(server: Server, strokes: np.ndarray, tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(strokes[i]))
    assert vae(tmp_path, server.url, ".", "--out", "l.npy").returncode == 0
    assert json.loads((tmp_path / "l.npy.files.json").read_text()) == ["0.png", "1.png", "2.png"]
    assert len(np.load(tmp_path / "l.npy")) == 3


def test_file_name_that_is_no_text_survives(server: Server, strokes: np.ndarray, tmp_path: Path) -> None:
    for name in (b"\xff.png", "ü\n.png".encode()):
        (tmp_path / os.fsdecode(name)).write_bytes(png(strokes[0]))
    result = vae(tmp_path, server.url, ".", "--out", "l.safetensors")
    assert (result.returncode, result.stderr) == (0, "")
    assert names_in(tmp_path / "l.safetensors") == ["ü\n.png", "�.png"]


def begun(folder: Path, digest: str, files: list[list[str]]) -> None:
    """Leave a journal behind, as an interrupted run does."""
    journal = Journal(folder / "l.npy.part")
    journal.append({"weights": digest, "files": files})
    journal.append({"names": ["gone.png"], "skipped": {}}, np.ones((2, 1, 4), np.float32).tobytes())
    journal.close()


@pytest.mark.parametrize("other", ["weights", "files"])
def test_latents_of_other_weights_or_other_files_are_not_continued(
    other: str, server: Server, strokes: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png(strokes[0]))
    digest = httpx.get(f"{server.url}/model").json()["digest"]
    files = [["a.png", str(tmp_path / "a.png")]]
    begun(tmp_path, *(("f" * 16, files) if other == "weights" else (digest, [["b.png", "/b.png"]])))
    before = (tmp_path / "l.npy.part").read_bytes()
    result = vae(tmp_path, server.url, "a.png", "--out", "l.npy")
    assert (result.returncode, result.stdout) == (73, "")
    assert f"'l.npy.part' was begun with other {other}; give --restart to throw it away" in result.stderr
    assert (tmp_path / "l.npy.part").read_bytes() == before
    assert vae(tmp_path, server.url, "a.png", "--out", "l.npy", "--restart").stdout == "l.npy: 1 latent\n"
    assert len(np.load(tmp_path / "l.npy")) == 1


def test_two_at_a_time_do_not_write_one_file(server: Server, strokes: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(strokes[0]))
    journal = Journal(tmp_path / "l.npy.part")
    result = vae(tmp_path, server.url, "a.png", "--out", "l.npy")
    journal.close()
    assert (result.returncode, result.stderr) == (73, "Error: another vae is writing 'l.npy'\n")


def test_nothing_is_left_behind_where_there_is_nothing_to_write(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    result = vae(tmp_path, server.url, "a.png", "--out", "l.npy")
    assert (result.returncode, result.stdout) == (65, "")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_progress_is_shown_on_a_terminal(server: Server, many_files: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(
        command(server.url, "many", "--out", "l.npy"), cwd=tmp_path, env=env, stderr=theirs, stdout=subprocess.DEVNULL
    )
    os.close(theirs)
    shown = BytesIO()
    while True:
        try:
            shown.write(os.read(ours, 4096))
        except OSError:  # the other end is closed
            break
    os.close(ours)
    process.wait()
    bars = shown.getvalue().decode()
    assert f"{MANY + 2}/{MANY + 2} [" in bars
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d, +[\d.]+ images/s\]", bars)  # time spent, time left, rate
