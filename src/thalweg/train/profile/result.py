"""What a profile found."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from thalweg.train.profile.changes import Tried, speed
from thalweg.train.profile.machine import Machine
from thalweg.train.profile.memory import Memory
from thalweg.train.profile.stages import PARTS, Stages
from thalweg.train.profile.work import Work

__all__ = ["Profile"]


@dataclass(frozen=True, eq=False)
class Profile:
    """Where a training's time and memory go, and what would make it faster.

    Attributes:
        task: its title.
        name: its name.
        optimizer: as its class is called, ``torch.optim.`` before torch's.
        lr: learning rate.
        batch_size: samples a step.
        precision: of forward passes.
        device: as torch names it.
        threads: that torch had.
        samples_per_second: that the training takes as it is set.
        stages: where the time of a step goes.
        memory: that a step of a full batch holds.
        work: what forward, backward and optimizer of an average step do at the least.
        machine: what this machine was seen to reach.
        tried: every change, alone.
        together: those that help, at once.
        threshold: from which a gain counts: what the present setting gained over itself,
            or what is too little to matter.
    """

    task: str
    name: str
    optimizer: str
    lr: float
    batch_size: int
    precision: str
    device: str
    threads: int
    samples_per_second: float
    stages: Stages = field(repr=False)
    memory: Memory = field(repr=False)
    work: Mapping[str, Work] = field(repr=False)
    machine: Machine = field(repr=False)
    tried: tuple[Tried, ...] = field(repr=False)
    together: tuple[Tried, ...] = field(repr=False)
    threshold: float

    @property
    def parts(self) -> pd.DataFrame:
        """Where a step's time goes, a row each of data to Python: ``part, seconds, share``."""
        step = self.stages.step
        rows = [(part, t, t / step) for part in PARTS for t in (self.stages.parts[part],)]
        return pd.DataFrame(rows, columns=["part", "seconds", "share"])

    @property
    def kinds(self) -> pd.DataFrame:
        """What lies in memory, a row a kind: ``kind, bytes, share``."""
        total = self.memory.total
        rows = [
            (kind.replace("_", " "), size, size / total) for kind, size in vars(self.memory).items()
        ]
        return pd.DataFrame(rows, columns=["kind", "bytes", "share"])

    @property
    def reached(self) -> pd.DataFrame:
        """How fast each part computes and moves, a row each, the whole step last.

        ``part, seconds, flops, bytes, flops_per_second, bytes_per_second``, and as shares of what
        the machine reaches ``of_flops, of_bytes``; ``possible`` is the most that it could compute a
        second at as many operations a byte, and ``of_possible`` what the part does of that. NaN for
        the optimizer's operations, which are not counted.
        """
        whole = Work(
            sum(w.flops for w in self.work.values()), sum(w.bytes for w in self.work.values())
        )
        spans = {**self.stages.spans, "whole step": self.stages.step}
        rows = []
        for part, work in (*self.work.items(), ("whole step", whole)):
            seconds, flops = spans[part], work.flops or math.nan
            possible = min(self.machine.flops, self.machine.bytes * flops / work.bytes)
            rows.append(
                {
                    "part": part,
                    "seconds": seconds,
                    "flops": flops,
                    "bytes": work.bytes,
                    "flops_per_second": flops / seconds,
                    "bytes_per_second": work.bytes / seconds,
                    "of_flops": flops / seconds / self.machine.flops,
                    "of_bytes": work.bytes / seconds / self.machine.bytes,
                    "possible": possible if work.flops else math.nan,
                    "of_possible": flops / seconds / possible if work.flops else math.nan,
                }
            )
        return pd.DataFrame(rows)

    @property
    def changes(self) -> pd.DataFrame:
        """What was tried, best first, a row each; what could not be tried last.

        ``change, kind, gain, low, high, samples_per_second, once, verdict, caution, reason``: gains
        as shares of samples a second, which are those of the present setting times as much, with
        NaN where there is none; ``verdict`` is "faster",
        "slower", "none" or "not tried".
        """
        rows = []
        for one in (*self.tried, *self.together):
            g = one.gain
            rows.append(
                {
                    "change": one.change.words,
                    "kind": one.change.kind,
                    "gain": g.gain if g else math.nan,
                    "low": g.low if g else math.nan,
                    "high": g.high if g else math.nan,
                    "samples_per_second": self.samples_per_second * (1 + g.gain) if g else math.nan,
                    "once": one.once,
                    "verdict": one.verdict(self.threshold),
                    "caution": one.change.caution,
                    "reason": one.reason,
                }
            )
        return pd.DataFrame(rows).sort_values("gain", ascending=False, ignore_index=True)

    @property
    def advice(self) -> str:
        """One sentence."""
        helping = [
            one for one in (*self.tried, *self.together) if one.verdict(self.threshold) == "faster"
        ]
        same = max((t for t in helping if not t.change.caution), key=speed, default=None)
        other = max(helping, key=speed, default=None)
        if other is None:
            part = self.parts.sort_values("share").iloc[-1]
            of = "Python between operators" if part["part"] == "python" else part["part"]
            return (
                f"Nothing that was tried makes this training faster for sure by more than "
                f"{self.threshold:.0%}; most of a step, {part['share']:.0%}, is {of}."
            )
        if same is None:
            return (
                f"Nothing that was tried makes it faster and leaves the training as it is; "
                f"{_with(other)}, but {other.change.caution}."
            )
        said = f"{_with(same, 'With')}, and nothing else changes"
        if same.once >= 1:
            said += f", once it has taken {same.once:.0f} s to compile"
        if other is same:
            return f"{said}."
        return f"{said}; {_with(other)}, but {other.change.caution}."

    def to_html(self) -> str:
        """One page with figures and tables."""
        from thalweg.report.profile import profile_html

        return profile_html(self)

    def plain(self) -> dict[str, Any]:
        """As JSON has it; numbers that there are not as null."""
        simple = ("task", "name", "optimizer", "lr", "batch_size", "precision", "device", "threads")
        return {
            **{name: getattr(self, name) for name in simple},
            "samples_per_second": self.samples_per_second,
            "step_seconds": self.stages.step,
            "stages": self.stages.parts,
            "spans": self.stages.spans,
            "python": self.stages.python,
            "remainder": self.stages.remainder,
            "memory": asdict(self.memory),
            "reached": _known(self.reached),
            "machine": asdict(self.machine),
            "threshold": self.threshold,
            "changes": _known(self.changes),
            "advice": self.advice,
        }


def _with(one: Tried, first: str = "with") -> str:
    assert one.gain is not None
    times = f"{1 + one.gain.gain:.3g}"
    return f"{first} {one.change.words} it gets through {times} times as many samples a second"


def _known(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.to_dict("records")
    return [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in rows
    ]
