"""Image data sets from a folder in which they already lie; nothing is downloaded.

The files are read with NumPy, by the layout that torchvision's data sets leave on disk, so that
neither torchvision nor trust in a pickle is needed.
"""

import gzip
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from thalweg.tasks.networks import cnn, mlp, resnet
from thalweg.tasks.split import Split, TaskError
from thalweg.tasks.task import Task

__all__ = ["IMAGES", "images", "read_cifar", "read_idx"]

Bytes: TypeAlias = NDArray[np.uint8]

# As for the other tasks, so that seeds vary initial weights and batches alone.
SPLIT_SEED = 0

CLASSES = 10


@dataclass(frozen=True)
class _DataSet:
    """One of the data sets.

    Attributes:
        title: as reports print it.
        read: ``(folder) -> (images, labels), (images, labels)`` for training and for testing.
    """

    title: str
    read: Callable[[Path], tuple[tuple[Bytes, Bytes], tuple[Bytes, Bytes]]]


def images(
    name: str,
    folder: str | Path,
    network: str | Callable[[], nn.Module] = "cnn",
    *,
    validation: float = 0.1,
) -> Task:
    """A task of MNIST, Fashion-MNIST or CIFAR-10.

    The official test images are the test set; validation images are taken from the official
    training images by class, in an order that never changes. Each channel is standardised with the
    mean and the standard deviation of the remaining training images. Pixels stay bytes until then;
    as float32, which is what the task holds, MNIST and Fashion-MNIST take 220 MB and CIFAR-10
    737 MB (the task's notes say how much).

    Args:
        name: ``mnist``, ``fashion_mnist`` or ``cifar10``.
        folder: what torchvision calls the root: ``MNIST/raw/train-images-idx3-ubyte`` and so on
            (``.gz`` or not), ``FashionMNIST/raw/...``, ``cifar-10-batches-py/data_batch_1`` or
            ``cifar-10-batches-bin/data_batch_1.bin`` lie in it.
        network: ``cnn``, ``resnet`` (ResNet-8) or ``mlp``, as `thalweg.tasks.networks` makes
            them, or a function that makes a module for images ``(batch, channels, height, width)``.
        validation: share of the training images.

    Raises:
        TaskError: for a file that is missing, cut short or something else, naming it, or an
            argument that cannot be used.
    """
    if name not in IMAGES:
        raise TaskError("name", f"there are no images {name!r}; choose from {', '.join(IMAGES)}")
    if not 0 < validation < 1:
        raise TaskError("validation", f"must be a share between 0 and 1, got {validation}")
    if isinstance(network, str) and network not in _NETWORKS:
        raise TaskError(
            "network", f"there is no network {network!r}; choose from {', '.join(_NETWORKS)}"
        )
    (x, y), (x_test, y_test) = IMAGES[name].read(Path(folder))
    chosen, held = _divide(y, validation)
    mean, spread = _moments(x[chosen])
    train = _split(x[chosen], y[chosen], mean, spread)
    held_out = _split(x[held], y[held], mean, spread)
    test = _split(x_test, y_test, mean, spread)
    shape = x.shape[1], x.shape[2], x.shape[3]
    size = sum(t.nbytes for part in (train, held_out, test) for t in part.tensors)
    return Task(
        model=_NETWORKS[network](shape) if isinstance(network, str) else network,
        train=train,
        validation=held_out,
        test=test,
        loss="cross_entropy",
        metric="accuracy",
        name=name,
        title=IMAGES[name].title,
        notes=(
            f"{len(held)} of {len(y)} training images, by class, are kept for validation.",
            "Each channel is standardised with mean and standard deviation of the training images.",
            f"The images take {size / 1e6:.0f} MB of memory, as float32.",
        ),
    )


def _flattened(inner: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), inner())


_NETWORKS: dict[str, Callable[[tuple[int, int, int]], Callable[[], nn.Module]]] = {
    "cnn": lambda shape: cnn(shape, CLASSES),
    "resnet": lambda shape: resnet(shape, CLASSES),
    "mlp": lambda shape: partial(_flattened, mlp(prod(shape), 128, CLASSES)),
}


