"""Image data sets from files that are written here, byte by byte, as the official ones are."""

import gzip
import os
import pickle
import struct
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from tests.replicas.test_train import curves, replica
from thalweg import rules
from thalweg.replicas import Budget, Programs
from thalweg.tasks import TaskError
from thalweg.tasks.images import images, read_cifar, read_idx

RANDOM = np.random.default_rng(0)


def drawn(n, shape):
    """Images that can be told apart: each class has its own bright row."""
    y = (np.arange(n) % 10).astype(np.uint8)
    x = RANDOM.integers(0, 120, (n, *shape), dtype=np.uint8)
    for i, label in enumerate(y):
        x[i, ..., 2 * label + 4, :] = 250
    return x, y


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(root, name="MNIST", zipped=False, train=120, test=40):
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    made = {}
    for prefix, n in (("train", train), ("t10k", test)):
        made[prefix] = x, y = drawn(n, (28, 28))
        for kind, array in (("images-idx3", x), ("labels-idx1", y)):
            path, content = raw / f"{prefix}-{kind}-ubyte", idx(array)
            if zipped:
                path, content = Path(f"{path}.gz"), gzip.compress(content)
            path.write_bytes(content)
    return made


class Python2(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, as the official files are."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def text(self, value):
        head = (
            pickle.SHORT_BINSTRING + struct.pack("<B", len(value))
            if len(value) < 256
            else pickle.BINSTRING + struct.pack("<i", len(value))
        )
        self.write(head + value)

    dispatch[bytes] = text


class Official:
    """An array as NumPy of Python 2 pickled it."""

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        state = 1, self.array.shape, Type(), False, self.array.tobytes()
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state


class Type:
    def __reduce__(self):
        return np.dtype, (b"u1", 0, 1), (3, b"|", None, None, None, -1, -1, 0)


def pickled(value, python2=True):
    file = BytesIO()
    (Python2 if python2 else pickle.Pickler)(file, 2 if python2 else 4).dump(value)
    content = file.getvalue()
    # Where NumPy had this function when the files were written.
    return content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def batch(x, y):
    return {
        b"batch_label": b"training batch",
        b"labels": [int(n) for n in y],
        b"data": Official(x.reshape(len(x), -1)),
        b"filenames": [b"a.png"] * len(y),
    }


def write_cifar(root, binary=False, n=30):
    folder = root / f"cifar-10-batches-{'bin' if binary else 'py'}"
    folder.mkdir(parents=True)
    made = []
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        x, y = drawn(n, (3, 32, 32))
        made.append((x, y))
        if binary:
            content = np.concatenate([y[:, None], x.reshape(n, -1)], 1).tobytes()
            (folder / f"{name}.bin").write_bytes(content)
        else:
            (folder / name).write_bytes(pickled(batch(x, y)))
    return made


def test_the_files_made_here_are_those_that_numpy_reads(tmp_path):
    """What is tested with is right: Python itself unpickles it to the arrays."""
    (x, y), *_ = write_cifar(tmp_path)
    with open(tmp_path / "cifar-10-batches-py" / "data_batch_1", "rb") as file:
        content = file.read().replace(b"numpy.core.multiarray", b"numpy._core.multiarray")
    found = pickle.loads(content, encoding="bytes")
    np.testing.assert_array_equal(found[b"data"], x.reshape(len(x), -1))
    assert found[b"labels"] == y.tolist()


# Formats.

X, Y = drawn(3, (3, 32, 32))


@pytest.mark.parametrize("zipped", [False, True])
def test_idx(tmp_path, zipped):
    made = write_mnist(tmp_path, zipped=zipped)
    ending = ".gz" if zipped else ""
    raw = tmp_path / "MNIST" / "raw"
    for i, kind in enumerate(("images-idx3", "labels-idx1")):
        found = read_idx(raw / f"t10k-{kind}-ubyte{ending}", 3 - 2 * i)
        np.testing.assert_array_equal(found, made["t10k"][i])


GOOD = idx(np.zeros((3, 4, 5), dtype=np.uint8))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "begins with nothing"),
        (b"<html>", "begins with 3c68746d, not 00000803"),
        (GOOD[:3] + b"\x01" + GOOD[4:], "begins with 00000801"),
        (GOOD[:2] + b"\x0d" + GOOD[3:], "begins with 00000d03"),
        (GOOD[:9], "ends within its head"),
        (GOOD[:-1], "cut short: its head says 3x4x5, 60 bytes, and 59 follow"),
        (GOOD + b"0", "too long: .* and 61 follow"),
    ],
)
def test_idx_files_that_are_none(tmp_path, content, words):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(TaskError, match=words) as raised:
        read_idx(path, 3)
    assert str(path) in str(raised.value)
    assert raised.value.argument == "folder"


