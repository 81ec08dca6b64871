"""A profile as tables, and as a page."""

from math import isfinite

import plotly.graph_objects as go
from markupsafe import Markup

from thalweg.figures import profile as figures
from thalweg.figures.html import listed, page, table
from thalweg.numbers import duration, number, scaled
from thalweg.tasks.memory import shown
from thalweg.train.profile import Profile

__all__ = ["SECTIONS", "notes_of", "profile_html", "rows_of", "setting_of"]

MARKS = "*†‡"  # of what else changes besides time
LONG = 0.1  # seconds, from which what a change takes once is told

SECTIONS = {
    "time": ("a step", "time", "share", "with Python"),
    "memory": ("memory", "bytes", "share"),
    "reached": ("reached", "FLOP/s", "of machine", "bytes/s", "of machine"),
    "changes": ("change", "gain", "interval", "samples/s", "once"),
}

HEADINGS = {
    "time": "Where a step's time goes",
    "memory": "What lies in memory",
    "reached": "What is reached of what this machine reaches",
    "changes": "What was tried",
}
CAPTIONS = {
    "changes": "Each was trained in turns with the training as it is set, right there; intervals "
    "are by the order of the turns. What it takes once, to compile say, is apart.",
}


def setting_of(profile: Profile) -> str:
    """How it is trained, in a line."""
    p = profile
    threads = f", {p.threads} thread{'s' * (p.threads != 1)}" if p.device == "cpu" else ""
    return (
        f"{p.optimizer} at a learning rate of {number(p.lr)}, batches of {p.batch_size:,}, "
        f"{p.precision}, on {p.device}{threads}"
    )


def rows_of(profile: Profile, section: str) -> list[list[str]]:
    """The table of one of `SECTIONS` in words."""
    found: list[list[str]] = {
        "time": _time, "memory": _memory, "reached": _reached, "changes": _changes
    }[section](profile)  # fmt: skip
    return found


def _time(profile: Profile) -> list[list[str]]:
    spans, python = profile.stages.spans, profile.stages.python
    rows = [
        [
            "Python overhead" if row.part == "python" else row.part,
            duration(row.seconds),
            _share(row.share),
            duration(spans[row.part]) if row.part in python else "",
        ]
        for row in profile.parts.itertuples()
    ]
    return [*rows, ["whole step", duration(profile.stages.step), _share(1.0), ""]]


def _memory(profile: Profile) -> list[list[str]]:
    rows = [[row.kind, shown(row.bytes), _share(row.share)] for row in profile.kinds.itertuples()]
    return [*rows, ["in all", shown(profile.memory.total), _share(1.0)]]


def _reached(profile: Profile) -> list[list[str]]:
    machine = profile.machine
    rows = [
        [
            row.part,
            scaled(row.flops_per_second, "FLOP/s") if isfinite(row.flops) else "–",
            _share(row.of_flops) if isfinite(row.flops) else "–",
            scaled(row.bytes_per_second, "B/s"),
            _share(row.of_bytes),
        ]
        for row in profile.reached.itertuples()
    ]
    most = [scaled(machine.flops, "FLOP/s"), _share(1.0), scaled(machine.bytes, "B/s"), _share(1.0)]
    return [*rows, ["this machine", *most]]


def _share(share: float) -> str:
    return f"{share:.1%}" if share < 0.0995 else f"{share:.0%}"


def _cautions(profile: Profile) -> dict[str, str]:
    """A mark for each of them."""
    every = (c for text in profile.changes["caution"] for c in text.split("; ") if c)
    return dict(zip(dict.fromkeys(every), MARKS, strict=False))


def _changes(profile: Profile) -> list[list[str]]:
    marks = _cautions(profile)
    return [
        [
            row.change + "".join(marks[c] for c in row.caution.split("; ") if c),
            *_gain(row.verdict, row.gain, row.low, row.high),
            f"{row.samples_per_second:,.0f}" if isfinite(row.gain) else "–",
            duration(row.once) if row.once >= LONG else "",
        ]
        for row in profile.changes.itertuples()
    ]


def _gain(verdict: str, gain: float, low: float, high: float) -> tuple[str, str]:
    if not isfinite(gain):
        return verdict, "–"
    ends = f"{_signed(low)} to {_signed(high)}"
    return "none" if verdict == "none" else _signed(gain), ends


def _signed(gain: float) -> str:
    return f"{gain:+.0%}".replace("-", "−")


def notes_of(profile: Profile, section: str) -> list[str]:
    """What a careful reader of a section has to know, a sentence each."""
    p = profile
    if section == "time":
        left = f"{abs(p.stages.remainder):.1%} {'less' if p.stages.remainder > 0 else 'more'}"
        host = (
            "Python overhead is what lies outside of operators in forward, backward and optimizer."
            if p.device == "cpu"
            else "Python overhead is when the GPU has nothing to do in forward, backward and "
            "optimizer, and synchronisation when that is so because it was waited for."
        )
        return [
            f"{host} The whole step was timed without clocks; with them it took {left}, which is "
            f"spread over the parts."
        ]
    if section == "memory":
        return [
            "Activations are what the forward pass saves for the backward pass; what operators "
            "take and give back meanwhile is not counted."
        ]
    if section == "reached":
        said = (
            "Counted are products, convolutions and attention, and each tensor once for every part "
            f"that needs it. This machine reaches what it did in products of {p.machine.rows:,} by "
            f"{p.machine.rows:,} in {p.machine.dtype} and in a = b + 3 c over arrays larger than a "
            f"core's caches, {p.machine.seconds:.1f} s in all."
        )
        above = (p.reached["of_bytes"] > 1).any()
        return [said + (" More bytes than memory gives come from caches." if above else "")]
    table = p.changes
    notes = [f"{mark} {caution}." for caution, mark in _cautions(p).items()]
    untried = table[table["verdict"] == "not tried"]
    notes += [f"{row.change}: {row.reason}." for row in untried.itertuples()]
    return [
        f"None: not for sure more than {p.threshold:.0%} faster or slower, which is by how much "
        f"the present setting differs from itself, or the least that matters.",
        *notes,
    ]


def profile_html(profile: Profile) -> str:
    """The page: advice, time, memory, what is reached, and what was tried."""
    p = profile
    drawn = {
        "time": figures.step(p.parts),
        "memory": figures.memory(p.kinds),
        "reached": figures.reached(p.reached, p.machine.flops, p.machine.bytes),
        "changes": figures.changes(p.changes),
    }
    said = (
        f"{setting_of(p)}: a step takes {duration(p.stages.step)}, "
        f"{p.samples_per_second:,.0f} samples a second."
    )
    parts: list[tuple[str, str, go.Figure | Markup]] = [("", "", listed([said]))]
    for section, heads in SECTIONS.items():
        parts += [
            (HEADINGS[section], CAPTIONS.get(section, ""), drawn[section]),
            ("", "", table(heads, rows_of(p, section)) + listed(notes_of(p, section))),
        ]
    return page(f"Profile of {p.task}", p.advice, parts)
