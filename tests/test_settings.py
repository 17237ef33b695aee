"""Settings: defaults, sources, and problems that name themselves."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import (
    Settings,
    SettingsError,
    expected,
    load_settings,
    read_api_keys,
    unknown_variables,
    variable,
)

KEY = "k3y-0123456789abcdef"


def problems_of(env: dict[str, str], **flags: object) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(env, **flags)
    return caught.value.problems


def test_defaults_are_those_of_the_contract() -> None:
    settings = load_settings({})
    assert (settings.model, settings.device, settings.precision) == ("mnist", "auto", "auto")
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert (settings.max_batch, settings.max_queue_items, settings.max_items) == (0, 4096, 1024)
    assert (settings.max_body_bytes, settings.max_pixels) == (33_554_432, 25_000_000)
    assert (settings.deadline_s, settings.drain_s, settings.drain_delay_s) == (30.0, 25.0, 1.0)
    assert (settings.api_keys_file, settings.cors_origin_list) == (None, ())
    assert (settings.log_level, settings.log_format) == ("info", "text")
    assert (settings.streams, settings.max_connections) == (0, 4096)


def test_variables_are_read_flags_win_and_none_is_no_flag() -> None:
    env = {"VAE_PORT": "9000", "VAE_MAX_BATCH": "8", "VAE_DEADLINE_S": "2.5", "VAE_LOG_LEVEL": "DEBUG"}
    settings = load_settings(env, max_batch=16, host=None, device="CUDA:1")
    assert (settings.port, settings.max_batch, settings.host) == (9000, 16, "127.0.0.1")
    assert (settings.deadline_s, settings.log_level, settings.device) == (2.5, "debug", "cuda:1")


def test_given_environment_replaces_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAE_PORT", "1234")
    assert load_settings({}).port == 8000
    assert load_settings().port == 1234
    assert Settings().port == 1234


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings({}).port = 1  # type: ignore[misc]


def test_flag_that_is_no_setting_is_a_programming_error() -> None:
    with pytest.raises(TypeError, match="prot"):
        load_settings({}, prot=1)


def test_all_problems_are_reported_at_once_one_line_each() -> None:
    lines = problems_of({"VAE_PORT": "abc", "VAE_DEVICE": "tpu", "VAE_DRAIN_S": "nan"}, max_batch=-1)
    assert lines == [
        "VAE_DEVICE: got 'tpu'; expected auto, cpu, cuda, cuda:N or mps",
        "VAE_PORT: got 'abc'; expected a whole number from 0 to 65535",
        "--max-batch: got -1; expected a whole number from 0 to 4096",
        "VAE_DRAIN_S: got 'nan'; expected seconds from 0 to 86400",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VAE_MODEL", ""),
        ("VAE_DEVICE", "cuda:"),
        ("VAE_DEVICE", "cuda:-1"),
        ("VAE_DEVICE", "cpu gpu"),
        ("VAE_PRECISION", "fp16"),
        ("VAE_HOST", ""),
        ("VAE_PORT", ""),
        ("VAE_PORT", "-1"),
        ("VAE_PORT", "65536"),
        ("VAE_PORT", "80.5"),
        ("VAE_PORT", "9" * 5000),
        ("VAE_MAX_BATCH", "-1"),
        ("VAE_MAX_QUEUE_ITEMS", "0"),
        ("VAE_MAX_ITEMS", "1e3"),
        ("VAE_MAX_BODY_BYTES", "32MB"),
        ("VAE_MAX_BODIES_BYTES", "1000"),
        ("VAE_MAX_BODIES_BYTES", "33554431"),  # less than the longest body
        ("VAE_MAX_PIXELS", "0"),
        ("VAE_MAX_CONNECTIONS", "0"),
        ("VAE_STREAMS", "-1"),
        ("VAE_DEADLINE_S", "0"),
        ("VAE_DEADLINE_S", "inf"),
        ("VAE_DRAIN_S", "-1"),
        ("VAE_DRAIN_DELAY_S", "soon"),
        ("VAE_CORS_ORIGINS", "example.org"),
        ("VAE_CORS_ORIGINS", "https://example.org/path"),
        ("VAE_CORS_ORIGINS", "https://a.example, null"),
        ("VAE_LOG_LEVEL", "loud"),
        ("VAE_LOG_FORMAT", "xml"),
        ("VAE_API_KEYS_FILE", ""),
        ("VAE_API_KEYS_FILE", "/no/such/file"),
        ("VAE_API_KEYS_FILE", "a\x00b"),
    ],
)
def test_wrong_value_is_one_line_that_names_the_variable(name: str, value: str) -> None:
    (line,) = problems_of({name: value})
    assert line.startswith(f"{name}: ")
    assert "\n" not in line
    assert len(line) < 250


def test_names_are_read_in_any_case_and_without_the_line_end_of_a_file() -> None:
    settings = load_settings({"VAE_DEVICE": " CPU\n", "VAE_PRECISION": "BF16"})
    assert (settings.device, settings.precision) == ("cpu", "bf16")


def test_origins_may_be_listed_with_ports_and_spaces() -> None:
    settings = load_settings({"VAE_CORS_ORIGINS": "https://a.example, http://[::1]:8080,http://localhost:3000"})
    assert settings.cors_origin_list == ("https://a.example", "http://[::1]:8080", "http://localhost:3000")


def test_every_setting_is_described_and_says_what_it_expects() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description
        assert field.description.endswith(".")
        assert expected(name)
        assert variable(name) == "VAE_" + name.upper()


def test_unknown_variables_are_named_with_the_nearest_setting() -> None:
    env = {"VAE_PROT": "1", "VAE_DATA_DIR": "x", "VAE_PORT": "1", "PATH": "/bin", "VAE_XYZZY_PLUGH": ""}
    assert unknown_variables(env) == [
        "'VAE_PROT' is not a setting; did you mean VAE_PORT?",
        "'VAE_XYZZY_PLUGH' is not a setting",
    ]


def test_keys_are_one_a_line_with_comments_and_blank_lines_ignored(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# team a\n{KEY}\r\n\n  {KEY[::-1]}  \n{KEY}\n")
    assert read_api_keys(path) == (KEY.encode(), KEY[::-1].encode())
    assert load_settings({"VAE_API_KEYS_FILE": str(path)}).api_keys_file == path


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no key"),
        (b"# only a comment\n\n", "holds no key"),
        (b"short-secret\n", "line 1 is not a key"),
        (b"# x\nsecret-with-umlaut-\xc3\xbc\n", "line 2 is not a key"),
        (b"secret secret secret\n", "line 1 is not a key"),
        (b"\xff\xfe\x00secret", "line 1 is not a key"),
        (b"secretsecretsecret" * 100_000, "longer than"),
    ],
)
def test_file_without_good_keys_is_refused_and_no_key_is_printed(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=says) as caught:
        read_api_keys(path)
    assert "secret" not in str(caught.value)
    assert problems_of({"VAE_API_KEYS_FILE": str(path)}) == caught.value.problems


def test_path_of_keys_is_never_printed_since_it_may_be_a_key_by_mistake() -> None:
    assert KEY not in str(problems_of({"VAE_API_KEYS_FILE": KEY}))


def test_problems_of_the_key_file_come_together_with_all_others() -> None:
    lines = problems_of({"VAE_API_KEYS_FILE": "/no/such/file", "VAE_PORT": "x"})
    assert [line.partition(":")[0] for line in lines] == ["VAE_API_KEYS_FILE", "VAE_PORT"]
