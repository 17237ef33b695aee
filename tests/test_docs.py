"""The documentation is complete: whatever a user can meet in the code is named on its page."""

import json
import re
import subprocess
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import httpx
import pages
import pytest
from fastapi.routing import APIRoute
from PIL import Image
from service_pictures import PNG, ink, png
from service_process import Server

from app.cli import COMMANDS
from app.errors import CODES, CONNECTION_CODES
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
    for code, (status, *_) in CONNECTION_CODES.items():
        assert f"{status} `{code}`" in text.replace("\n", " "), code


def test_every_field_of_every_answer_is_in_the_api_page(http: httpx.Client, latent_dim: int) -> None:
    text = page("docs/api.md")
    z = [0.0] * latent_dim
    answers = [
        http.get("/sample", params={"seed": 1}),
        http.get("/model"),
        http.get("/map"),
        http.get("/nothing"),
        http.post("/decode", json={"z": [z]}),
        http.post("/decode", json={"z": [[1]], "odd": 1}),
        http.post("/interpolate", json={"from": z, "to": z}),
        http.post("/traverse", json={"z": z, "dims": [0]}),
        http.post("/kl", json={"mu": [z], "sigma": [[1] * latent_dim]}),
        *(
            http.post(route, content=png(ink()), headers=PNG)
            for route in ("/encode?draws=1", "/kl", "/score?samples=2")
        ),
    ]
    for answer in answers:
        for field, value in answer.json().items():
            for name in [field, *(value if field in ("image", "limits") and isinstance(value, dict) else ())]:
                assert re.search(rf"`{name}`|`{name} \(|\"{name}\"", text), (answer.url, name)


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
    assert len([name for name in registered if name.startswith("vae_")]) == 9
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


def links(path: Path) -> list[tuple[Path, str]]:
    """Return the file and the anchor of each link of a page that stays within the project."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?://", target)]
    split = [target.partition("#") for target in targets]
    return [((path.parent / name).resolve() if name else path, anchor) for name, _, anchor in split]


def test_every_page_is_two_clicks_from_the_readme() -> None:
    readme = ROOT / "README.md"
    first = {file for file, _ in links(readme)}
    second = {file for page in first if page.suffix == ".md" for file, _ in links(page)}
    far = {str(path.relative_to(ROOT)) for path in {*PAGES} - {readme} - first - second}
    assert not {name for name in far if "docs/decisions" not in name}, far  # those are in a folder
    assert (ROOT / "docs" / "decisions") in second


def test_every_question_has_an_answer_with_a_link() -> None:
    sections = re.split(r"^### ", page("docs/questions.md"), flags=re.MULTILINE)[1:]
    assert len(sections) >= 20
    titles = [section.partition("\n")[0] for section in sections]
    assert len(set(titles)) == len(titles)
    for section in sections:
        assert re.search(r"\]\([^)]+\)", section.partition("\n## ")[0]), section


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_within_the_project_leads_somewhere(path: Path) -> None:
    for file, anchor in links(path):
        assert file.exists(), f"{path.name} links to {file}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.read_text()), f"{path.name} links to {file.name}#{anchor}"


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as they are made from their texts."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_function_that_the_page_of_mathematics_names_exists() -> None:
    named = set(re.findall(r"`(model(?:\.\w+)+)`", page("docs/maths.md")))
    assert len(named) >= 12
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute), name


def test_every_make_target_that_the_pages_name_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", page("Makefile"), re.MULTILINE))
    named = {word for path in PAGES for word in re.findall(r"^(?:\$ )?make ([a-z]+)", path.read_text(), re.MULTILINE)}
    assert {"serve", "test"} <= named
    assert named <= targets, named - targets


def blocks(text: str, language: str) -> list[str]:
    return [block.text for block in pages.blocks(text) if block.language == language]


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
    assert pages.same(json.loads(shown.replace(", …", "")), json.loads(answers[-1].stdout))


def test_the_figures_of_the_readme_are_those_of_the_evaluation() -> None:
    text = page("README.md")
    assert pages.with_models(text) == text
