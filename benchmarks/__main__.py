"""``python -m benchmarks [part ...] [--write]``: measure and print the tables."""

import argparse
import os
import platform
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.measure import Row, table

RESULTS = Path(__file__).with_name("RESULTS.md")


def _study() -> list[Row]:
    from benchmarks.study import studies

    return studies()


def _jax() -> list[Row]:
    from benchmarks.against_jax import jax_rows

    return jax_rows()


def _step() -> list[Row]:
    from benchmarks.step import steps

    return steps()


def _bandwidth() -> list[Row]:
    from benchmarks.step import bandwidth

    return bandwidth()


PARTS: dict[str, tuple[str, str, str, Callable[[], list[Row]]]] = {
    "study": ("`thalweg study digits` against a plain PyTorch loop", "study", "loop", _study),
    "jax": ("Replicas against JAX with optax, `jit(vmap(scan))`", "thalweg", "JAX", _jax),
    "step": ("One optimizer step against torch.optim", "thalweg", "torch's fastest", _step),
    "bandwidth": ("Memory moved by a step on 30 M parameters", "step", "plain copy", _bandwidth),
}


def _machine() -> str:
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} too")
    asked = parser.parse_args()
    unknown = [p for p in asked.parts if p not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    texts = [
        "# Results",
        f"Machine: {_machine()}.",
        "Every ratio is of two things measured in the same process run, alternating; times are "
        "medians. A ratio above 1 means that Thalweg is faster. `benchmarks/README.md` says what "
        "the rows are; `python -m benchmarks --write` makes this page.",
    ]
    print(texts[1])
    for part in asked.parts or PARTS:
        title, ours, theirs, measure = PARTS[part]
        text = f"## {title}\n\n{table(measure(), ours, theirs)}"
        print(f"\n{text}", flush=True)
        texts.append(text)
    if asked.write:
        RESULTS.write_text("\n\n".join(texts) + "\n", encoding="utf-8")


main()
