"""How much memory there is."""

from pathlib import Path

__all__ = ["available_memory"]

CGROUPS = Path("/sys/fs/cgroup")
# Limit and use, by version; the pages of read files count as used and can be given back.
_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def available_memory() -> int:
    """Bytes that this process can still take: what the machine and its container leave."""
    import psutil

    return int(min([psutil.virtual_memory().available, *_left_in_groups()]))


def _left_in_groups() -> list[int]:
    """What each control group above this process leaves, where one has a limit."""
    left = []
    for folder in _groups():
        for limit, used, stat, cached in _FILES:
            try:
                most, taken = ((folder / name).read_text().strip() for name in (limit, used))
                kept = dict(line.split() for line in (folder / stat).read_text().splitlines())
            except (OSError, ValueError):
                continue
            if most != "max":
                left.append(max(0, int(most) - int(taken) + int(kept.get(cached, 0))))
    return left


def _groups() -> list[Path]:
    """The folders of this process's control group (version 2) and of those above it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    inside = CGROUPS / own.strip("/")
    return [g for g in (inside, *inside.parents) if g.is_relative_to(CGROUPS) and g.is_dir()]