@pytest.mark.parametrize("damage", ["cut", "turned", "other"])
def test_gzip_files_that_are_damaged(tmp_path, damage):
    whole = gzip.compress(idx(RANDOM.integers(0, 255, (9, 28, 28), dtype=np.uint8)))
    bad = {
        "cut": whole[:-100],
        "turned": whole[:50] + bytes(255 - b for b in whole[50:90]) + whole[90:],
        "other": b"<html>not found</html>",
    }[damage]
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(bad)
    with pytest.raises(TaskError, match="cannot be read") as raised:
        read_idx(path, 3)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("binary", [False, True])
def test_cifar(tmp_path, binary):
    made = write_cifar(tmp_path, binary)
    folder = tmp_path / f"cifar-10-batches-{'bin' if binary else 'py'}"
    x, y = read_cifar(folder / f"data_batch_3{'.bin' if binary else ''}")
    np.testing.assert_array_equal(x, made[2][0])
    np.testing.assert_array_equal(y, made[2][1])


def test_a_pickle_of_python_3_by_protocol_2(tmp_path):
    """Which writes bytes as text to be encoded."""
    path = tmp_path / "data_batch_1"
    content = {b"data": X.reshape(3, -1), b"labels": Y.tolist(), b"filenames": [b"a.png"]}
    path.write_bytes(pickle.dumps(content, 2))
    assert b"_codecs\nencode" in path.read_bytes()
    x, y = read_cifar(path)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.", "no text in latin1"),
        (b"c_codecs\nencode\n(C\x01aX\x06\x00\x00\x00latin1tR.", "no text in latin1"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00atR.", "is not read"),
        (b"c_codecs\ndecode\n(C\x01aX\x06\x00\x00\x00latin1tR.", "it asks for _codecs.decode"),
        (b"ccodecs\nencode\n(X\x01\x00\x00\x00aX\x06\x00\x00\x00latin1tR.", "asks for codecs"),
        (b"c_codecs\nlookup\n(X\x06\x00\x00\x00latin1tR.", "it asks for _codecs.lookup"),
        (b"\x80\x04\x8c\x07_codecs\x8c\x12encode.__globals__\x93.", "it asks for _codecs.encode._"),
    ],
)
def test_no_other_encoding_is_called(tmp_path, content, words):
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(TaskError, match=words):
        read_cifar(path)


def test_a_pickle_that_names_anything_else_is_refused_and_not_run(tmp_path):
    witness, path = tmp_path / "witness", tmp_path / "data_batch_1"

    class Malicious:
        def __reduce__(self):
            return os.system, (f"touch {witness}",)

    x, y = drawn(3, (3, 32, 32))
    for content in (
        pickle.dumps(Malicious(), 2),
        pickled({**batch(x, y), b"labels": Malicious()}),
        pickle.dumps({"data": np.load}, 4),
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
    ):
        path.write_bytes(content)
        with pytest.raises(TaskError, match=r"it asks for \S+, which no data set needs") as raised:
            read_cifar(path)
        assert str(path) in str(raised.value)
    assert not witness.exists()


WHOLE = pickled(batch(X, Y))


