"""``python -m benchmarks [part ...] [--write]``: measure and print the tables."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import Others, machine
from benchmarks.measure import Row, table

RESULTS = Path(__file__).with_name("RESULTS.md")
QUIET = 0.05  # share of the processor that others may use

INTRODUCTION = """# Results

Every ratio is of two things measured in the same process run, alternating; times are medians. A
ratio above 1 means that Thalweg is faster. `benchmarks/README.md` says what the rows are."""


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
    from benchmarks.bandwidth import bandwidth

    return bandwidth()


def _memory() -> list[Row]:
    from benchmarks.memory import memory

    return memory()


def _extras() -> list[Row]:
    from benchmarks.extras import extras

    return extras()


def _start() -> list[Row]:
    from benchmarks.start import start

    return start()


def _levels() -> list[Row]:
    from benchmarks.levels import levels

    return levels()


def _tune() -> list[Row]:
    from benchmarks.tune import tune

    return tune()


def _suggestions() -> str:
    from benchmarks.suggestions import suggestions

    return suggestions()


def _functions() -> list[Row]:
    from benchmarks.functions import functions

    return functions()


def _curvature() -> list[Row]:
    from benchmarks.curvature import curvature

    return curvature()


def _landscape() -> list[Row]:
    from benchmarks.landscape import landscape

    return landscape()


def _flow() -> list[Row]:
    from benchmarks.flow import flow

    return flow()


def _diagnosis() -> str:
    from benchmarks.diagnosis import diagnosis

    return diagnosis()


def _engine() -> list[Row]:
    from benchmarks.engine import engine

    return engine()


def _hybrid() -> list[Row]:
    from benchmarks.hybrid import hybrid

    return hybrid()


def _prefetch() -> list[Row]:
    from benchmarks.prefetch import prefetch

    return prefetch()


def _parallel() -> list[Row]:
    from benchmarks.parallel import parallel

    return parallel()


def _gpu() -> list[Row]:
    from benchmarks.gpu import gpu

    return gpu()


# A part whose rows are no ratios makes its own table.
PARTS: dict[str, tuple[str, str, str, Callable[[], list[Row] | str]]] = {
    "study": ("`thalweg study digits` against a plain PyTorch loop", "study", "loop", _study),
    "step": ("One optimizer step against torch.optim", "thalweg", "fastest peer", _step),
    "bandwidth": ("Memory moved by a step on 30 M parameters", "step", "plain copy", _bandwidth),
    "memory": ("Moments in fewer bits on 30 M parameters", "fewer", "float32", _memory),
    "extras": ("Clipping, zeroing and averaging in the step", "one pass", "torch", _extras),
    "start": ("Before the second step", "thalweg", "import of torch", _start),
    "levels": ("A column of 10,000 categories, looked up", "sparse", "dense one-hot", _levels),
    "tune": ("Learning rate and batch size: what asking costs", "ours", "without", _tune),
    "suggestions": ("Suggested learning rates, trained with", "", "", _suggestions),
    "functions": ("Optimizers on a function: all paths together", "ours", "torch", _functions),
    "curvature": ("Products with a network's Hessian", "thalweg", "theirs", _curvature),
    "landscape": ("The loss around a network, together or by points", "ours", "loop", _landscape),
    "flow": ("Watching gradient flow: a training step", "watched", "bare", _flow),
    "diagnosis": ("Trainings that go wrong, and what is said of them", "", "", _diagnosis),
    "engine": ("Training one model", "engine", "otherwise", _engine),
    "hybrid": ("A model compiled whole", "hybridized", "plain", _hybrid),
    "prefetch": ("Batches made in the background", "prefetched", "one after the other", _prefetch),
    "parallel": ("Two ranks, and independent work at once", "at once", "in turn", _parallel),
    "gpu": ("One optimizer step on a GPU against torch.optim", "thalweg", "torch", _gpu),
    # Last, because JAX's threads stay.
    "jax": ("Replicas against JAX with optax, `jit(vmap(scan))`", "thalweg", "JAX", _jax),
}


def _section(part: str) -> str:
    """A part's table, with what it was measured by, on what, and in what company."""
    title, ours, theirs, measure = PARTS[part]
    others = Others()
    found = measure()
    if not found:
        from benchmarks.gpu import NOTHING

        return f"## {title}\n\n{NOTHING}"
    body = found if isinstance(found, str) else table(found, ours, theirs)
    share = others.share()
    company = "not known here" if share is None else f"{share:.0%} of it"
    warning = ""
    if share is not None and share > QUIET:
        warning = " **Not a quiet machine: these ratios are not to be quoted.**"
    command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    return (
        f"## {title}\n\n{body}\n\n"
        f"`{command}` on {machine()}. Processor used by others meanwhile: {company}.{warning}"
    )


def _kept() -> dict[str, str]:
    """The sections that the results have, by title."""
    if not RESULTS.exists():
        return {}
    sections = re.split(r"^(?=## )", RESULTS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {s.splitlines()[0].removeprefix("## "): s.strip() for s in sections}


def _write(part: str, section: str) -> None:
    """Replace a part of the results; the others stay as they are."""
    kept = _kept() | {PARTS[part][0]: section}
    sections = [kept[title] for title, *_ in PARTS.values() if title in kept]
    RESULTS.write_text("\n\n".join([INTRODUCTION, *sections]) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument(
        "--write", action="store_true", help=f"replace these parts of {RESULTS.name} too"
    )
    asked = parser.parse_args()
    unknown = [p for p in asked.parts if p not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    for part in asked.parts or PARTS:
        section = _section(part)
        print(f"{section}\n", flush=True)
        if asked.write:
            _write(part, section)


main()
