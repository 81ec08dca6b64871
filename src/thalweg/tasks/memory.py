"""How much memory there is, and what does not fit into it."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from thalweg.tasks.split import TaskError

__all__ = ["available_memory", "refuse_what_does_not_fit", "shown"]

# Of what is free, so that training has some too.
SHARE = 0.8

CGROUPS = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that this process can still take: what machine, container and its own limit leave."""
    import psutil

    free = [psutil.virtual_memory().available, *_left_in_groups()]
    with suppress(ImportError):  # there are no such limits outside of Unix
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            free.append(max(0, limit - psutil.Process().memory_info().vms))
    return int(min(free))


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


def shown(size: float) -> str:
    """Bytes in the unit a person would choose."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} bytes"


def refuse_what_does_not_fit(name: str, argument: str, rows: int, size: int, need: float) -> None:
    """Refuse a table before its size ends the process.

    Args:
        name: of the table, as messages have it.
        argument: where it was given.
        rows: about how many it has.
        size: bytes of its file.
        need: bytes of memory that it takes, about.

    Raises:
        TaskError: with the size that would fit.
    """
    room = SHARE * available_memory()
    if need <= room:
        return
    share = room / need
    raise TaskError(
        argument,
        f"{name} has about {rows:,} rows and would take about {shown(need)} of memory, where "
        f"{shown(room / SHARE)} are free: about {int(rows * share):,} rows "
        f"({shown(size * share)} of the file) would fit; give a part of the rows or of the columns",
    )