def _divide(y: Bytes, validation: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    from sklearn.model_selection import train_test_split

    try:
        kept, held = train_test_split(
            np.arange(len(y)), test_size=validation, random_state=SPLIT_SEED, stratify=y
        )
    except ValueError as error:
        raise TaskError(
            "validation", f"{validation} of {len(y)} images cannot be taken by class: {error}"
        ) from None
    return kept, held


def _moments(x: Bytes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each channel."""
    # Of 256 values it is enough to know how often each occurs, which needs no copy as floats.
    counts = np.stack([np.bincount(x[:, c].ravel(), minlength=256) for c in range(x.shape[1])])
    shares, values = counts / counts.sum(1, keepdims=True), np.arange(256.0)
    mean = shares @ values
    spread = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(1))
    return mean, np.where(spread > 0, spread, 1.0)


def _split(x: Bytes, y: Bytes, mean: NDArray[np.float64], spread: NDArray[np.float64]) -> Split:
    def each(values: NDArray[np.float64]) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1)

    # Arrays that lie in what was read from a file cannot be written to, which torch warns about.
    x, y = (np.require(a, requirements=["C", "W"]) for a in (x, y))
    pixels = torch.from_numpy(x).to(torch.float32).sub_(each(mean)).div_(each(spread))
    return Split(pixels, torch.from_numpy(y).to(torch.int64))


# The formats.


def _first(folder: Path, *names: str) -> Path:
    """The first of some files that is there."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    others = f" (nor {', '.join(names[1:])})" if names[1:] else ""
    raise TaskError(
        "folder",
        f"there is no file {folder / names[0]}{others}; nothing is downloaded, so give the folder "
        f"that torchvision wrote the data set to, as its root",
    )


def _contents(path: Path) -> bytes:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return file.read()
        return path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError("folder", f"{path} cannot be read: {error}") from error


def read_idx(path: str | Path, dimensions: int) -> Bytes:
    """An array of bytes from a file in the format of MNIST, gzipped where it ends in ``.gz``.

    Two zeros, the type (8 for unsigned bytes), the number of dimensions, each of them as a
    big-endian 32-bit integer, then the bytes (http://yann.lecun.com/exdb/mnist).

    Args:
        path: of the file.
        dimensions: that it has to have: 3 for images, 1 for labels.

    Raises:
        TaskError: naming the file and what is wrong with it.
    """
    path = Path(path)
    content = _contents(path)
    head = 4 + 4 * dimensions
    expected = bytes([0, 0, 8, dimensions])
    if content[:4] != expected:
        raise TaskError(
            "folder",
            f"{path} is no IDX file of bytes in {dimensions} dimensions: it begins with "
            f"{content[:4].hex() or 'nothing'}, not {expected.hex()}",
        )
    if len(content) < head:
        raise TaskError("folder", f"{path} is cut short: it ends within its head")
    shape = [int(n) for n in np.frombuffer(content, dtype=">u4", count=dimensions, offset=4)]
    if len(content) - head != prod(shape):
        short = "is cut short" if len(content) - head < prod(shape) else "is too long"
        raise TaskError(
            "folder",
            f"{path} {short}: its head says {'x'.join(map(str, shape))}, {prod(shape)} bytes, and "
            f"{len(content) - head} follow",
        )
    return np.frombuffer(content, dtype=np.uint8, offset=head).reshape(shape)


def _mnist(name: str) -> Callable[[Path], tuple[tuple[Bytes, Bytes], tuple[Bytes, Bytes]]]:
    def read(folder: Path) -> tuple[tuple[Bytes, Bytes], tuple[Bytes, Bytes]]:
        def part(prefix: str) -> tuple[Bytes, Bytes]:
            names = [f"{prefix}-{n}-ubyte" for n in ("images-idx3", "labels-idx1")]
            paths = [_first(folder / name / "raw", n, f"{n}.gz") for n in names]
            pixels, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
            return _checked(pixels[:, None], labels, paths[0], paths[1])

        return part("train"), part("t10k")

    return read


def _checked(x: Bytes, y: Bytes, of_images: Path, of_labels: Path) -> tuple[Bytes, Bytes]:
    if len(x) != len(y) or not len(y):
        raise TaskError(
            "folder", f"{of_images} has {len(x)} images and {of_labels} {len(y)} labels"
        )
    if int(y.max()) >= CLASSES:
        raise TaskError(
            "folder",
            f"{of_labels} has the label {y.max()}, and there are classes 0 to {CLASSES - 1}",
        )
    return x, y


_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE


def read_cifar(path: str | Path) -> tuple[Bytes, Bytes]:
    """Images ``(n, 3, 32, 32)`` and labels ``(n,)`` of one file of CIFAR-10.

    Either a pickled dictionary with ``data`` and ``labels``, of which nothing is executed, or,
    where the name ends in ``.bin``, records of a label and 3072 pixels
    (https://www.cs.toronto.edu/~kriz/cifar.html).

    Raises:
        TaskError: naming the file and what is wrong with it.
    """
    path = Path(path)
    content = _contents(path)
    x, y = _records(path, content) if path.suffix == ".bin" else _pickled(path, content)
    return _checked(x.reshape(-1, 3, _SIDE, _SIDE), y, path, path)


def _records(path: Path, content: bytes) -> tuple[Bytes, Bytes]:
    size = 1 + _PIXELS
    if not content or len(content) % size:
        raise TaskError(
            "folder",
            f"{path} is cut short or no CIFAR-10: its {len(content)} bytes are no whole number of "
            f"records of {size}",
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, size)
    return records[:, 1:], records[:, 0]


class _Array:
    """What stands for a NumPy array while a pickle is read: what it would be made from."""

    shape: tuple[int, ...] = ()
    content = b""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, kind, by_columns, self.content = state
        if not isinstance(kind, _Kind) or kind.name not in (b"u1", "u1") or by_columns:
            raise pickle.UnpicklingError("an array of other than bytes in rows")


class _Kind:
    """What stands for its type."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like, of which bytes have none."""


def _encode(text: Any, encoding: Any) -> bytes:
    """How Python 3 writes bytes where the protocol has none."""
    if type(text) is not str or type(encoding) is not str or encoding != "latin1":
        raise pickle.UnpicklingError("bytes that are no text in latin1")
    return text.encode("latin1")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


class _Reader(pickle.Unpickler):
    """Reads a pickle of arrays and plain values, and refuses any that names something else."""

    def find_class(self, module: str, name: str) -> Any:
        """Stand-ins, so that not even NumPy's own functions are called by what a file says."""
        known = {
            ("_codecs", "encode"): _encode,
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Kind,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data set needs")
        return known[module, name]


def _pickled(path: Path, content: bytes) -> tuple[Bytes, Bytes]:
    try:
        found = _Reader(BytesIO(content), encoding="bytes").load()
    except Exception as error:  # whatever bytes that are no pickle may lead to
        raise TaskError("folder", f"{path} is not read: {error}") from error
    if not isinstance(found, dict):
        raise TaskError("folder", f"{path} is no file of CIFAR-10: it holds no dictionary")
    named = {k.decode(errors="replace") if isinstance(k, bytes) else k: v for k, v in found.items()}
    data, labels = named.get("data"), named.get("labels")
    if not isinstance(data, _Array) or not isinstance(labels, list):
        raise TaskError("folder", f"{path} is no file of CIFAR-10: it lacks data and labels")
    if len(data.shape) != 2 or data.shape[1] != _PIXELS or len(data.content) != prod(data.shape):
        raise TaskError(
            "folder",
            f"{path} is cut short or no CIFAR-10: its data say {data.shape} and have "
            f"{len(data.content)} bytes, of {_PIXELS} an image",
        )
    if not all(isinstance(n, int) and 0 <= n < CLASSES for n in labels):
        raise TaskError("folder", f"{path} has a label other than 0 to {CLASSES - 1}")
    return np.frombuffer(data.content, dtype=np.uint8), np.array(labels, dtype=np.uint8)


def _cifar10(folder: Path) -> tuple[tuple[Bytes, Bytes], tuple[Bytes, Bytes]]:
    def read(name: str) -> tuple[Bytes, Bytes]:
        places = f"cifar-10-batches-py/{name}", f"cifar-10-batches-bin/{name}.bin"
        return read_cifar(_first(folder, *places))

    batches = [read(f"data_batch_{i}") for i in range(1, 6)]
    x, y = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return (x, y), read("test_batch")


IMAGES: dict[str, _DataSet] = {
    "mnist": _DataSet("MNIST, handwritten digits", _mnist("MNIST")),
    "fashion_mnist": _DataSet("Fashion-MNIST, articles of clothing", _mnist("FashionMNIST")),
    "cifar10": _DataSet("CIFAR-10, photographs of ten kinds", _cifar10),
}
