"""Memory that is free again goes back to the system, though small blocks lie between the large ones."""

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from app import allocator
from app.main import create_app
from app.settings import Settings
from tests.tiny import save_tiny

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


FREE = """
import asyncio
import sys
from app import allocator

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

async def main():
    allocator.TRIM_S = 0.01
    before = resident()
    blocks = [bytearray(b"x") * 20_000 for _ in range(5_000)]
    blocks[:-1] = []  # the last one keeps the end of the arena where it is
    if "never" not in sys.argv:
        async with allocator.trimmed_now_and_then():
            await asyncio.sleep(1)
    print((resident() - before) // 1_000_000)

asyncio.run(main())
"""


def left_behind(program: str, *arguments: str, **variables: str) -> int:
    """Return the megabytes that a process still has after it freed a hundred of them."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    return int(done.stdout)


needs_glibc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is a library of Linux")


@needs_glibc
def test_large_blocks_leave_nothing_behind() -> None:
    assert left_behind(BLOCKS, "fixed") < 10


@needs_glibc
def test_without_fixed_bounds_they_stay() -> None:
    assert left_behind(BLOCKS) > 80


@needs_glibc
def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not allocator.give_back_memory()
    assert left_behind(FREE, MALLOC_TRIM_THRESHOLD_="100000000") > 80


@needs_glibc
def test_what_lies_free_between_small_blocks_is_sent_back_now_and_then() -> None:
    assert left_behind(FREE) < 10


@needs_glibc
def test_without_that_it_stays() -> None:
    assert left_behind(FREE, "never") > 80


class Library:
    """Counts how often it is asked to send free pages back."""

    def __init__(self) -> None:
        self.trims, self.third = 0, threading.Event()

    def mallopt(self, _what: int, _value: int) -> int:
        return 1

    def malloc_trim(self, _keep: int) -> None:
        self.trims += 1
        if self.trims == 3:
            self.third.set()


def test_a_running_application_sends_free_pages_back_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library()
    monkeypatch.setattr(allocator, "TRIM_S", 0.01)
    monkeypatch.setattr(allocator, "_glibc", lambda: library)
    app = create_app(Settings(model=str(save_tiny(tmp_path / "tiny.safetensors")), device="cpu"))

    async def scenario() -> None:
        async with app.router.lifespan_context(app):
            assert await asyncio.to_thread(library.third.wait, 30)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())
