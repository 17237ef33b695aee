"""The command line: help, settings as flags, exit statuses, and that its page names every command and flag."""

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import click
import httpx
import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner, Result
from service_pictures import png

from app import asking, serve
from app.cli import COMMANDS, SECTIONS, Deferred, main
from app.client import Client
from app.errors import ServiceError
from app.settings import Settings, SettingsError, variable
from app.version import VERSION

DOCS = Path(__file__).resolve().parent.parent / "docs"
MODEL = {
    "image": {"channels": 1, "height": 28, "width": 28},
    "limits": {"max_items": 1024, "max_body_bytes": 1 << 25, "max_pixels": 10**6},
    "digest": "0123456789abcdef",
    "version": VERSION,
}
PICTURE = png(np.zeros((28, 28), np.uint8))
SERVER_FLAGS = {"--url", "--api-key", "--timeout", "--json"}


def vae(*arguments: object, env: dict[str, str | None] | None = None) -> Result:
    unset: dict[str, str | None] = {name: None for name in os.environ if name.startswith("VAE_")}
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env=unset | (env or {}))


def command_of(name: str) -> click.Command:
    command = main.commands[name]
    assert isinstance(command, Deferred)
    return command.load()


def flags_of(name: str) -> set[str]:
    options = [param for param in command_of(name).params if isinstance(param, click.Option)]
    return {flag for option in options for flag in option.opts}


@pytest.fixture
def answer_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[httpx.Request]]:
    """``answer_with(status, body)``: every request of a command is answered so, but for ``/model``."""

    def install(status: int, body: object = None) -> list[httpx.Request]:
        requests: list[httpx.Request] = []

        def answer(request: httpx.Request) -> httpx.Response:
            requests.append(request)
            if request.url.path == "/model":
                return httpx.Response(200, json=MODEL)
            return httpx.Response(status, json=body or {})

        monkeypatch.setattr(asking, "Client", functools.partial(Client, transport=httpx.MockTransport(answer)))
        return requests

    return install


