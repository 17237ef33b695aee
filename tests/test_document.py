"""The OpenAPI document and the service agree: schemathesis sends what the document allows and what it forbids."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from crowds import Pictures, Record, assert_unharmed
from service_process import ROOT, Server

EXAMPLES = 150  # of each operation
# A schema cannot say that a string is a picture, that a matrix is positive definite, or how many latents the loaded
# model has; so what it allows is often, and rightly, refused.
LOOSE = "positive_data_acceptance"


@pytest.mark.slow
@pytest.mark.usefixtures("takes_minutes")
def test_every_check_of_schemathesis_passes_on_every_operation(
    server: Server, tmp_path: Path, record_property: Record
) -> None:
    config = ROOT / "tests" / "schemathesis.toml"
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"]
    flags = [
        "--checks",
        "all",
        "--exclude-checks",
        LOOSE,
        "--mode",
        "all",
        "--max-examples",
        str(EXAMPLES),
        "--no-color",
        "--workers",
        "1",
    ]
    flags += ["--generation-database", "none", "--seed", "1"]
    done = subprocess.run(
        [*command, f"{server.url}/openapi.json", *flags],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    operations = re.search(r"Tested: (\d+)", done.stdout)
    cases = re.search(r"(\d+) generated", done.stdout)
    assert operations is not None
    assert cases is not None
    assert int(operations[1]) >= 9
    record_property("operations", int(operations[1]))
    record_property("cases", int(cases[1]))
    record_property("failures", 0)
    assert_unharmed(server, Pictures(1, drawn=1))
