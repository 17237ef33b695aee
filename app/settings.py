"""Every knob of the service, read from the environment (prefix ``VAE_``) and checked once, at the start.

A wrong value is a ``SettingsError`` that holds one line per problem, so that all of them can be mended at
once. What a knob does is not known here.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX: Final = "VAE_"
MIN_KEY_CHARS: Final = 16

# Variables with the prefix that belong to other commands (training, client), so that no warning names them.
OTHER_VARIABLES: Final = frozenset({"VAE_DATA_DIR", "VAE_URL", "VAE_API_KEY"})

_DEVICE: Final = r"^(auto|cpu|mps|cuda|cuda:\d{1,3})$"
_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?|https?://\[[0-9A-Fa-f:]+\](:\d{1,5})?|\*")
_MAX_KEY_FILE_BYTES: Final = 1 << 20


class SettingsError(ValueError):
    """Settings with which the service cannot start.

    Attributes:
        problems: one line each, naming the variable, what it got (never a key) and what it expects.
    """

    def __init__(self, problems: list[str]) -> None:
        """Keep the lines; as text they are one message of several lines."""
        super().__init__("\n".join(problems))
        self.problems = problems


def _whole(default: int, low: int, high: int, description: str) -> Any:
    extra: dict[str, Any] = {"expected": f"a whole number from {low} to {high}"}
    return Field(default, ge=low, le=high, description=description, json_schema_extra=extra)


def _seconds(default: float, low: float, high: float, description: str) -> Any:
    extra: dict[str, Any] = {"expected": f"seconds from {low:g} to {high:g}"}
    return Field(default, ge=low, le=high, allow_inf_nan=False, description=description, json_schema_extra=extra)


def _text(default: str | None, expected: str, description: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"expected": expected}, **limits)


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _origins(value: str) -> str:
    for origin in filter(None, (part.strip() for part in value.split(","))):
        if not _ORIGIN.fullmatch(origin):
            raise ValueError("not an origin")
    return value


def _one_fits(value: int, info: ValidationInfo) -> int:
    if value < info.data.get("max_body_bytes", 0):
        raise ValueError("less than one body")
    return value


class Settings(BaseSettings):
    """All settings; frozen, so that they can be handed around freely.

    ``Settings(max_batch=8)`` takes what is not given from the process's environment; ``load_settings`` is the
    way in for programs, since it collects readable problems.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    model: str = _text("mnist", "a bundled name or a path", "Bundled model or path of a checkpoint.", min_length=1)
    device: Annotated[str, BeforeValidator(_lower)] = _text(
        "auto",
        "auto, cpu, cuda, cuda:N or mps",
        "Device that computes; auto takes a GPU where there is one.",
        pattern=_DEVICE,
    )
    precision: Annotated[Literal["auto", "fp32", "bf16"], BeforeValidator(_lower)] = _text(
        "auto",
        "auto, fp32 or bf16",
        "Number format of the network; auto takes bf16 only where it is measured to be accurate.",
    )
    streams: int = _whole(0, 0, 256, "Batches computed side by side; 0 lets the device decide.")
    workers: int = _whole(1, 1, 64, "Processes that share the port, the work and the limits; not on Windows.")
    host: str = _text("127.0.0.1", "an address or a host name", "Address to listen on.", min_length=1)
    port: int = _whole(8000, 0, 65535, "TCP port to listen on; 0 takes a free one.")
    max_batch: int = _whole(
        0, 0, 4096, "Largest batch given to the device, in items; 0 lets the device decide: 64, or 512 on CUDA."
    )
    max_queue_items: int = _whole(4096, 1, 1_000_000, "Items that may wait; more are refused with 429.")
    max_items: int = _whole(1024, 1, 65_536, "Items (images, latents, samples) in one request.")
    max_body_bytes: int = _whole(33_554_432, 1024, 2**31 - 1, "Longest request body, in bytes.")
    max_bodies_bytes: Annotated[int, AfterValidator(_one_fits)] = Field(
        536_870_912,
        ge=1024,
        le=2**40,
        description="Most bytes of all request bodies that are being received or worked on; more are refused with 429.",
        json_schema_extra={"expected": "a whole number from VAE_MAX_BODY_BYTES to 1099511627776"},
    )
    max_pixels: int = _whole(25_000_000, 1, 10**9, "Most pixels (width x height) of one image file.")
    max_connections: int = _whole(4096, 1, 1_000_000, "Connections that may be open at the same time.")
    deadline_s: float = _seconds(30.0, 0.001, 86_400, "Longest time for one request, in seconds.")
    drain_s: float = _seconds(25.0, 0, 86_400, "Time to finish what is in flight after SIGTERM, in seconds.")
    drain_delay_s: float = _seconds(
        1.0, 0, 3600, "Time between reporting not ready and refusing new work after SIGTERM, in seconds."
    )
    api_keys_file: Path | None = _text(
        None, "the path of a file", "File of API keys, one a line; without it every route is open."
    )
    cors_origins: Annotated[str, AfterValidator(_origins)] = _text(
        "",
        "origins such as https://example.org separated by commas, or *",
        "Web origins that may call the service from a browser, separated by commas; * for all.",
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = _text(
        "info", "debug, info, warning or error", "Least important messages that are logged."
    )
    log_format: Annotated[Literal["text", "json"], BeforeValidator(_lower)] = _text(
        "text", "text or json", "Log lines for people (text) or for machines (json)."
    )

    @property
    def cors_origin_list(self) -> tuple[str, ...]:
        """The origins of ``cors_origins``, in order."""
        return tuple(part.strip() for part in self.cors_origins.split(",") if part.strip())


def load_settings(env: Mapping[str, str] | None = None, **flags: object) -> Settings:
    """Return the settings of an environment (default: the process's) with ``flags`` on top, but for None.

    The file of keys is read as well, so that its problems come together with all others.

    Raises:
        SettingsError: with one line per wrong value.
        TypeError: a flag is not a setting.
    """
    env = os.environ if env is None else env
    given = {name: value for name, value in flags.items() if value is not None}
    if unknown := given.keys() - Settings.model_fields.keys():
        raise TypeError(f"not settings: {sorted(unknown)}")
    values: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():  # all of them, so that nothing else is looked up
        values[name] = given.get(name, env.get(variable(name), field.default))
    problems = _key_problems(values["api_keys_file"])
    try:
        settings = Settings(**values)
    except ValidationError as error:
        wrong = [str(detail["loc"][0]) for detail in error.errors(include_url=False)]
        problems += [_problem(name, values[name], name in given) for name in dict.fromkeys(wrong)]
        raise SettingsError(problems) from None
    if problems:
        raise SettingsError(problems)
    return settings


def variable(name: str) -> str:
    """Return the environment variable of a setting: ``max_batch`` -> ``VAE_MAX_BATCH``."""
    return PREFIX + name.upper()


def expected(name: str) -> str:
    """Return in words what a setting takes, such as ``a whole number from 1 to 4096``."""
    extra = Settings.model_fields[name].json_schema_extra
    return str(extra["expected"]) if isinstance(extra, dict) else ""


def unknown_variables(env: Mapping[str, str]) -> list[str]:
    """Return a warning line for every variable with the prefix that is no setting, with the nearest name."""
    known = {variable(name) for name in Settings.model_fields}
    lines = []
    for name in sorted(name for name in env if name.startswith(PREFIX)):
        if name not in known and name not in OTHER_VARIABLES:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            lines.append(f"{_shown(name)} is not a setting" + (f"; did you mean {near[0]}?" if near else ""))
    return lines


def read_api_keys(path: str | Path) -> tuple[bytes, ...]:
    """Return the keys of a file: one a line, blank lines and lines that start with ``#`` ignored.

    Raises:
        SettingsError: the file cannot be read or holds no key, or a line is not ``MIN_KEY_CHARS`` or more
            visible ASCII characters. No message holds a key, or any other part of the file.
    """
    name = variable("api_keys_file")
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_KEY_FILE_BYTES + 1)
    except (OSError, ValueError):
        raise SettingsError([f"{name}: the file cannot be read; expected one key a line"]) from None
    if len(data) > _MAX_KEY_FILE_BYTES:
        raise SettingsError([f"{name}: the file is longer than {_MAX_KEY_FILE_BYTES} bytes"])
    lines = [line.strip() for line in data.splitlines()]
    keys = {number: key for number, key in enumerate(lines, 1) if key and not key.startswith(b"#")}
    rule = f"a key is {MIN_KEY_CHARS} or more visible ASCII characters"
    if wrong := [number for number, key in keys.items() if not _is_key(key)]:
        raise SettingsError([f"{name}: line {number} is not a key; {rule}" for number in wrong[:8]])
    if not keys:
        raise SettingsError([f"{name}: the file holds no key; {rule}, one a line"])
    return tuple(dict.fromkeys(keys.values()))


def _is_key(key: bytes) -> bool:
    return len(key) >= MIN_KEY_CHARS and all(33 <= byte <= 126 for byte in key)


def _key_problems(path: object) -> list[str]:
    """Return the problems of the file of keys; none where none is set."""
    if path is None:
        return []
    if not str(path).strip():  # an empty variable must not open the service to everybody
        return [f"{variable('api_keys_file')}: got an empty path; name a file or do not set it"]
    try:
        read_api_keys(str(path))
    except SettingsError as error:
        return error.problems
    return []


def _problem(name: str, value: object, is_flag: bool) -> str:
    """Return the line for one wrong value; a path of keys is never printed, it might be a key by mistake."""
    where = "--" + name.replace("_", "-") if is_flag else variable(name)
    got = "" if name == "api_keys_file" else f"got {_shown(value)}; "
    return f"{where}: {got}expected {expected(name)}"


def _shown(value: object) -> str:
    """Return a value as it stands on one line of a message, cut to 80 characters."""
    text = ascii(value) if not isinstance(value, str) or not value.isprintable() else f"'{value}'"
    return text if len(text) <= 80 else text[:77] + "..."
