"""The same optimizers elsewhere: torch.optim, pytorch_optimizer, optax."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Step = Callable[[], object]
LR = 1e-3


@dataclass(frozen=True)
class Peers:
    """Where else an optimizer is.

    Attributes:
        torch: class and arguments in torch.optim, or None.
        fused: whether that is fused on the CPU.
        other: class in pytorch_optimizer and its arguments, or None.
        optax: what makes optax's transformation, or None.
    """

    torch: tuple[str, dict[str, Any]] | None = None
    fused: bool = False
    other: tuple[str, dict[str, Any]] | None = None
    optax: Callable[[Any], Any] | None = field(default=None)


PEERS = {
    "sgd": Peers(("SGD", {}), True, None, lambda o: o.sgd(LR)),
    "momentum": Peers(("SGD", {"momentum": 0.9}), True, None, lambda o: o.sgd(LR, 0.9)),
    "nag": Peers(
        ("SGD", {"momentum": 0.9, "nesterov": True}), True, None, lambda o: o.sgd(LR, 0.9, True)
    ),
    "adagrad": Peers(("Adagrad", {}), True, None, lambda o: o.adagrad(LR)),
    "rmsprop": Peers(("RMSprop", {}), False, None, lambda o: o.rmsprop(LR)),
    "adadelta": Peers(("Adadelta", {}), False, None, lambda o: o.adadelta(LR)),
    "adam": Peers(("Adam", {}), True, None, lambda o: o.adam(LR)),
    "rprop": Peers(("Rprop", {}), False, None, lambda o: o.rprop(LR)),
    "asgd": Peers(("ASGD", {})),
    "adamw": Peers(("AdamW", {}), True, None, lambda o: o.adamw(LR)),
    "nadam": Peers(("NAdam", {}), False, None, lambda o: o.nadam(LR)),
    "radam": Peers(("RAdam", {}), False, None, lambda o: o.radam(LR)),
    "adamax": Peers(("Adamax", {}), False, None, lambda o: o.adamax(LR)),
    "adan": Peers(None, False, ("Adan", {}), lambda o: o.adan(LR)),
    "ademamix": Peers(None, False, ("AdEMAMix", {}), lambda o: o.contrib.ademamix(LR)),
    "adopt": Peers(None, False, ("ADOPT", {}), lambda o: o.contrib.adopt(LR)),
    "signum": Peers(None, False, ("SignSGD", {"momentum": 0.9})),
    "tiger": Peers(None, False, ("Tiger", {})),
    "lion": Peers(None, False, ("Lion", {}), lambda o: o.lion(LR)),
    "schedulefreesgd": Peers(None, False, ("ScheduleFreeSGD", {})),
    "schedulefreeadamw": Peers(None, False, ("ScheduleFreeAdamW", {})),
    "prodigy": Peers(None, False, ("Prodigy", {}), lambda o: o.contrib.prodigy(1.0)),
    "dadaptadam": Peers(None, False, ("DAdaptAdam", {})),
    "lars": Peers(None, False, ("LARS", {}), lambda o: o.lars(LR)),
    "lamb": Peers(None, False, ("Lamb", {}), lambda o: o.lamb(LR)),
    "adafactor": Peers(("Adafactor", {}), False, None, lambda o: o.adafactor(LR)),
    "muon": Peers(("Muon", {}), False, ("Muon", {})),
    "shampoo": Peers(None, False, ("Shampoo", {"preconditioning_compute_steps": 1})),
    "soap": Peers(None, False, ("SOAP", {})),
}


def peers(name: str, parameters: Callable[[], list[torch.nn.Parameter]]) -> dict[str, Step]:
    """Steps of all peers that take parameters of these shapes, by name.

    Args:
        name: in the registry.
        parameters: makes fresh ones, with gradients.
    """
    found: dict[str, Step] = {}
    row = PEERS[name]
    if row.torch is not None:
        constructor = getattr(torch.optim, row.torch[0])
        matrices = all(p.ndim == 2 for p in parameters())
        if row.torch[0] != "Muon" or matrices:
            ways: dict[str, dict[str, Any]] = {"default": {}, "foreach": {"foreach": True}}
            if row.torch[0] == "Muon":
                ways = {"default": {}}
            if row.fused:
                ways["fused"] = {"fused": True}
            for way, options in ways.items():
                found[way] = constructor(parameters(), lr=LR, **row.torch[1], **options).step
    found |= _pytorch_optimizer(row, parameters)
    found |= _optax(row, parameters)
    return found


def _pytorch_optimizer(
    row: Peers, parameters: Callable[[], list[torch.nn.Parameter]]
) -> dict[str, Step]:
    if row.other is None:
        return {}
    try:
        import pytorch_optimizer
    except ImportError:
        return {}
    made = parameters()
    constructor = getattr(pytorch_optimizer, row.other[0])
    if row.other[0] == "Muon":
        groups = [
            {"params": [p for p in made if p.ndim > 1], "use_muon": True},
            {"params": [p for p in made if p.ndim < 2], "use_muon": False},
        ]
        return {"pytorch_optimizer": constructor([g for g in groups if g["params"]], lr=LR).step}
    optimizer = constructor(made, lr=LR, **row.other[1])
    if hasattr(optimizer, "train"):
        optimizer.train()
    return {"pytorch_optimizer": optimizer.step}


def _optax(row: Peers, parameters: Callable[[], list[torch.nn.Parameter]]) -> dict[str, Step]:
    if row.optax is None:
        return {}
    try:
        import jax
        import optax
    except ImportError:
        return {}
    transformation = row.optax(optax)
    made = parameters()
    x = [jax.numpy.asarray(p.detach().numpy()) for p in made]
    g = [jax.numpy.asarray(p.grad.numpy()) for p in made if p.grad is not None]
    # A state may hold the parameters themselves, and what is given away must not be given twice.
    kept = {"x": x, "state": jax.tree.map(jax.numpy.copy, transformation.init(x))}

    def update(x: Any, g: Any, state: Any) -> Any:
        moves, state = transformation.update(g, state, x)
        return optax.apply_updates(x, moves), state

    compiled = jax.jit(update, donate_argnums=(0, 2))

    def step() -> None:
        kept["x"], kept["state"] = compiled(kept["x"], g, kept["state"])
        jax.block_until_ready(kept["x"])

    return {"optax": step}
