"""The sets of tensors that an optimizer's step is measured on."""

from itertools import pairwise

Shapes = list[tuple[int, ...]]


def _mlp() -> Shapes:
    return [s for a, b in pairwise((64, 64, 64, 10)) for s in ((b, a), (b,))]


def _resnet18() -> Shapes:
    """The 62 parameters of He et al. (2016), table 1, 18 layers, as torchvision lays them out."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    before = 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            first = before if block == 0 else width
            shapes += [(width, first, 3, 3), (width,), (width,)]
            shapes += [(width, width, 3, 3), (width,), (width,)]
            if first != width:
                shapes += [(width, first, 1, 1), (width,), (width,)]
        before = width
    return [*shapes, (1000, 512), (1000,)]


def transformer(width: int = 512, layers: int = 8, words: int = 9600) -> Shapes:
    """A decoder as in GPT-2, with tied embeddings: 30.4 M parameters."""
    shapes: Shapes = [(words, width), (512, width)]
    for _ in range(layers):
        shapes += [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)]
        shapes += [
            (width,),
            (width,),
            (4 * width, width),
            (4 * width,),
            (width, 4 * width),
            (width,),
        ]
    return [*shapes, (width,), (width,)]


SETS: dict[str, Shapes] = {
    "MLP 64-64-64-10 (6 tensors)": _mlp(),
    "1,000 of 32x32": [(32, 32)] * 1000,
    "ResNet-18 (62 tensors)": _resnet18(),
    "transformer (30 M)": transformer(),
}
