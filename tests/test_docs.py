"""The documentation is complete: whatever a user can meet in the code is named on its page."""

import json
import re
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from PIL import Image
from service_process import Server

from app.cli import COMMANDS
from app.errors import CODES
from app.guard import REFUSALS
from app.main import create_app
from app.metrics import ROUTES, Metrics
from app.settings import Settings, expected, variable
from model.train_config import TrainConfig

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("model/weights/*.md")])


def page(name: str) -> str:
    return (ROOT / name).read_text()


@pytest.fixture(scope="module")
def parameters() -> dict[str, set[str]]:
    """Return the path and query parameters of every documented route."""
    document = create_app(Settings(model="mnist")).openapi()
    return {
        path: {parameter["name"] for method in methods.values() for parameter in method.get("parameters", [])}
        for path, methods in document["paths"].items()
    }


def test_every_route_and_parameter_is_in_the_api_page(parameters: dict[str, set[str]]) -> None:
    text = page("docs/api.md")
    assert len(parameters) >= 9
    for path, names in parameters.items():
        assert re.search(rf"`(GET|POST) {path}`", text), path
        for name in names:
            assert f"| `{name}` |" in text, (path, name)


def test_every_error_code_is_in_the_api_page_with_its_status() -> None:
    text = page("docs/api.md")
    for code, (status, _) in CODES.items():
        assert re.search(rf"^\| {status} \|.*`{code}`", text, re.MULTILINE), code
    for code, (status, *_) in REFUSALS.items():
        assert f"{status} `{code}`" in text.replace("\n", " "), code


def test_every_setting_is_in_the_settings_page_with_its_default_and_range() -> None:
    text = page("docs/settings.md")
    for name, field in Settings.model_fields.items():
        default = "–" if field.default in (None, "") else f"`{field.default}`"
        flag = f"--{name.replace('_', '-')}"
        row = f"| `{variable(name)}` | `{flag}` | {default} | {expected(name)} | {field.description} |"
        assert row in text, row


def test_every_metric_is_in_the_operations_page() -> None:
    text = page("docs/operations.md")
    registered = {family.name for family in Metrics()._registry.collect()}
    assert len(registered) == 9
    for name in registered:
        assert f"`{name}" in text, name


def test_every_training_flag_is_in_the_training_page() -> None:
    text = page("docs/training.md")
    for field in fields(TrainConfig):
        assert f"`--{field.name.replace('_', '-')}`" in text, field.name


def test_every_command_is_in_the_command_line_page() -> None:
    text = page("docs/cli.md")
    for name in COMMANDS:
        assert f"vae {name}" in text, name


def test_the_metrics_know_every_route_of_the_application() -> None:
    app = create_app(Settings(model="mnist"))
    known = {getattr(route, "path", "") for route in app.routes if not isinstance(route, APIRoute)}
    served = set(app.openapi()["paths"]) | {path for path in known if path}
    assert {path for path in served if not path.startswith("/v1")} - {""} <= set(ROUTES)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_within_the_project_leads_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{path.name} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.read_text()), f"{path.name} links to {target}"


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as they are made from their texts."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_make_target_that_the_pages_name_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", page("Makefile"), re.MULTILINE))
    named = {word for path in PAGES for word in re.findall(r"^(?:\$ )?make ([a-z]+)", path.read_text(), re.MULTILINE)}
    assert {"serve", "test"} <= named
    assert named <= targets, named - targets


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def is_close(shown: Any, got: Any) -> bool:
    """Return whether an answer is the one that is shown; a list may show only its first numbers."""
    if isinstance(shown, dict):
        return isinstance(got, dict) and shown.keys() == got.keys() and all(is_close(shown[k], got[k]) for k in shown)
    if isinstance(shown, list):
        return len(shown) <= len(got) and all(is_close(*pair) for pair in zip(shown, got, strict=False))
    return got == pytest.approx(shown, abs=2e-3) if isinstance(shown, float) else bool(got == shown)


def test_the_curl_lines_of_the_readme_run_as_printed_and_answer_as_printed(server: Server, tmp_path: Path) -> None:
    text = page("README.md")
    lines = [line for block in blocks(text, "bash") for line in block.splitlines() if line.startswith("curl")]
    assert len(lines) >= 3
    here = server.url.removeprefix("http://")
    answers = [
        subprocess.run(
            ["bash", "-c", line.replace("localhost:8000", here)], cwd=tmp_path, capture_output=True, check=True
        )
        for line in lines
    ]
    with Image.open(tmp_path / "samples.png") as sheet:
        assert (sheet.format, sheet.size) == ("PNG", (8 * 28, 8 * 28))
    (shown,) = blocks(text, "json")
    assert is_close(json.loads(shown.replace(", …", "")), json.loads(answers[-1].stdout))


def test_the_figures_of_the_readme_are_those_of_the_evaluation() -> None:
    text, metrics = page("README.md"), json.loads(page("model/weights/mnist.json"))
    shown = dict(re.findall(r"^\| ([^|]+?) \| ([\d.]+)[^|]*\|$", text, re.MULTILINE))
    expected = {
        "NLL, K = 5000": metrics["nll_5000"],
        "negative ELBO": metrics["negative_elbo"],
        "active latents": metrics["active_units"],
    }
    for name, value in expected.items():
        digits = len(shown[name].partition(".")[2])
        assert float(shown[name]) == round(value, digits), name
