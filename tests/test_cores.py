"""How many processors a process may use, read from files as kernels and containers write them."""

from pathlib import Path

import pytest

from app import cores


def groups(root: Path, own: str, **files: str) -> tuple[Path, Path]:
    """Write a tree of control groups; ``__`` in a name is a folder's end."""
    (root / "own").write_text(own)
    for name, text in files.items():
        file = root / "cgroup" / name.replace("__", "/").replace("_dot_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root / "cgroup", root / "own"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu_dot_max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu_dot_max": "max 100000\n"}, float("inf")),
        ("0::/\n", {}, float("inf")),
        ("0::/a/b\n", {"a__cpu_dot_max": "200000 100000\n", "a__b__cpu_dot_max": "max 100000\n"}, 2),
        ("0::/not/mounted/here\n", {"cpu_dot_max": "300000 100000\n"}, 3),
        (
            "4:cpu,cpuacct:/x\n",
            {"cpu,cpuacct__x__cpu_dot_cfs_quota_us": "50000", "cpu,cpuacct__x__cpu_dot_cfs_period_us": "100000"},
            0.5,
        ),
        (
            "4:cpu,cpuacct:/x\n",
            {"cpu__cpu_dot_cfs_quota_us": "-1", "cpu__cpu_dot_cfs_period_us": "100000"},
            float("inf"),
        ),
        ("", {"cpu_dot_max": "nonsense"}, float("inf")),
    ],
)
def test_the_quota_is_the_smallest_on_the_way_up(
    tmp_path: Path, own: str, files: dict[str, str], expected: float
) -> None:
    assert cores.cpu_quota(*groups(tmp_path, own, **files)) == expected


@pytest.mark.parametrize(("quota", "expected"), [(0.5, 1), (1.5, 1), (2.0, 2), (64.0, 4), (float("inf"), 4)])
def test_a_part_of_a_processor_is_none(monkeypatch: pytest.MonkeyPatch, quota: float, expected: int) -> None:
    monkeypatch.setattr(cores, "_affinity", lambda: 4)
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert cores.usable_cores() == expected


def test_this_machine_has_at_least_one() -> None:
    assert cores.usable_cores() >= 1
