"""How much memory a table takes, and how much there is."""

from contextlib import suppress
from pathlib import Path

from thalweg.tasks.split import TaskError

__all__ = ["available", "refuse_what_does_not_fit", "shown"]

# Of what is free, so that training has some too.
SHARE = 0.8


def available() -> int:
    """Bytes that this process may still take: of the machine, its container and its limits."""
    import psutil

    free = [psutil.virtual_memory().available]
    free += [left for left in map(_left, _GROUPS) if left is not None]
    with suppress(ImportError):  # there are no such limits outside of Unix
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            free.append(limit - psutil.Process().memory_info().vms)
    return max(0, int(min(free)))


# Limit, use, and what of the use the kernel would give back: control groups of both versions.
_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def _left(group: tuple[str, str, str]) -> int | None:
    """Bytes that a control group leaves, or None where there is no such group or no limit."""
    limit, used, cache = group
    try:
        left = int(Path(limit).read_text()) - int(Path(used).read_text())
        counts = (Path(used).parent / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    return left + sum(int(line.split()[1]) for line in counts if line.split()[0] == cache)


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
    room = SHARE * available()
    if need <= room:
        return
    share = room / need
    raise TaskError(
        argument,
        f"{name} has about {rows:,} rows and would take about {shown(need)} of memory, where "
        f"{shown(room / SHARE)} are free: about {int(rows * share):,} rows "
        f"({shown(size * share)} of the file) would fit; give a part of the rows or of the columns",
    )
