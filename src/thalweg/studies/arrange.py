"""How the runs of a study are laid out: which train together, and by which passes."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from thalweg.replicas import Backend, Program, probe
from thalweg.studies.arms import level_words
from thalweg.studies.execute import Chunk, chunks
from thalweg.studies.factors import Levels, Variant
from thalweg.studies.sound import sound
from thalweg.studies.spec import Run, StudySpec, factors_of, plan
from thalweg.tasks.trial import first_batch, same_start

__all__ = ["Cuts", "Ready", "Tried", "arranged", "backend_of", "cut", "joined", "tried"]

Cuts = Mapping[Levels, list[list[Run]]]


@dataclass(frozen=True, eq=False)
class Ready:
    """A variant that was tried on a batch.

    Attributes:
        variant: it.
        program: of two replicas, which shows how its passes can run.
        repeats: whether it starts from the same weights under the same seed.
    """

    variant: Variant
    program: Program
    repeats: bool = True


Tried = Mapping[Levels, Ready]


def tried(spec: StudySpec, variants: Mapping[Levels, Variant], device: str) -> dict[Levels, Ready]:
    """All variants of a task, each tried on a batch.

    Raises:
        StudyError: for a model, a loss or a metric that fails, in one sentence.
    """
    found = {}
    # Schedules are nothing to them.
    programs: dict[tuple[str, int], tuple[Program, bool]] = {}
    for levels, variant in variants.items():
        task, size = variant.task, variant.batch_size
        key = task.fingerprint, size
        if key not in programs:
            with sound(task, level_words(spec, levels)):
                first_batch(task, size)  # says where in a person's file something is wrong
                program = probe(task, size, device, len(spec.seeds) == 1)
                programs[key] = program, same_start(task)
        found[levels] = Ready(variant, *programs[key])
    return found


def cut(spec: StudySpec, ready: Tried, device: str) -> dict[Levels, list[list[Run]]]:
    """The runs of each variant in chunks; chunks never mix variants."""
    runs = plan(spec)
    return {
        levels: chunks(
            [run for run in runs if run.levels == levels],
            one.variant.task.parameters,
            one.program.backend,
            workers=torch.get_num_threads() if _together(one, device) else 1,
        )
        for levels, one in ready.items()
    }


def arranged(
    spec: StudySpec,
    cuts: Cuts,
    ready: Tried,
    backends: Mapping[Levels, Backend],
    device: str,
) -> list[Chunk]:
    """All chunks of a study, as `execute` takes them."""
    return [
        Chunk(
            runs,
            one.variant.task,
            spec.budget(levels),
            factors_of(one.variant, spec.budget(levels)),
            backends[levels],
            _together(one, device) and backends[levels] == "eager",
        )
        for levels, one in ready.items()
        for runs in cuts[levels]
    ]


def _together(one: Ready, device: str) -> bool:
    return one.program.concurrent and device == "cpu"


def joined(backends: Mapping[Levels, Backend]) -> str:
    """Backends of all variants in one word, or in one each, as they are put on record."""
    words = list(backends.values())
    return words[0] if len(set(words)) == 1 else ",".join(words)


def backend_of(record: str, place: int) -> Backend:
    """The inverse of `joined` for one variant, by its place."""
    words = record.split(",")
    found = words[place] if len(words) > 1 else words[0]
    return "one by one" if found == "one by one" else "compiled" if found == "compiled" else "eager"
