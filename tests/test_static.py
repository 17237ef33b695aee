"""The page's files as they lie there: small, self-contained, in agreement with each other; its pure modules by node."""

import os
import re
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STATIC = ROOT / "app" / "static"
VENDORED = STATIC / "vendor" / "swagger-ui"
MODULES = sorted([*STATIC.glob("*.js"), *STATIC.glob("panels/*.js")])
PAGES = [STATIC / "index.html", STATIC / "docs.html"]
MOST_BYTES = 60_000


def imported(module: Path) -> set[Path]:
    """Return the modules that a module imports."""
    found = re.findall(r'^import .* from "(\..*)";$', module.read_text(), re.MULTILINE)
    return {(module.parent / name).resolve() for name in found}


def test_scripts_and_styles_of_our_own_are_small() -> None:
    modules = [module for module in MODULES if module.name != "docs.js"]  # that is of another page
    assert sum(file.stat().st_size for file in [*modules, STATIC / "style.css"]) <= MOST_BYTES


def test_the_page_loads_every_module_at_once_and_each_exists() -> None:
    named = re.findall(r'<(?:link rel="modulepreload"|script type="module") (?:href|src)="(.*?)"', PAGES[0].read_text())
    loaded = [(STATIC.parent / name).resolve() for name in named]
    assert sorted(loaded) == [module for module in MODULES if module.name != "docs.js"]
    assert set().union(*map(imported, MODULES)) == set(loaded) - {STATIC / "main.js"}


def test_modules_ask_only_for_elements_that_the_page_has() -> None:
    ids = re.findall(r'\bid="([\w-]+)"', PAGES[0].read_text())
    assert len(ids) == len(set(ids))
    wanted = {name for module in MODULES for name in re.findall(r'\$\("([\w-]+)"\)', module.read_text())}
    assert wanted
    assert wanted <= set(ids)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_neither_inline_scripts_nor_inline_styles(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text) == []


def test_no_file_of_our_own_names_another_host() -> None:
    allowed = {"http://localhost:8000", "http://www.w3.org"}  # what a reader would type; the name of SVG
    for file in [*MODULES, *PAGES, STATIC / "style.css"]:
        assert set(re.findall(r"""https?://[\w.-]+(?::\d+)?|["'(]//\w+""", file.read_text())) <= allowed, file


def test_vendored_files_are_those_of_the_named_version() -> None:
    version = (VENDORED / "VERSION").read_text()
    assert re.match(r"swagger-ui-dist \d+\.\d+\.\d+, .*Apache-2\.0", version)
    sums = dict(reversed(line.split("  ")) for line in version.splitlines() if re.match(r"[0-9a-f]{64}  ", line))
    files = {file.name: sha256(file.read_bytes()).hexdigest() for file in VENDORED.iterdir() if file.name != "VERSION"}
    assert files == sums


def test_pure_modules_do_what_they_say() -> None:
    node = shutil.which("node")
    if node is None:
        if os.environ.get("CI") == "true":
            pytest.fail("node is missing; on Debian: apt-get install nodejs")
        pytest.skip("node is missing")
    command = [node, "--test", "tests/test_static.mjs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
