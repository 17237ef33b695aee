"""The documentation is complete: whatever a user can meet in the code is named on its page."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

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


def commands(text: str) -> list[list[str]]:
    """Return the commands of a page's bash blocks, split into words; continued lines are joined."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in blocks.splitlines() if line.strip()]
