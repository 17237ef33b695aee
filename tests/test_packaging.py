"""What is installed and deployed agrees with the code: dependencies, pins, the compose file, the wheel."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.settings import Settings, variable

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = ROOT / "docker-compose.yml"


def requirements() -> list[Requirement]:
    """Return the dependencies that pyproject.toml names, those for development included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["dev"]]


def test_every_dependency_is_pinned_to_a_version_that_its_range_allows() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] != "#"]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    for needed in requirements():
        assert needed.specifier.contains(pins[canonicalize_name(needed.name)]), needed.name


def test_every_dependency_says_why_it_is_there() -> None:
    reasons = (ROOT / "docs" / "decisions" / "0001-dependencies.md").read_text()
    for needed in requirements():
        assert f"| {needed.name} |" in reasons


def test_compose_hands_every_setting_on_but_for_the_address_inside_the_container() -> None:
    handed_on = re.findall(r"^      (VAE_\w+):", COMPOSE.read_text(), re.MULTILINE)
    inside = {"VAE_HOST", "VAE_PORT"}
    assert handed_on == sorted({variable(name) for name in Settings.model_fields} - inside)


def test_compose_waits_longer_than_the_service_drains() -> None:
    grace = re.search(r"stop_grace_period: (\d+)s", COMPOSE.read_text())
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert grace is not None
    assert int(grace[1]) > defaults["drain_delay_s"] + defaults["drain_s"]


@pytest.mark.slow
def test_the_wheel_holds_the_code_the_page_and_the_weights(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path)]
    subprocess.run([*pip, str(ROOT)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("vae_service-*.whl")
    files = {path for path in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in path}
    folders = [folder for package in ("app", "model") for folder in (ROOT / package).rglob("*")]
    assert files == {f.relative_to(ROOT).as_posix() for f in folders if f.is_file() and f.suffix != ".pyc"}
