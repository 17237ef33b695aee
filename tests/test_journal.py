"""A journal keeps what was appended, whatever kills its writer, and has one writer at a time."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from app.journal import Journal

RECORDS = [({"i": i, "name": "\udcff" * i}, bytes([i]) * (3 * i)) for i in range(5)]


def filled(path: Path) -> None:
    journal = Journal(path)
    for fields, data in RECORDS:
        journal.append(fields, data)
    journal.close()


def test_records_come_back_in_order_and_more_can_follow(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    journal = Journal(tmp_path / "j")
    assert list(journal) == RECORDS
    journal.append({"i": 5}, b"more")
    assert list(journal) == [*RECORDS, ({"i": 5}, b"more")]
    journal.close()


def test_what_was_torn_at_any_byte_is_cut_off_and_everything_before_it_counts(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    whole = (tmp_path / "j").read_bytes()
    ends = [0]
    for count in range(1, len(RECORDS) + 1):
        journal = Journal(tmp_path / f"{count}")
        for record in RECORDS[:count]:
            journal.append(*record)
        journal.close()
        ends.append((tmp_path / f"{count}").stat().st_size)
    for length in range(len(whole)):
        (tmp_path / "torn").write_bytes(whole[:length])
        journal = Journal(tmp_path / "torn")
        kept = max(i for i, end in enumerate(ends) if end <= length)
        assert list(journal) == RECORDS[:kept]
        assert (tmp_path / "torn").stat().st_size == ends[kept]
        journal.append(*RECORDS[0])
        assert list(journal) == [*RECORDS[:kept], RECORDS[0]]
        journal.close()


def test_changed_byte_ends_what_counts(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    whole = bytearray((tmp_path / "j").read_bytes())
    for at in range(len(whole)):
        (tmp_path / "changed").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        journal = Journal(tmp_path / "changed")
        kept = list(journal)
        assert kept == RECORDS[: len(kept)]
        assert len(kept) < len(RECORDS)
        journal.close()


def test_second_writer_is_refused_until_the_first_one_is_gone(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j")
    with pytest.raises(BlockingIOError):
        Journal(tmp_path / "j")
    first.close()
    Journal(tmp_path / "j").close()


def _append_until_killed(path: Path) -> None:
    journal = Journal(path)
    for i in range(10**9):
        journal.append({"i": i}, bytes(1000))


def test_killed_writer_leaves_sound_records_and_no_lock(tmp_path: Path) -> None:
    writer = multiprocessing.get_context("spawn").Process(target=_append_until_killed, args=(tmp_path / "j",))
    writer.start()
    assert writer.pid is not None
    while not (tmp_path / "j").exists() or (tmp_path / "j").stat().st_size < 10**6:
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    journal = Journal(tmp_path / "j")
    assert [fields["i"] for fields, _ in journal] == list(range(len(list(journal))))
    assert len(list(journal)) > 900
    journal.remove()
    assert not (tmp_path / "j").exists()
