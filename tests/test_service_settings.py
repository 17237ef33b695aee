"""Settings of a real start: wrong ones end it with 78 within 5 seconds, one line each, and no traceback."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from service_answers import DOCS
from service_process import ROOT, Server, refused_start

WRONG = {
    "VAE_DEVICE": "abacus",
    "VAE_PRECISION": "fp8",
    "VAE_PORT": "99999",
    "VAE_MAX_BATCH": "-1",
    "VAE_MAX_QUEUE_ITEMS": "-1",
    "VAE_MAX_ITEMS": "some",
    "VAE_MAX_BODY_BYTES": "0",
    "VAE_MAX_PIXELS": "1.5",
    "VAE_DEADLINE_S": "-1",
    "VAE_DRAIN_S": "nan",
    "VAE_API_KEYS_FILE": "/no/such/file",
    "VAE_CORS_ORIGINS": "not an origin",
    "VAE_LOG_LEVEL": "loud",
    "VAE_LOG_FORMAT": "xml",
}
NAMES = ("VAE_MODEL", "VAE_HOST", *WRONG)
NO_GPU = not Path("/dev/nvidia0").exists() and sys.platform != "darwin"


def lines_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    text = done.stdout + done.stderr
    assert "Traceback" not in text, text
    assert done.returncode == 78, f"{done.returncode}: {text}"
    return [line for line in text.splitlines() if line.strip()]


def as_settings(values: dict[str, str]) -> dict[str, object]:
    return {name.removeprefix("VAE_").lower(): value for name, value in values.items()}


def test_every_wrong_value_is_named_on_one_line_of_its_own_in_one_go() -> None:
    done = refused_start(**as_settings(WRONG))
    lines = lines_of(done)
    for name in WRONG:
        assert len([line for line in lines if re.search(rf"\b{name}\b", line)]) == 1, f"{name}: {lines}"
    assert len(lines) <= len(WRONG) + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_alone_is_one_line(name: str) -> None:
    done = refused_start(**as_settings({name: WRONG[name]}))
    assert len([line for line in lines_of(done) if name in line]) == 1


def test_a_wrong_flag_is_refused_as_a_wrong_variable_is() -> None:
    done = refused_start("--port", "99999", "--max-items", "none")
    lines = lines_of(done)
    for name in ("port", "max.items"):
        assert [line for line in lines if re.search(name, line, re.IGNORECASE)], lines


def test_a_model_that_nobody_knows_is_78() -> None:
    done = refused_start(model="no-such-model")
    lines = lines_of(done)
    assert [line for line in lines if "VAE_MODEL" in line]


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", pytest.param("cuda:7", marks=pytest.mark.slow)])
def test_cuda_without_one_is_78(device: str) -> None:
    done = refused_start(device=device)
    lines = lines_of(done)
    assert [line for line in lines if "VAE_DEVICE" in line]


def weights() -> Path:
    path = os.environ.get("VAE_TEST_MODEL") or ROOT / "model" / "weights" / "mnist.safetensors"
    return Path(path)


def flipped() -> bytes:
    data = bytearray(weights().read_bytes())
    data[len(data) // 2] ^= 0x40
    return bytes(data)


BROKEN = {
    "flipped": flipped,
    "truncated": lambda: weights().read_bytes()[:-1000],
    "empty": lambda: b"",
    "text": lambda: b"these are no weights" * 100,
    "a pickle": lambda: b"cos\nsystem\n(S'touch /tmp/never'\ntR.",
}
OFTEN = {"flipped"}


@pytest.mark.parametrize("kind", [k if k in OFTEN else pytest.param(k, marks=pytest.mark.slow) for k in BROKEN])
def test_broken_weights_are_78_with_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mnist.safetensors"
    path.write_bytes(BROKEN[kind]())
    done = refused_start(model=path)
    lines = lines_of(done)
    assert len([line for line in lines if "CRITICAL" in line or "VAE_MODEL" in line or "weights" in line]) >= 1
    assert len(lines) <= 2, lines


def test_a_port_in_use_is_one_line_and_exit_3(server: Server) -> None:
    done = refused_start(port=server.port)
    text = done.stdout + done.stderr
    assert done.returncode == 3, text
    assert "Traceback" not in text
    assert str(server.port) in text


def test_nothing_but_503_was_answered_before_the_service_was_ready(server: Server) -> None:
    assert server.statuses_before_ready <= {503}


def test_every_setting_is_a_flag_and_its_help_names_the_variable_and_the_default() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "serve", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    for name in NAMES:
        assert "--" + name.removeprefix("VAE_").lower().replace("_", "-") in done.stdout, name
        assert name in done.stdout, name


def test_every_setting_is_listed_in_the_docs_with_its_default() -> None:
    text = "\n".join(path.read_text() for path in sorted(DOCS.parent.glob("*.md")))
    for name in NAMES:
        assert f"`{name}`" in text, name
    for default in ("`8000`", "`mnist`", "`auto`", "`4096`", "`33554432`"):
        assert default in text or default.strip("`") in text, default


def test_the_log_of_the_run_has_no_traceback_so_far(server: Server) -> None:
    server.assert_clean_log()