class Wide:
    def __reduce__(self):
        kind = np.dtype, (b"f8", 0, 1), (3, b"<", None, None, None, -1, -1, 0)
        made = type("Kind", (), {"__reduce__": lambda self: kind})()
        state = 1, (3, 3072), made, False, bytes(8 * 3 * 3072)
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not read: Ran out of input"),
        (b"<html>", "is not read"),
        (WHOLE[:5000], "is not read"),
        (pickled([1, 2]), "holds no dictionary"),
        (pickled({b"data": Official(X.reshape(3, -1))}), "lacks data and labels"),
        (pickled({b"data": b"0", b"labels": [1]}), "lacks data and labels"),
        (pickled(batch(X[..., :16], Y)), r"its data say \(3, 1536\)"),
        (pickled(batch(X, Y[:2])), "has 3 images and .* 2 labels"),
        (pickled(batch(X, Y + 9)), "a label other than 0 to 9"),
        (pickled({**batch(X, Y), b"data": Wide()}), "an array of other than bytes"),
        (WHOLE.replace(b"\x4d\x00\x0c", b"\x4d\x01\x0c"), "is cut short or no CIFAR-10"),
    ],
)  # fmt: skip
def test_cifar_files_that_are_none(tmp_path, content, words):
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(TaskError, match=words) as raised:
        read_cifar(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("content", [b"", bytes(3072), bytes(3073 * 2 + 1)])
def test_records_that_are_cut_short(tmp_path, content):
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(content)
    with pytest.raises(TaskError, match="no whole number of records of 3073"):
        read_cifar(path)
    path.write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(TaskError, match="the label 10"):
        read_cifar(path)


# Tasks.


@pytest.fixture
def mnist(tmp_path):
    return tmp_path, write_mnist(tmp_path)


def test_a_task_of_mnist(mnist):
    root, made = mnist
    task = images("mnist", root)
    assert [len(s) for s in (task.train, task.validation, task.test)] == [108, 12, 40]
    assert task.train.x.shape == (108, 1, 28, 28)
    assert task.train.x.dtype == torch.float32
    # By class: twelve of each, of which a tenth is 1 or 2.
    assert set(torch.bincount(task.validation.y).tolist()) == {1, 2}
    # The parts together are all of the images, in the official scale.
    mean, spread = task.train.x.double().mean().item(), task.train.x.double().std(correction=0)
    assert abs(mean) < 1e-5
    assert abs(spread - 1) < 1e-5
    x, y = made["train"]
    ours = torch.cat([task.train.x, task.validation.x]).flatten(1)
    pixels = torch.from_numpy(x).flatten(1).double()
    # Undone by two pixels of the test set, whose order is the official one.
    theirs, test = torch.from_numpy(made["t10k"][0]).double().ravel(), task.test.x.double().ravel()
    scale = (test.max() - test.min()) / (theirs.max() - theirs.min())
    back = (ours.double() - test.min()) / scale + theirs.min()
    rows = sorted(zip(back.round().long().tolist(), ours_labels(task), strict=True))
    assert rows == sorted(zip(pixels.long().tolist(), y.tolist(), strict=True))
    kept = back[: len(task.train)].round()
    assert scale.item() == pytest.approx(1 / kept.std(correction=0).item(), rel=1e-5)
    assert torch.equal(task.test.y, torch.from_numpy(made["t10k"][1]).long())
    assert task.title == "MNIST, handwritten digits"
    assert task.notes[0].startswith("12 of 120 training images")
    assert "1 MB of memory" in task.notes[-1]
    # The same split whenever it is asked for.
    assert images("mnist", root).fingerprint == task.fingerprint
    assert len(images("mnist", root, validation=0.25).validation) == 30


def ours_labels(task):
    return torch.cat([task.train.y, task.validation.y]).tolist()


def test_zipped_files_and_fashion(tmp_path):
    write_mnist(tmp_path, "FashionMNIST", zipped=True)
    task = images("fashion_mnist", tmp_path, "mlp")
    assert task.model()(task.test.x).shape == (40, 10)
    assert "clothing" in task.title


@pytest.mark.parametrize("binary", [False, True])
def test_a_task_of_cifar(tmp_path, binary):
    made = write_cifar(tmp_path, binary)
    task = images("cifar10", tmp_path)
    assert task.train.x.shape == (135, 3, 32, 32)
    assert len(task.validation) == 15
    for statistic, value in (("mean", 0.0), ("std", 1.0)):
        each = getattr(task.train.x.double().transpose(0, 1).flatten(1), statistic)(1)
        np.testing.assert_allclose(each, value, atol=1e-3)
    x, y = made[-1]
    assert torch.equal(task.test.y, torch.from_numpy(y).long())
    for channel in range(3):
        a, b = x[:, channel].ravel(), task.test.x[:, channel].ravel().numpy()
        assert np.corrcoef(a, b)[0, 1] == pytest.approx(1, abs=1e-6)


def test_constant_channels_are_left_at_zero(tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(idx(np.full((120, 28, 28), 9, dtype=np.uint8)))
    assert not images("mnist", tmp_path).train.x.any()


@pytest.mark.parametrize(
    ("options", "argument", "words"),
    [
        ({"name": "minst"}, "name", "choose from mnist, fashion_mnist, cifar10"),
        ({"network": "vgg"}, "network", "choose from cnn, resnet, mlp"),
        ({"validation": 0.0}, "validation", "a share between 0 and 1, got 0.0"),
        ({"validation": 1.5}, "validation", "a share between 0 and 1"),
        ({"validation": 0.01}, "validation", "0.01 of 120 images cannot be taken by class"),
        (
            {"name": "fashion_mnist"},
            "folder",
            r"train-images-idx3-ubyte \(nor .*gz\); nothing is do",
        ),
        ({"name": "cifar10"}, "folder", r"cifar-10-batches-py/data_batch_1 \(nor .*batch_1.bin\)"),
        ({"folder": "/nowhere"}, "folder", "/nowhere/MNIST/raw/train-images-idx3-ubyte"),
    ],
)
def test_what_cannot_be_loaded(mnist, options, argument, words):
    with pytest.raises(TaskError, match=words) as raised:
        images(**{"name": "mnist", "folder": mnist[0], **options})
    assert raised.value.argument == argument


def test_files_that_do_not_belong_together(mnist):
    raw = mnist[0] / "MNIST" / "raw"
    (raw / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(7, dtype=np.uint8)))
    with pytest.raises(TaskError, match=r"has 120 images and .*labels-idx1-ubyte 7 labels"):
        images("mnist", mnist[0])
    (raw / "t10k-labels-idx1-ubyte").unlink()
    (raw / "train-labels-idx1-ubyte").write_bytes(idx(mnist[1]["train"][1]))
    with pytest.raises(TaskError, match=r"no file .*t10k-labels-idx1-ubyte"):
        images("mnist", mnist[0])


# Training, many at once.

BUDGET = Budget(steps=9, batch_size=12, steps_per_epoch=9)


@pytest.mark.parametrize("network", ["cnn", "resnet", "mlp"])
def test_replicas_of_images_are_trained_together_as_in_a_plain_loop(mnist, network):
    task, programs = images("mnist", mnist[0], network), Programs()
    rates = 0.01, 0.05
    found = curves(
        task, [replica(rules.SGD, seed=4, lr=lr) for lr in rates], BUDGET, programs=programs
    )
    assert [p.backend for p in programs.values()] == ["eager"]
    assert not any(p.note for p in programs.values())
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(4))
    for curve, lr in zip(found, rates, strict=True):
        torch.manual_seed(4)
        model = task.model()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        losses = []
        for i in range(9):
            index = order[12 * i : 12 * (i + 1)]
            loss = nn.functional.cross_entropy(model(task.train.x[index]), task.train.y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        with torch.no_grad():
            outputs = model.eval()(task.validation.x)
        expected = nn.functional.cross_entropy(outputs, task.validation.y).item()
        # Nine steps of float32, whose sums are in another order.
        assert curve[0, 0] == pytest.approx(np.mean(losses), rel=1e-4)
        assert curve[0, 1] == pytest.approx(expected, rel=2e-3)


def test_a_study_of_images(mnist):
    import thalweg

    task = replace(images("mnist", mnist[0]), batch_size=12)
    found = thalweg.study(task, ["adam"], lr=[1e-3], seeds=2, epochs=6, batch_size=12)
    # A tenth by chance; the bright rows are easy.
    assert (found.runs["test_metric"] > 0.5).all()
