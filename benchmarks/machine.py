"""The machine that was measured on, and whether it did other work meanwhile."""

import os
import platform
import resource
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter

import torch


def machine() -> str:
    """Processor, memory, versions and date."""
    name = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        name = lines[0].split(":")[1].strip() if lines else name
    packages = []
    for package in ("torch", "numba", "jax", "optax"):
        try:
            packages.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB; {torch.get_num_threads()} threads; "
        f"Python {platform.python_version()}, {', '.join(packages)}; {date.today()}"
    )


class Others:
    """How much of the processor others use, from now on.

    It matters: torch's threads wait for one another, so that a busy core slows the plain loop
    several times and the study much less, and ratios come out too good.
    """

    def __init__(self) -> None:
        self._start = perf_counter()
        self._busy, self._own = _busy(), _own()

    def share(self) -> float | None:
        """Of all cores, 0 to 1; None where the system does not tell."""
        busy = _busy()
        if busy is None or self._busy is None:
            return None
        used = busy - self._busy - (_own() - self._own)
        return max(0.0, used / ((perf_counter() - self._start) * (os.cpu_count() or 1)))


def _busy() -> float | None:
    """Seconds that all cores have worked, or that a host took from them, since the start."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(
        int, stat.read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    """Seconds that this process and its ended children have worked."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in usages)
