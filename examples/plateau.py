r"""A bad start: squared error on softmax stays on a plateau where cross-entropy does not.

A network for handwritten digits begins in the firm belief that every image shows a zero: the bias
of that output is 15, so that the softmax gives all other classes together 3 in a million. Nine
images in ten are not zeros.

The gradient of the cross-entropy with respect to a logit is ``p - y``, about 1 where the network is
wrong. That of the squared error is multiplied by the softmax's derivative, ``p (1 - p)``, and so by
3 in a million however wrong the network is. Plain gradient descent creeps; a learning rate large
enough to leave within the budget is far too large once the plateau ends, and throws the weights
onto another one, of some other class, for good (seen from 3000 on; with 1000 after 2000 steps).
Adam divides by the gradient's own size, and leaves.

    thalweg study examples/plateau.py:task --losses cross_entropy,mse --optimizers sgd,adam \
        --batch-size 1077

The batch is the whole training set, so that ``sgd`` is gradient descent without noise.

Measured over 5 seeds, 300 steps, learning rate chosen on validation data among 19 from 1e-3 to 1e6
for ``sgd`` and 7 from 1e-4 to 0.1 for ``adam``; test accuracy with its 95 % interval over seeds
(Student's t); the norm of the gradient is that of all parameters at the start:

    start            loss            norm              sgd                      adam
    task             cross-entropy   1.4 to 1.6        0.966 +- 0.007           0.955 +- 0.010
                     squared error   8e-7 to 1.1e-6    0.10 at all 19 rates     0.964 +- 0.004
    large_weights    cross-entropy   9 to 14           0.962 +- 0.010           0.961 +- 0.005
                     squared error   0.17 to 0.30      0.959 +- 0.011           0.951 +- 0.012

So the plateau is real where every image sits on the flat of the softmax, and not at every bad
start: from large random weights the network is as wrong and, with 0.6 on average for the class that
it takes, nearly as sure, but images near a border between two classes have gradients, which the
large weights enlarge. There squared error only needs another learning rate, 10 instead of 0.3; at
0.01 it reaches 0.42 where cross-entropy reaches 0.95. With weights 100 and 300 times the usual its
best accuracy falls to 0.95 and 0.86, and that of cross-entropy to 0.94 and 0.91.

A bias of 10 is left with learning rates of 10 to 30. With one of 20 the gradient, 2e-9, is less
than Adam's ``eps`` of 1e-8, and Adam too leaves late or not at all.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from thalweg import Task
from thalweg.tasks import load
from thalweg.tasks.networks import mlp

BIAS = 15.0
SCALE = 30.0
_WIDTHS = 64, 64, 64, 10


def _model(bias: float, scale: float) -> nn.Module:
    model = mlp(*_WIDTHS)()
    last = list(model.children())[-1]
    with torch.no_grad():
        last.weight.mul_(scale)
        last.bias[0] += bias
    return model


def _start(name: str, title: str, bias: float = 0.0, scale: float = 1.0) -> Task:
    digits = load("digits")
    return replace(
        digits,
        model=partial(_model, bias, scale),
        name=name,
        title=title,
        batch_size=len(digits.train),
    )


def task() -> Task:
    """Digits, from the belief that each is a zero; other weights as usual, by the seed."""
    return _start("plateau", "handwritten digits, all taken for zeros at the start", bias=BIAS)


def large_weights() -> Task:
    """Digits, from last weights 30 times the usual: sure of another class for each image."""
    return _start("large_weights", "handwritten digits, from large weights", scale=SCALE)
