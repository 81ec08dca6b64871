"""One optimizer step on CUDA against torch.optim's fused and foreach ones.

Gradients are given. Every way ends where a step in float64 does, or nothing is reported.
"""

from collections.abc import Callable
from statistics import median

import torch

from benchmarks.measure import Row, report, shown
from benchmarks.sets import SETS, Shapes, transformer
from benchmarks.step import LR
from thalweg import optim

Step = Callable[[], object]
Constructor = Callable[..., torch.optim.Optimizer]

GPU_SETS: dict[str, Shapes] = {
    **{name: SETS[name] for name in ("ResNet-18 (62 tensors)", "transformer (30 M)")},
    "transformer (350 M)": transformer(1024, 24, 48000),
}
# Ours, torch's, and the arguments of both.
PAIRS: dict[str, tuple[Constructor, Constructor, dict[str, float]]] = {
    "Momentum": (optim.SGD, torch.optim.SGD, {"momentum": 0.9}),
    "Adam": (optim.Adam, torch.optim.Adam, {}),
    "AdamW": (optim.AdamW, torch.optim.AdamW, {}),
}
ROUNDS, STEPS = 7, 20
CHECKED = 3  # steps that are compared with float64
TOLERANCE = 1e-5  # of ‖x - x64‖ / ‖x64‖: float32 rounds 6e-8 a step
NOTHING = "Nothing was measured here: this machine has no CUDA device."


def gpu() -> list[Row]:
    """Each optimizer and set: ours compiled, by multi-tensor operations and in a CUDA graph.

    Against torch's fused step, and its foreach one; our graph against torch's fused in a graph.
    """
    if not torch.cuda.is_available():
        return []
    rows = []
    for set_name, shapes in GPU_SETS.items():
        for name in PAIRS:
            label = f"{name}, {set_name}"
            report(label)
            found = {}
            # One at a time, so that memory holds the largest set.
            for way, (options, graph) in _ways(name).items():
                found[way] = _measured(name, shapes, way.startswith("ours"), options, graph)
                torch.cuda.empty_cache()
            for ours, theirs, goal in (
                ("ours, compiled", "torch's fused", "≥ 1"),
                ("ours, compiled", "torch's foreach", "≥ 1"),
                ("ours, lists", "torch's foreach", ""),
                ("ours, graph", "torch's graph of fused", "≥ 1"),
            ):
                a, b = found[ours], found[theirs]
                what = f"{label}, {ours.removeprefix('ours, ')}"
                rows.append(Row(what, shown(a), f"{shown(b)} ({theirs})", b / a, goal))
    return rows


def _ways(name: str) -> dict[str, tuple[dict[str, bool], bool]]:
    """Arguments of the constructor, and whether the step is replayed from a graph."""
    capturable = {} if name == "Momentum" else {"capturable": True}  # torch's SGD needs none
    return {
        "ours, compiled": ({}, False),
        "ours, lists": ({"foreach": True}, False),
        "ours, graph": ({"capturable": True}, True),
        "torch's fused": ({"fused": True}, False),
        "torch's foreach": ({"foreach": True}, False),
        "torch's graph of fused": ({"fused": True, **capturable}, True),
    }


def _parameters(shapes: Shapes, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    generator = torch.Generator("cuda").manual_seed(0)

    def drawn(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda").to(dtype)

    made = [torch.nn.Parameter(drawn(s)) for s in shapes]
    for p in made:
        p.grad = drawn(tuple(p.shape))
    return made


def _measured(
    name: str, shapes: Shapes, ours: bool, options: dict[str, bool], graph: bool
) -> float:
    """Median seconds of a step.

    Raises:
        ArithmeticError: if it ends elsewhere than a step in float64.
    """
    own, peer, arguments = PAIRS[name]
    parameters = _parameters(shapes, torch.float32)
    made = (own if ours else peer)(parameters, lr=LR, **arguments, **options)
    for _ in range(CHECKED):
        made.step()
    _check(name, shapes, parameters, CHECKED)
    step: Step = made.step
    if graph:
        step = _captured(made)
        step()  # one more than the steps before it
        _check(name, shapes, parameters, CHECKED + 1)
    for _ in range(3):
        step()
    times = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(STEPS):
            step()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / STEPS / 1e3)
    return median(times)


def _captured(optimizer: torch.optim.Optimizer) -> Step:
    """A step as a CUDA graph; its optimizer has taken steps before, and takes none here."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph.replay


def _check(name: str, shapes: Shapes, found: list[torch.nn.Parameter], steps: int) -> None:
    _, peer, arguments = PAIRS[name]
    exact = _parameters(shapes, torch.float64)
    optimizer = peer(exact, lr=LR, **arguments)
    for _ in range(steps):
        optimizer.step()
    for a, b in zip(found, exact, strict=True):
        error = float((a.double() - b).norm() / b.norm())
        if not error < TOLERANCE:
            raise ArithmeticError(f"{name}: off by {error:.2g} of the step in float64")
