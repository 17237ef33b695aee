"""Memory that is free again goes back to the system, though small blocks lie between the large ones."""

import os
import subprocess
import sys

import pytest

BLOCKS = """
import sys
from app.allocator import give_back_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

if "fixed" in sys.argv:
    assert give_back_memory()
before = resident()
largest = bytearray(b"x") * 30_000_000  # freed, it moves glibc's own bounds
del largest
blocks, between = [], []
for _ in range(100):
    blocks.append(bytearray(b"x") * 1_000_000)
    between.append(bytes(1_000))
del blocks
print((resident() - before) // 1_000_000)
"""


def left_behind(*arguments: str, **variables: str) -> int:
    """Return the megabytes that a process still has after it freed a hundred blocks of one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", BLOCKS, *arguments]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    return int(done.stdout)


needs_glibc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is a library of Linux")


@needs_glibc
def test_large_blocks_leave_nothing_behind() -> None:
    assert left_behind("fixed") < 10


@needs_glibc
def test_without_fixed_bounds_they_stay() -> None:
    assert left_behind() > 80


@needs_glibc
def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    from app.allocator import give_back_memory

    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not give_back_memory()