def test_help_lists_every_command_and_imports_none() -> None:
    code = "import sys; from app.cli import main; main(['--help'], standalone_mode=False); print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    for heading, commands in SECTIONS.items():
        listed = told.partition(f"{heading}:\n")[2].partition("\n\n")[0]
        assert re.findall(r"^  (\w+) {2,}\S", listed, re.MULTILINE) == list(commands)
    assert not {"torch", "numpy", "httpx", "pydantic", "app.settings"} & set(told.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_flag_has_its_help(name: str) -> None:
    result = vae(name, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: main {name}")
    assert command_of(name).help
    assert all(param.help for param in command_of(name).params if isinstance(param, click.Option))


def test_version_is_that_of_the_package() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", vae("--version").output)


@pytest.mark.parametrize("name", list(SECTIONS["Ask a running server"]))
def test_help_of_what_asks_a_server_has_examples_that_name_its_own_flags(name: str) -> None:
    help_text = command_of(name).help
    assert help_text is not None
    examples = re.findall(rf"^ +vae {name}(?= |$)(.*)$", help_text, re.MULTILINE)
    assert examples
    assert {flag for line in examples for flag in re.findall(r"--[a-z-]+", line)} <= flags_of(name)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("vae enc", {"plain,encode"}),
        ("vae encode --o", {"plain,--out"}),
        ("vae encode dig", {"file,dig"}),
        ("vae interpolate a b --path ", {"plain,linear", "plain,spherical"}),
    ],
)
def test_shell_completes_commands_flags_choices_and_files(words: str, completed: set[str]) -> None:
    env = {**os.environ, "_VAE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    told = subprocess.run([sys.executable, "-m", "app.cli"], env=env, check=True, capture_output=True, text=True).stdout
    assert set(told.split("\n")) - {""} == completed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_page_says_how_a_shell_completes(shell: str) -> None:
    env = {**os.environ, "_VAE_COMPLETE": f"{shell}_source"}
    told = subprocess.run([sys.executable, "-m", "app.cli"], env=env, check=True, capture_output=True, text=True).stdout
    assert "_VAE_COMPLETE" in told
    assert f"_VAE_COMPLETE={shell}_source vae" in section("Completion", (DOCS / "cli.md").read_text())


# ------------------------------------------------------------------------------------------------------ serve


def test_every_setting_is_a_flag_that_shows_its_variable_and_default() -> None:
    assert flags_of("serve") == {"--" + name.replace("_", "-") for name in Settings.model_fields}
    text = " ".join(vae("serve", "--help").output.split())
    for name, field in Settings.model_fields.items():
        default = "none" if field.default in (None, "") else field.default
        assert f"[{variable(name)}; default: {default}]" in text


def test_wrong_settings_are_one_line_each_and_status_78() -> None:
    result = vae("serve", "--port", "x", env={"VAE_DEVICE": "tpu", "VAE_MAX_ITEMS": "0"})
    assert result.exit_code == 78
    assert result.stderr.splitlines() == [
        "VAE_DEVICE: got 'tpu'; expected auto, cpu, cuda, cuda:N or mps",
        "--port: got 'x'; expected a whole number from 0 to 65535",
        "VAE_MAX_ITEMS: got '0'; expected a whole number from 1 to 65536",
    ]


def test_wrong_settings_are_told_before_anything_slow_is_imported() -> None:
    code = (
        "import sys, click.testing, app.cli as cli\n"
        "assert click.testing.CliRunner().invoke(cli.main, ['serve', '--port', 'x']).exit_code == 78\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_flags_and_variables_reach_the_server_and_its_status_is_that_of_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Settings] = []

    def run(settings: Settings) -> int:
        given.append(settings)
        return 3

    monkeypatch.setattr(serve, "_run", run)
    assert vae("serve", "--port", "9000", env={"VAE_PORT": "1", "VAE_MAX_BATCH": "8"}).exit_code == 3
    assert (given[0].port, given[0].max_batch) == (9000, 8)


def test_model_that_cannot_be_used_is_status_78_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(settings: Settings) -> int:
        raise SettingsError(["VAE_MODEL: x: no such file"])

    monkeypatch.setattr(serve, "_run", run)
    result = vae("serve")
    assert (result.exit_code, result.stderr) == (78, "VAE_MODEL: x: no such file\n")


def test_variable_that_is_no_setting_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_run", lambda settings: 0)
    result = vae("serve", env={"VAE_PROT": "1", "VAE_DATA_DIR": "x", "VAE_LOG_FORMAT": "json"})
    assert result.exit_code == 0
    (line,) = [json.loads(line) for line in result.stderr.splitlines() if "VAE_PROT" in line]
    assert (line["level"], line["message"]) == ("warning", "'VAE_PROT' is not a setting; did you mean VAE_PORT?")
    assert "VAE_DATA_DIR" not in result.stderr


# ---------------------------------------------------------------------------------------------- exit statuses


@pytest.mark.parametrize(
    ("status", "exit_code"),
    [(400, 1), (401, 77), (413, 1), (422, 1), (500, 1), (502, 69), (504, 69)],
)
def test_refusal_is_one_line_with_code_and_request_and_a_status(
    status: int, exit_code: int, answer_with: Callable[..., list[httpx.Request]], tmp_path: Path
) -> None:
    body = {"detail": "n is too large", "code": "too_many_items", "request_id": "id-7"}
    answer_with(status, body)
    result = vae("sample", "--out", tmp_path / "s.png")
    assert result.exit_code == exit_code
    assert result.stderr == "Error: n is too large (too_many_items, request id-7)\n"
    assert result.stdout == ""


@pytest.mark.parametrize("status", [429, 503])
def test_server_that_stays_busy_is_unavailable(
    status: int, answer_with: Callable[..., list[httpx.Request]], tmp_path: Path
) -> None:
    requests = answer_with(status, {"detail": "busy", "code": "queue_full", "retry_after_ms": 0})
    assert vae("sample", "--out", tmp_path / "s.png").exit_code == 69
    assert len(requests) == 1 + asking.RETRIES


@pytest.mark.parametrize(
    ("status", "code", "exit_code"), [(503, "draining", 69), (412, "model_mismatch", 1), (401, "unauthorized", 77)]
)
def test_latents_are_kept_where_the_server_fails_in_the_middle_and_the_same_command_goes_on(
    status: int, code: str, exit_code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = [True]

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/model":
            return httpx.Response(200, json=MODEL)
        assert request.headers["If-Model-Match"] == MODEL["digest"]
        count = len(np.load(BytesIO(request.content)))
        if count < 256 and failing:  # the last request of 600 images
            return httpx.Response(status, json={"detail": "no", "code": code, "retry_after_ms": 60_000})
        mu = np.ones((count, 4), np.float32)
        return httpx.Response(200, content=safetensors.numpy.save({"mu": mu, "sigma": mu}))

    monkeypatch.setattr(asking, "Client", functools.partial(Client, transport=httpx.MockTransport(answer)))
    for i in range(600):
        (tmp_path / f"{i:03}.png").write_bytes(PICTURE)
    out = tmp_path / "l.safetensors"
    result = vae("encode", tmp_path, "--out", out)
    assert result.exit_code == exit_code
    kept = f"512 latents are kept in '{out}.part'; the same command goes on"
    assert result.stderr.splitlines() == [kept, f"Error: no ({code})"]
    failing.clear()
    again = vae("encode", tmp_path, "--out", out)
    assert (again.exit_code, again.stdout) == (0, f"{out}: 600 latents\n")
    assert again.stderr == "going on after 512 of 600 files\n"


def test_file_that_cannot_be_written_is_status_74(
    answer_with: Callable[..., list[httpx.Request]], tmp_path: Path
) -> None:
    answer_with(200)
    (tmp_path / "l.npy.part").mkdir()
    (tmp_path / "a.png").write_bytes(PICTURE)
    result = vae("encode", tmp_path / "a.png", "--out", tmp_path / "l.npy")
    assert (result.exit_code, result.stderr) == (74, f"Error: '{tmp_path}/l.npy.part': Is a directory\n")


def test_server_that_does_not_answer_is_unavailable() -> None:
    result = vae("model", "--url", "http://127.0.0.1:1")
    assert result.exit_code == 69
    assert result.stderr.startswith("Error: no answer from http://127.0.0.1:1: ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["encode"], "Missing argument 'FILES...'"),
        (["encode", "no-such-file"], "does not exist"),
        (["encode", "."], "no PNG or JPEG file"),
        (["encode", "x.npy", "--out", "l.png"], "must end in one of .safetensors, .npy, .json"),
        (["sample", "--out", "no/folder.png"], "there is no folder 'no'"),
        (["sample"], "Missing option '--out'"),
        (["interpolate", "x.npy", "--out", "s.png"], "Missing argument 'END'"),
        (["interpolate", "x.npy", "x.npy", "--path", "crooked", "--out", "s.png"], "'linear', 'spherical'"),
        (["decode", "bad.json", "--out", "d.png"], "holds no latents"),
        (["kl"], "give FILES, or --mu and --sigma, or --p and --q"),
        (["kl", "--mu", "[[0]]"], "give FILES"),
        (["kl", "--mu", "[[0]]", "--sigma", "[[1]]", "--p", "{}", "--q", "{}"], "give FILES"),
        (["kl", "--mu", "[[0]", "--sigma", "[[1]]"], "which is not JSON"),
        (["kl", "--p", "@none.json", "--q", "{}"], "which is not JSON"),
        (["model", "--url", "localhost"], "URL of a server"),
        (["model", "--api-key", "two words"], "the API key must be"),
        (["model", "--nonsense"], "No such option"),
    ],
)
def test_wrong_use_is_status_2_and_says_what_is_wrong(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npy").write_bytes(b"")
    (tmp_path / "bad.json").write_text("{}")
    result = vae(*arguments)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert "two words" not in result.output


def test_key_of_the_environment_is_sent(answer_with: Callable[..., list[httpx.Request]]) -> None:
    requests = answer_with(200)
    assert vae("model", "--json", env={"VAE_API_KEY": "k" * 20, "VAE_URL": "http://far.test"}).exit_code == 0
    assert requests[0].headers["Authorization"] == "Bearer " + "k" * 20
    assert requests[0].url.host == "far.test"
    assert "kkk" not in vae("model", "--help", env={"VAE_API_KEY": "k" * 20}).output


def test_client_errors_are_all_service_errors(answer_with: Callable[..., list[httpx.Request]]) -> None:
    answer_with(418)
    result = vae("kl", "--mu", "[[0]]", "--sigma", "[[1]]")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert isinstance(result.exception.__cause__, ServiceError)


# ------------------------------------------------------------------------------------------------------- docs


def section(title: str, page: str) -> str:
    match = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert match, f"no section '{title}'"
    return match[1]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "serve"])
def test_page_names_every_flag_of_a_command_and_no_other(name: str) -> None:
    page = (DOCS / "cli.md").read_text()
    written = set(re.findall(r"^\| `(--[a-z-]+)`", section(f"vae {name}", page), re.MULTILINE))
    shared = SERVER_FLAGS if COMMANDS[name][0].startswith("app.commands") else set()
    assert written == flags_of(name) - shared


def test_page_names_the_flags_that_commands_share_and_every_exit_status() -> None:
    page = (DOCS / "cli.md").read_text()
    shared = re.findall(r"^\| `(--[a-z-]+)`", section("Asking a server", page), re.MULTILINE)
    assert set(shared) == SERVER_FLAGS
    statuses = re.findall(r"^\| (\d+) \|", section("Exit statuses", page), re.MULTILINE)
    assert {int(status) for status in statuses} == {0, 1, 2, 3, 65, 69, 70, 73, 74, 77, 78, 130}
    titles = re.findall(r"^## vae (\w+)$", page, re.MULTILINE)
    assert titles == list(COMMANDS)


def test_page_of_settings_names_every_flag_of_serve() -> None:
    page = (DOCS / "settings.md").read_text()
    assert set(re.findall(r"\| `(--[a-z-]+)` \|", page)) == flags_of("serve")
