"""How much memory there is."""

from collections.abc import Iterator
from pathlib import Path

__all__ = ["available_memory"]

CGROUPS = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that this process can still take: what the machine and its container leave."""
    import psutil

    return int(min([psutil.virtual_memory().available, *_left_in_groups()]))


def _left_in_groups() -> Iterator[int]:
    """What each control group around this process leaves, where one has a limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, own = line.split(":", 2)
        if kinds == "":  # version 2
            yield from _left(CGROUPS, own, "memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            yield from _left(CGROUPS / "memory", own, *names)


def _left(root: Path, own: str, limit: str, used: str, cached: str) -> Iterator[int]:
    """The same for a group and those above it.

    In a container the group's own path is often that of the host, and its files are in the root.
    """
    inside = root / own.strip("/")
    for group in (inside, *inside.parents):
        if not group.is_relative_to(root):
            return
        try:
            most, taken = ((group / name).read_text().strip() for name in (limit, used))
            counts = dict(
                entry.split() for entry in (group / "memory.stat").read_text().splitlines()
            )
        except (OSError, ValueError):
            continue
        if most != "max":
            # Pages of files that were read count as used, and are given back when needed.
            yield max(0, int(most) - int(taken) + int(counts.get(cached, 0)))
