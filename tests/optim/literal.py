"""The conventions that torch.optim lacks, written out by hand from their sources.

Each function takes parameter, gradient, memory (a dict of its own), the step from 1 and the
arguments, and returns the new parameter.
"""

from math import sqrt

import torch

from tests.optim.papers import JOINT, NAMES


def momentum(x, g, s, t, *, lr, form="torch", weight_decay=0.0, **_):
    if form == "ewma":  # with bias_correction
        s["v"] = 0.9 * s.get("v", 0.0) + 0.1 * g
        return x - lr * s["v"] / (1 - 0.9**t)
    s["v"] = 0.9 * s.get("v", 0.0) + g
    return x - lr * weight_decay * x - lr * s["v"]


def nag(x, g, s, t, *, lr, form="torch", weight_decay=0.0, **_):
    if form == "lookahead":  # g was taken at ahead(x)
        s["v"] = 0.9 * s.get("v", 0.0) - lr * g
        return x + s["v"]
    s["v"] = 0.9 * s.get("v", 0.0) + g
    return x - lr * weight_decay * x - lr * (g + 0.9 * s["v"])


def adagrad(x, g, s, t, *, lr, eps=1e-10, initial_accumulator_value=0.0, weight_decay=0.0, **_):
    s["r"] = s.get("r", initial_accumulator_value) + g**2
    if weight_decay:
        return x - lr * weight_decay * x - lr * g / (torch.sqrt(s["r"]) + eps)
    return x - lr * g / torch.sqrt(s["r"] + eps)


def rmsprop(
    x,
    g,
    s,
    t,
    *,
    lr,
    alpha=0.99,
    eps=1e-8,
    momentum=0.0,
    centered=False,
    eps_in_sqrt=False,
    initial_accumulator_value=0.0,
    weight_decay=0.0,
    decoupled_weight_decay=False,
):
    s["r"] = alpha * s.get("r", initial_accumulator_value) + (1 - alpha) * g**2
    s["m"] = alpha * s.get("m", 0.0) + (1 - alpha) * g
    under = s["r"] - s["m"] ** 2 if centered else s["r"]
    root = torch.sqrt(under + eps) if eps_in_sqrt else torch.sqrt(under) + eps
    s["v"] = momentum * s.get("v", 0.0) + g / root
    return x - lr * weight_decay * x - lr * s["v"]


def adadelta(x, g, s, t, *, lr, weight_decay, decoupled_weight_decay):
    s["r"] = 0.9 * s.get("r", 0.0) + 0.1 * g**2
    d = s.get("d", torch.zeros_like(x))
    u = torch.sqrt(d + 1e-6) / torch.sqrt(s["r"] + 1e-6) * g
    s["d"] = 0.9 * d + 0.1 * u**2
    return x - lr * weight_decay * x - lr * u


def adam(x, g, s, t, *, lr, eps_hat=False, eps_root=0.0):
    s["m"] = 0.9 * s.get("m", 0.0) + 0.1 * g
    s["s"] = 0.999 * s.get("s", 0.0) + 0.001 * g**2
    if eps_hat:
        rate = lr * sqrt(1 - 0.999**t) / (1 - 0.9**t)
        return x - rate * s["m"] / (torch.sqrt(s["s"]) + 1e-8)
    return x - lr * (s["m"] / (1 - 0.9**t)) / (
        torch.sqrt(s["s"] / (1 - 0.999**t) + eps_root) + 1e-8
    )


def muon(x, g, s, t, *, lr, weight_decay=0.1, **arguments):
    if x.dim() == 2:
        del arguments["ns_dtype"]
        return NAMES["Muon"](x, g, s, t, lr=lr, weight_decay=weight_decay, **arguments)
    return NAMES["AdamW"](
        x, g, s, t, lr=lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=weight_decay
    )


FORMULAS = NAMES | {
    "Momentum": momentum,
    "NAG": nag,
    "Adagrad": adagrad,
    "RMSprop": rmsprop,
    "Adadelta": adadelta,
    "Adam": adam,
    "Muon": muon,
}


class Literal:
    """Steps a model by one of the formulas above."""

    def __init__(self, name, model, arguments):
        self.joint = JOINT.get(name)
        self.formula, self.arguments = FORMULAS.get(name), arguments
        self.parameters = list(model.parameters())
        self.memory = [{} for _ in self.parameters]
        self.t = 0

    def zero_grad(self):
        for p in self.parameters:
            p.grad = None

    def step(self, closure):
        self.t += 1
        here = [p.detach().clone() for p in self.parameters]
        if self.arguments.get("form") == "lookahead":
            for p, memory in zip(self.parameters, self.memory, strict=True):
                p.data = p.data + 0.9 * memory.get("v", 0.0)
        closure()
        if self.joint:
            gradients = [p.grad for p in self.parameters]
            found = self.joint(here, gradients, self.memory[0], self.t, **self.arguments)
            for p, new in zip(self.parameters, found, strict=True):
                p.data = new
            return
        for p, x, memory in zip(self.parameters, here, self.memory, strict=True):
            p.data = self.formula(x, p.grad, memory, self.t, **self.arguments)
