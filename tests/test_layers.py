"""docs/architecture.md says what the code does: its list is the import order, its table of doors is complete.

Only the text of the modules is read, nothing of the project is imported. Imports hidden in functions count, and so
do modules that are named in a text to be imported later, such as ``"app.serve:serve"``.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURE = ROOT / "docs" / "architecture.md"
HOUSE = ("model", "app")


def listed() -> list[str]:
    """Return the modules of the list, ``model/gaussian.py`` and so on, in reading order."""
    return re.findall(r"^((?:model|app)/\w+\.py) {2,}\S", ARCHITECTURE.read_text(), re.MULTILINE)


def doors() -> dict[str, list[str]]:
    """Return for each outside package the modules and folders that may import it."""
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", ARCHITECTURE.read_text(), re.MULTILINE)
    return {package: re.findall(r"`([^`]+)`", where) for package, where in rows}


def modules() -> list[str]:
    """Return the modules that there are; a package's ``__init__.py`` is none, since it must be empty."""
    files = [file for package in HOUSE for file in (ROOT / package).rglob("*.py")]
    return sorted(file.relative_to(ROOT).as_posix() for file in files if file.name != "__init__.py")


def imports(source: str, package: str) -> set[str]:
    """Return the dotted names that a source text imports anywhere; ``from a import b`` counts as ``a.b``."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(filter(None, [package if node.level else "", node.module]))
            names |= {f"{origin}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and re.fullmatch(r"(model|app)\.\w+:\w+", str(node.value)):
            names.add(str(node.value).replace(":", "."))
    return names


def imports_of(module: str) -> set[str]:
    """Return the dotted names that the module at this path imports."""
    return imports((ROOT / module).read_text(), module.split("/")[0])


def own_modules(module: str) -> set[str]:
    """Return the project's modules that a module imports, as paths."""
    parts = [name.split(".") for name in imports_of(module) if name.split(".")[0] in HOUSE]
    return {f"{name[0]}/{name[1] if len(name) > 1 else '__init__'}.py" for name in parts}


def outside_packages(module: str) -> set[str]:
    """Return the top-level packages that are neither the project's nor Python's own."""
    return {name.split(".")[0] for name in imports_of(module)} - set(HOUSE) - set(sys.stdlib_module_names)


def test_the_list_names_every_module_once_and_nothing_else() -> None:
    assert set(modules()) - set(listed()) == set(), "not in the list"
    assert set(listed()) - set(modules()) == set(), "in the list only"
    assert len(listed()) == len(set(listed()))


def test_a_module_imports_only_modules_above_it_in_the_list() -> None:
    order = [module for module in listed() if module in modules()]
    below = [
        f"{module} imports {other}"
        for place, module in enumerate(order)
        for other in sorted(own_modules(module))
        if other not in order[:place]
    ]
    assert below == []


def test_outside_packages_enter_only_by_their_doors() -> None:
    allowed = doors()
    intruders = [
        f"{module} imports {package}"
        for module in modules()
        for package in sorted(outside_packages(module))
        if not any(module.startswith(door) for door in allowed.get(package, []))
    ]
    assert intruders == []


def test_every_door_is_used() -> None:
    users = {module: outside_packages(module) for module in modules()}
    unused = [
        f"{package}: {door}"
        for package, open_doors in doors().items()
        for door in open_doors
        if not any(module.startswith(door) and package in used for module, used in users.items())
    ]
    assert unused == []


@pytest.mark.parametrize("package", HOUSE)
def test_importing_a_package_runs_nothing(package: str) -> None:
    body = ast.parse((ROOT / package / "__init__.py").read_text()).body
    assert [type(node) for node in body] == [ast.Expr], "a docstring and nothing else"


def test_hidden_and_later_imports_are_seen() -> None:
    source = "def f():\n  import torch.nn\n  from app.engine import Engine\n  from . import routes\nx = 'app.serve:run'"
    assert imports(source, "app") == {"torch.nn", "app.engine.Engine", "app.routes", "app.serve.run"}
