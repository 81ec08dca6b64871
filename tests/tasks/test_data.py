"""A person's data in each of its forms, against the tensors that it stands for."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from thalweg.tasks import Split, Task, TaskError, arrays, data, samples
from thalweg.tasks.data import parts

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 5))
Y = np.arange(60) % 3
TENSORS = torch.tensor(X, dtype=torch.float32), torch.tensor(Y)


class Rows(Dataset):
    """Samples by number, as a person writes them."""

    def __init__(self, count=60, draw=False, shape=None):
        self.count, self.draw, self.shape = count, draw, shape or (lambda i: i)

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        x = X[i] + (np.random.normal() if self.draw else 0)  # noqa: NPY002
        return self.shape(x), int(Y[i])


class Stream(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return ((X[i % 60], Y[i % 60]) for i in range(self.count))


def whole(given):
    """All three parts the same, so that nothing is divided."""
    return parts(given, given, given)


def save(path, **given):
    np.savez(path, **given)
    return path


@pytest.mark.parametrize(
    "given",
    [
        (X, Y),
        (X.astype("float16").astype(">f8") * 0 + X, Y.astype("uint8")),
        (X[::-1][::-1], Y.astype("int32")),
        (X.tolist(), Y.tolist()),
        (list(X), list(Y)),
        [X, Y],
        Split(*TENSORS),
        TensorDataset(*TENSORS),
        Subset(TensorDataset(*TENSORS), range(60)),
        Rows(),
        Subset(Rows(), list(range(60))),
        list(zip(X, Y, strict=True)),
        [(torch.tensor(x).float(), torch.tensor(y)) for x, y in zip(X, Y, strict=True)],
        Stream(60),
        DataLoader(Rows(), batch_size=7, shuffle=True, drop_last=True),
        DataLoader(Stream(60), batch_size=7),
        DataLoader(TensorDataset(*TENSORS), batch_size=None),
        DataLoader(Rows(), batch_sampler=[[i, i + 1] for i in range(59)]),
    ],
    ids=lambda given: type(given).__name__,
)
def test_all_forms_are_the_same_tensors(given):
    split = whole(given).train
    assert torch.equal(split.x, TENSORS[0])
    assert torch.equal(split.y, TENSORS[1])
    assert (split.x.dtype, split.y.dtype) == (torch.float32, torch.int64)


def test_a_file_of_arrays(tmp_path):
    path = save(tmp_path / "a.npz", x=X, y=Y)
    assert torch.equal(whole(path).train.x, TENSORS[0])
    assert torch.equal(whole(str(path)).train.y, TENSORS[1])
    with np.load(path) as opened:
        assert torch.equal(whole(opened).train.x, TENSORS[0])
        assert opened["x"].shape == X.shape  # still open
    path = save(tmp_path / "b.npz", image=X, age=Y.astype(float), y=Y)
    found = whole(path).train
    assert list(found.x) == ["image", "age"]
    assert torch.equal(found.x["image"], TENSORS[0])


def test_several_inputs():
    ages = np.arange(60)
    for given in [
        ((X, ages), Y),
        ([X, ages], Y),
        TensorDataset(TENSORS[0], torch.tensor(ages), TENSORS[1]),
        [(x, a, y) for x, a, y in zip(X, ages, Y, strict=True)],
        DataLoader([((x, a), y) for x, a, y in zip(X, ages, Y, strict=True)], batch_size=8),
    ]:
        x = whole(given).train.x
        assert isinstance(x, tuple)
        assert torch.equal(x[0], TENSORS[0])
        assert x[1].tolist() == ages.tolist()
    named = whole(({"a": X, "b": ages > 5}, Y)).train.x
    assert named["b"].dtype == torch.bool  # a mask, next to others
    assert whole((ages > 5, Y)).train.x.dtype == torch.float32


def test_types_of_numbers():
    image = np.full((6, 2, 2), 200, dtype=np.uint8)
    found = whole((image, [True, False] * 3))
    assert found.train.x.dtype == torch.float32
    assert found.train.x.max() == 200
    assert [n for n in found.notes if "scaling" in n]
    assert found.train.y.tolist() == [1, 0] * 3
    double = torch.tensor(X)
    assert whole((double, Y)).train.x.dtype == torch.float64  # a tensor's type was chosen
    stamps = np.array([1.7e9, 1.7e9 + 1, 1.7e9 + 2])
    assert "subtract an offset" in whole((stamps, [1.0, 2.0, 3.0])).notes[0]


def test_the_collate_function_is_applied_once_to_all():
    ragged = [(torch.ones(n), n % 2) for n in (3, 1, 4, 1, 5)]
    calls = []

    def pad(batch):
        calls.append(len(batch))
        xs, ys = zip(*batch, strict=True)
        return nn.utils.rnn.pad_sequence(xs, batch_first=True), torch.tensor(ys)

    loader = DataLoader(ragged, batch_size=2, collate_fn=pad)
    found = whole(loader)
    assert calls == [5, 5, 5]
    assert found.batch_size == 2
    assert found.train.x.shape == (5, 5)
    assert found.train.x.sum(1).tolist() == [3, 1, 4, 1, 5]
    task = Task(model=lambda: nn.Linear(5, 2), train=loader, validation=loader, test=loader)
    assert task.batch_size == 2
    with pytest.raises(TaskError, match=r"sample 1 .*shape \(1,\).*first has \(3,\).*collate_fn"):
        whole(DataLoader(ragged, batch_size=2))


def test_a_sampler_chooses_samples_and_its_order_plays_no_part():
    kept = whole(DataLoader(Rows(), sampler=SubsetRandomSampler([5, 3, 8]))).train
    assert torch.equal(kept.x, TENSORS[0][[3, 5, 8]])
    found = whole(DataLoader(Rows(), sampler=WeightedRandomSampler([1.0] * 60, 10)))
    assert len(found.train) == 60
    assert "WeightedRandomSampler is left out" in found.notes[0]


def test_random_augmentation_is_drawn_once_and_said():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    found, again = whole(Rows(draw=True)), whole(Rows(draw=True))
    assert torch.equal(found.train.x, again.train.x)
    assert not torch.equal(found.train.x, TENSORS[0])
    assert [n for n in found.notes if "another sample each time" in n]
    assert not whole(Rows()).notes
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_missing_parts_are_taken_from_training():
    both = parts((X, Y), None, None)
    assert [len(p) for p in (both.train, both.validation, both.test)] == [36, 12, 12]
    assert torch.bincount(both.test.y).tolist() == [4, 4, 4]
    assert both.notes == (
        "validation and test: a fifth of the samples for training each, drawn at random by class",
    )
    for missing in ("validation", "test"):
        given = {"validation": (X[:9], Y[:9]), "test": (X[:9], Y[:9])} | {missing: None}
        one = parts((X, Y), **given)
        assert len(one.train) == 48
        assert len(getattr(one, missing)) == 12
        rows = [tuple(r) for s in (one.train, getattr(one, missing)) for r in s.x.tolist()]
        assert sorted(rows) == sorted(map(tuple, TENSORS[0].tolist()))
    rare = parts((X, np.where(np.arange(60) == 7, 5, Y)), None, None)
    assert "not by class, as class 5 has 1 of 60 samples" in rare.notes[0]


def bad(i, value, of=X):
    changed = of.astype(float)
    changed[i] = value
    return changed


SPARSE = torch.tensor(X).to_sparse()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((bad((7, 2), np.nan), Y), "train: 1 of 60 samples have inputs .* first at index 7;"),
        ((X, bad([4, 9], np.inf, Y)), "train: 2 of 60 samples have targets .* first at index 4;"),
        ((X * 1e300, Y), "inputs that are NaN or infinite"),
        ((X, Y[:50]), "train: has 60 inputs and 50 targets"),
        (((X, X[:50]), Y), "train: has 60 and 50 inputs and 60 targets"),
        ((X[:0], Y[:0]), "train: has no samples"),
        ((X, 3), "targets are a single number"),
        ((np.array([{}] * 60), Y), "inputs are Python objects"),
        ((X, np.array(["a"] * 60)), "targets are words"),
        (([[1.0], [1.0, 2.0]], [0, 1]), "rows differ in length"),
        ((SPARSE, Y), r"sparse or nested tensor; give .to_dense"),
        ((X + 1j, Y), "complex128; give real numbers"),
        (X, r"must be \(x, y\) .* got ndarray of shape \(60, 5\)"),
        (None, "must be .* got NoneType"),
        ("gone.npz", "there is no file gone.npz"),
        ([], "must be"),
        (Rows(0), "Rows has no samples"),
        (Stream(0), "Stream has no samples"),
        (DataLoader(Rows(0)), "Rows has no samples"),
        (DataLoader(Rows(), sampler=[]), "the loader has no samples"),
        (DataLoader([{"a": 1, "label": 2}]), "dictionaries with a, label; return"),
        (DataLoader([X[0], X[1]]), "samples are a ndarray and not"),
        ([(X[0], "cat")] * 3, "sample 0 holds a builtins.str"),
        (DataLoader(Rows(shape=lambda x: 1 / 0)), r"sample 0 of Rows raises ZeroDivisionError.*"
         r"test_data.py:\d+"),
        (DataLoader(Rows(), collate_fn=lambda b: b[100]), r"collate_fn raises IndexError.*"
         r"\(test_data.py:\d+\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said_in_a_sentence(given, message):
    with pytest.raises(TaskError, match=message):
        parts(given, (X, Y), (X, Y))


def test_scipys_sparse_matrices_are_refused():
    from scipy.sparse import csr_matrix

    with pytest.raises(TaskError, match="sparse matrix of SciPy"):
        whole((csr_matrix(X), Y))


def test_parts_of_different_kinds_are_refused():
    with pytest.raises(TaskError, match=r"test: inputs are \(60, 5, 1\) float32, and those"):
        parts((X, Y), (X, Y), (X[:, :, None], Y))
    with pytest.raises(TaskError, match="validation: targets are"):
        parts((X, Y), (X, Y.astype(float)), (X, Y))


def test_pickled_objects_are_never_loaded(tmp_path):
    path = save(tmp_path / "bad.npz", x=np.array([{}, {}], dtype=object), y=[0, 1])
    with pytest.raises(TaskError, match="holds Python objects in 'x', and unpickling"):
        whole(path)
    with np.load(path) as opened, pytest.raises(TaskError, match="Python objects"):
        whole(opened)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(TaskError, match=r"no \.npz file that can be read"):
        whole(tmp_path / "text.npz")
    with pytest.raises(TaskError, match=r"needs arrays x.* and y; it has a, b"):
        whole(save(tmp_path / "c.npz", a=X, b=Y))


def test_what_does_not_fit_is_refused_before_it_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr(arrays, "available_memory", lambda: 1 << 21)
    read = []

    class Huge(Dataset):
        def __len__(self):
            return 10**6

        def __getitem__(self, i):
            read.append(i)
            return torch.zeros(1000), 0

    with pytest.raises(TaskError, match=r"needs 4\.01 GB of memory and 2\.1 MB are left"):
        whole(Huge())
    assert read == [0]
    with pytest.raises(TaskError, match="of memory"):
        whole(DataLoader(Huge(), collate_fn=lambda b: b))
    assert read == [0, 0]
    path = save(tmp_path / "a.npz", x=np.zeros((1000, 1000)), y=np.zeros(1000))
    with pytest.raises(TaskError, match="of memory and"):
        whole(path)


def test_an_endless_stream_is_refused(monkeypatch):
    monkeypatch.setattr(samples, "LONGEST", 1000)
    with pytest.raises(TaskError, match=r"more than 1,000 samples .* itertools.islice"):
        whole(Stream(10**9))


def test_default_batches():
    assert data.DEFAULT_BATCH == 32
    task = Task(model=lambda: nn.Linear(5, 3), train=(X, Y))
    assert task.batch_size == 32
    assert Task(model=lambda: nn.Linear(5, 3), train=(X[:20], Y[:20])).batch_size == 12
