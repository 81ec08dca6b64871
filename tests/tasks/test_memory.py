"""Memory that is left, where groups of processes have a limit."""

from pathlib import Path

import psutil
import pytest

from thalweg.tasks import memory

V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def group(folder, names, limit, used, cached=0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")


@pytest.mark.parametrize(
    ("names", "line", "below"),
    [(V2, "0::/job/step", ""), (V1, "4:cpu,memory:/job/step", "memory")],
)
def test_the_tightest_group_around_counts(monkeypatch, tmp_path, names, line, below):
    read = Path.read_text
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(
        Path, "read_text", lambda p: line if str(p) == "/proc/self/cgroup" else read(p)
    )
    group(tmp_path / below / "job", names, 1000, 700, cached=50)
    group(tmp_path / below / "job" / "step", names, 900, 300)
    assert memory.available_memory() == 350
    group(tmp_path / below / "job", names, 1000, 1200)
    assert memory.available_memory() == 0
    if names is V2:
        group(tmp_path / "job", names, "max", 700)
        assert memory.available_memory() == 600


def test_without_limits_it_is_the_machines(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    assert 0 < memory.available_memory() <= psutil.virtual_memory().total
