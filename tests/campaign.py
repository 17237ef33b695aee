"""The test campaign, row by row: run it, keep its figures, and print them into docs/reliability.md.

``python -m tests.campaign [ROW ...]``; without a name every row but the soak, which is ``python -m tests.soak``. The
figures of rows that are not run stay as they were.
"""

import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- figures: written by make campaign -->", "<!-- end of the figures -->"


@dataclass(frozen=True)
class Row:
    """One promise, and the tests that hold the service to it."""

    promise: str
    tests: tuple[str, ...]


ROWS = {
    "json": Row("100,000 tampered JSON bodies on every POST route", ("test_hostile_json.py",)),
    "files": Row("50,000 tampered image, npy and safetensors bodies", ("test_hostile_files.py",)),
    "express": Row("20,000 tampered image files, by express and as all requests", ("test_express.py -k tampered",)),
    "bombs": Row("files built to cost far more than they weigh", ("test_hostile_pictures.py",)),
    "document": Row("the OpenAPI document, by schemathesis", ("test_document.py",)),
    "sockets": Row(
        "connections that never finish, have no end, or can be read in two ways", ("test_hostile_sockets.py",)
    ),
    "unread": Row("answers that nobody reads", ("test_guard_patience.py",)),
    "full": Row("a full line refuses exactly those that are too many", ("test_crowds.py -k full_line",)),
    "deadline": Row("what is past its deadline is computed 0 times", ("test_crowds.py -k deadline",)),
    "leavers": Row("4,000 clients, half of whom leave", ("test_crowds.py -k leave",)),
    "answers": Row("100,000 requests, 64 at a time, all different", ("test_crowds.py -k own_answer",)),
    "poison": Row("one poisoned item in a batch, 5,000 batches", ("test_running.py -k poisoned",)),
    "batcher": Row("the batcher in 1,000 orders of events", ("test_batching_machine.py",)),
    "stop": Row("SIGTERM with 200 in flight", ("test_crowds.py -k told_to_stop", "test_service_drain.py")),
    "kill": Row("`kill -9` of a training, 50 times", ("test_resume.py -k kill",)),
    "weights": Row("broken weights", ("test_service_settings.py -k weights", "test_checkpoint.py")),
    "settings": Row("wrong settings", ("test_service_settings.py -k wrong", "test_settings.py")),
    "keys": Row("no key, wrong keys, odd keys on every route", ("test_service_auth.py",)),
    "reloads": Row("the model loaded again and again", ("test_reloads.py",)),
    "overload": Row("2 and 10 times the capacity", ("test_overload.py",)),
    "controls": Row(
        "faults built in are found", ("test_negative_controls.py", "test_batching_machine.py -k found_out")
    ),
}


def run(row: Row) -> dict[str, object]:
    """Run the tests of a row; return whether they pass, how many they are, and their figures."""
    figures: dict[str, str] = {}
    count = failed = 0
    begin = time.monotonic()
    with TemporaryDirectory() as folder:
        for number, test in enumerate(row.tests):
            name, *options = test.split()
            report = Path(folder) / f"{number}.xml"
            command = [sys.executable, "-m", "pytest", "-q", "-o", "junit_family=xunit1", "--junitxml", str(report)]
            subprocess.run([*command, f"tests/{name}", *options], cwd=ROOT, check=False)
            suite = ET.parse(report).getroot()
            for case in suite.iter("testcase"):
                count += 1
                failed += any(child.tag in ("failure", "error") for child in case)
                figures |= named(case)
    seconds = round(time.monotonic() - begin)
    return {"passed": failed == 0, "tests": count, "failed": failed, "seconds": seconds, "figures": figures}


def named(case: ET.Element) -> dict[str, str]:
    """Return the figures of a test; where it has parameters, their names go before."""
    _, bracket, parameters = case.get("name", "").partition("[")
    where = parameters.rstrip("]").replace("-", " ") + ": " if bracket else ""
    found = {where + prop.get("name", ""): prop.get("value", "") for prop in case.iter("property")}
    return found


def table(kept: dict[str, dict]) -> str:
    """Return the figures as a table of Markdown, one line a row."""
    lines = ["| row | promise | tests | figures, as measured |", "|---|---|---|---|"]
    for name, row in ROWS.items():
        got = kept.get(name)
        said = "; ".join(f"{key} {value}" for key, value in got["figures"].items()) if got else "not run yet"
        result = f"{got['tests']} {'passed' if got['passed'] else 'FAILED'} in {got['seconds']} s" if got else ""
        lines.append(f"| `{name}` | {row.promise} | {result} | {said} |")
    if soak := kept.get("soak"):
        said = "; ".join(f"{key} {value}" for key, value in soak["figures"].items())
        result = f"{'passed' if soak['passed'] else 'FAILED'} in {soak['seconds']} s"
        lines.append(f"| `soak` | mixed load at and above capacity (`make soak`) | {result} | {said} |")
    return "\n".join(lines)


def keep(name: str, result: dict[str, object]) -> None:
    """Write the figures of a row to docs/reliability.json, and all of them to the page."""
    kept = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    kept[name] = result | {"date": datetime.now(UTC).date().isoformat()}
    FIGURES.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    text = PAGE.read_text()
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    PAGE.write_text(f"{head}\n\n{table(kept)}\n\n{tail}")


def main(names: list[str]) -> int:
    if unknown := [name for name in names if name not in ROWS]:
        print(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    passed = True
    for name in names or ROWS:
        result = run(ROWS[name])
        keep(name, result)
        passed &= bool(result["passed"])
    print(f"figures: {FIGURES.relative_to(ROOT)}, table: {PAGE.relative_to(ROOT)}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
