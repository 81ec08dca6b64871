"""Networks by the shape of their inputs: factories for `thalweg.tasks.Task`.

Each function checks its arguments at once and gives a function that makes a fresh module, under
whatever seed is set when it is called.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from thalweg.tasks.split import TaskError

__all__ = ["cnn", "mlp", "resnet"]


def mlp(*widths: int) -> Callable[[], nn.Module]:
    """Linear layers with ReLU between them.

    Args:
        widths: of the inputs, of each hidden layer and of the outputs.

    Raises:
        TaskError: for fewer than two widths, or one below 1.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise TaskError(
            "model", f"an mlp needs widths of inputs and outputs, 1 or more each, got {widths}"
        )
    return partial(_mlp, widths)


def _mlp(widths: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(widths)):
        layers += [nn.ReLU()] if i else []
        layers += [nn.Linear(before, after)]
    return nn.Sequential(*layers)


def cnn(shape: tuple[int, int, int], classes: int) -> Callable[[], nn.Module]:
    """A small convolutional network: twice convolution, ReLU and pooling, then two linear layers.

    The layout of LeNet-5 (LeCun et al. 1998, https://doi.org/10.1109/5.726791) with ReLU and
    maximum pooling, 16 and 32 channels of 3x3 and 64 hidden units.

    Args:
        shape: of an image: channels, height, width.
        classes: how many outputs.

    Raises:
        TaskError: for images below 4x4, or no classes.
    """
    _check(shape, classes, least=4)
    return partial(_cnn, shape, classes)


def _cnn(shape: tuple[int, int, int], classes: int) -> nn.Module:
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def resnet(
    shape: tuple[int, int, int], classes: int, depth: int = 8, width: int = 16
) -> Callable[[], nn.Module]:
    """A residual network for small images, as it was made for CIFAR-10.

    He et al. 2016, section 4.2 (https://arxiv.org/abs/1512.03385): a convolution of 3x3, three
    stages of ``n`` blocks of two such convolutions with 16, 32 and 64 channels, each with batch
    normalisation, the first convolution of a later stage with stride 2, then the mean over all
    places and one linear layer. Shortcuts have no parameters (option A): they leave out every
    second row and column, and are zero in the new channels. Initial weights are He et al.'s.

    Args:
        shape: of an image: channels, height, width.
        classes: how many outputs.
        depth: layers with weights, ``6 n + 2``: 8, 14, 20 and so on.
        width: channels of the first stage.

    Raises:
        TaskError: for another depth, images below 4x4, or no classes.
    """
    _check(shape, classes, least=4)
    if depth < 8 or depth % 6 != 2:
        raise TaskError("depth", f"must be 6 n + 2, so 8, 14, 20 and so on, got {depth}")
    if width < 1:
        raise TaskError("width", f"must be 1 or more, got {width}")
    return partial(_ResNet, shape[0], classes, (depth - 2) // 6, width)


def _check(shape: tuple[int, int, int], classes: int, least: int) -> None:
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < least:
        raise TaskError(
            "shape",
            f"must be (channels, height, width) of images of at least {least}x{least}, got {shape}",
        )
    if classes < 1:
        raise TaskError("classes", f"must be 1 or more, got {classes}")


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(after)
        self.stride, self.more = stride, after - before

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.first_norm(self.first(x)))
        inner = self.second_norm(self.second(inner))
        short = x[..., :: self.stride, :: self.stride] if self.stride > 1 else x
        if self.more:
            short = functional.pad(short, (0, 0, 0, 0, 0, self.more))
        return functional.relu(inner + short)


class _ResNet(nn.Module):
    def __init__(self, channels: int, classes: int, blocks: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        widths = [width] * (blocks + 1) + [2 * width] * blocks + [4 * width] * blocks
        self.blocks = nn.Sequential(
            *(_Block(a, b, 1 if a == b else 2) for a, b in pairwise(widths))
        )
        self.last = nn.Linear(4 * width, classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        found = self.blocks(functional.relu(self.norm(self.first(x))))
        answer: Tensor = self.last(torch.mean(found, (-2, -1)))
        return answer
