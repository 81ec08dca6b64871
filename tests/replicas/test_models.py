"""Kinds of models, each trained in replicas as the plain PyTorch loop trains it alone."""

import numpy as np
import pytest
import torch
from torch import nn

import thalweg
from tests.replicas import models
from thalweg import rules
from thalweg.replicas import Budget, Replica, probe, train
from thalweg.tasks import Metric, Split, Task
from thalweg.tasks.trial import called

BUDGET = Budget(steps=14, batch_size=16, steps_per_epoch=6)
LR = 0.01


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.layer = kind(4, 8, batch_first=True, **options)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        hidden, _ = self.layer(x.view(-1, 3, 4))
        return self.head(hidden[:, -1])


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = x.view(-1, 3, 4)
        return self.head(self.attention(x, x, x)[0].flatten(1))


class Transformer(nn.Module):
    def __init__(self, layers=0, dropout=0.0, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 16, dropout=dropout, batch_first=True, **options)
        self.body = nn.TransformerEncoder(layer, layers) if layers else layer
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.body(x.view(-1, 3, 4)).flatten(1))


class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        q, k, v = self.mix(x.view(-1, 1, 3, 4)).chunk(3, -1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(mixed.flatten(1))


class Words(nn.Module):
    """Embedding, with its weights again as the last layer's."""

    def __init__(self, bag=False):
        super().__init__()
        self.embedding = nn.EmbeddingBag(5, 4) if bag else nn.Embedding(5, 4)
        self.bag = bag
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x):
        tokens = (2 * x).long().clamp(-2, 2) + 2
        embedded = self.embedding(tokens)
        return self.out(embedded if self.bag else embedded.mean(1))


class Two(nn.Module):
    """Several inputs, one of them numbers of words."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(3, 4)
        self.layer = nn.Linear(16, 3)

    def forward(self, x, kind):
        return self.layer(torch.cat([x, self.embedding(kind)], 1))


# No bias before BatchNorm: its gradient is rounding alone, which Adam makes a step of full length,
# and which running statistics, that lag behind, show in evaluation.
def batch_norm():
    return nn.Sequential(
        nn.Linear(12, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)
    )


def images():
    return nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4),
        nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def normalised():
    return nn.Sequential(
        nn.Linear(12, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 16), nn.GroupNorm(4, 16),
        nn.Linear(16, 3),
    )  # fmt: skip


def several(named):
    def split(n, seed):
        one = models.data(n, seed)
        kind = torch.arange(n) % 3
        return Split({"x": one.x, "kind": kind} if named else (one.x, kind), one.y)

    return Task(model=Two, train=split(96, 1), validation=split(48, 2), test=split(48, 3))


def by_hand(task, seed, budget=BUDGET):
    """Mean loss of each epoch, validation loss and metric, of a loop as anybody writes it."""
    torch.manual_seed(seed)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    order = torch.Generator().manual_seed(seed)
    found, step = [], 0
    while step < budget.steps:
        index = torch.randperm(len(task.train), generator=order)
        losses = []
        for i in range(min(budget.steps_per_epoch, budget.steps - step)):
            x, y = task.train[index[i * budget.batch_size : (i + 1) * budget.batch_size]]
            optimizer.zero_grad()
            loss = task.loss.of(called(model, x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        step += len(losses)
        model.eval()
        with torch.no_grad():
            x, y = task.validation[:]
            outputs = called(model, x)
        model.train()
        judged = [of(outputs, y).item() for of in (task.loss.of, task.metric.of)]
        found.append((np.mean(losses), *judged))
    return np.array(found)


def trained(task, seeds, backend):
    """The same of replicas, ``(replicas, epochs, 3)``."""
    rule = rules.ADAM
    chunk = [Replica(rule, rule.complete({"lr": LR}), seed) for seed in seeds]
    found = [
        np.stack([e.train_loss, e.validation_loss, e.validation_metric], axis=1)
        for e in train(task, chunk, BUDGET, backend=backend)
    ]
    return np.stack(found, axis=1)


TOGETHER = {
    "mlp": models.mlp,
    "batch_norm": batch_norm,
    "images": images,
    "normalised": normalised,
    "tied": models.Tied,
    "words": Words,
    "bag": lambda: Words(bag=True),
    "frozen": models.frozen,
    "attention": Attends,
    "causal": Causal,
    "transformer": lambda: Transformer(layers=2),
    "norm_first": lambda: Transformer(norm_first=True, activation="gelu"),
    "weight_norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(12, 16)), nn.Linear(16, 3)
    ),
}
ALONE = {
    "lstm": (lambda: Recurrent(nn.LSTM), "no rule for aten::lstm, at test_models.py:"),
    "lstm_2": (lambda: Recurrent(nn.LSTM, num_layers=2), "no rule for aten::lstm"),
    "gru": (lambda: Recurrent(nn.GRU), "`hidden, _ = self.layer(x.view(-1, 3, 4))`"),
    "rnn": (lambda: Recurrent(nn.RNN), "no rule for aten::rnn_tanh"),
    "branches": (models.Branches, "asks for the value of a tensor"),
    "spectral_norm": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(12, 16)), nn.Linear(16, 3)
        ),
        "no rule for aten::",
    ),
}
# float32 sums in another order, which Adam divides by what are small numbers at first.
ROUNDING = {"rtol": 2e-3, "atol": 2e-4}


def compare(found, expected):
    np.testing.assert_allclose(found[:, :2], expected[:, :2], **ROUNDING)
    # One of 48 samples may lie so near the border that rounding decides.
    np.testing.assert_allclose(found[:, 2], expected[:, 2], atol=1.01 / 48)


@pytest.mark.parametrize("name", TOGETHER)
def test_together_as_alone(name):
    task = models.task(TOGETHER[name])
    program = probe(task, 16, "cpu")
    assert (program.backend, program.note) == ("eager", "")
    for seed, curve in zip((0, 4), trained(task, (0, 4), "eager"), strict=True):
        compare(curve, by_hand(task, seed))


@pytest.mark.parametrize("named", [False, True])
def test_several_inputs(named):
    task = several(named)
    program = probe(task, 16, "cpu")
    assert (program.backend, program.note) == ("eager", "")
    for seed, curve in zip((0, 4), trained(task, (0, 4), "eager"), strict=True):
        compare(curve, by_hand(task, seed))
    for seed in (0, 4):
        compare(trained(task, [seed], "one by one")[0], by_hand(task, seed))


@pytest.mark.parametrize("name", ALONE)
def test_one_after_another_and_why(name):
    model, why = ALONE[name]
    task = models.task(model)
    program = probe(task, 16, "cpu")
    assert program.backend == "one by one"
    assert program.note.startswith("runs go one after another, because ")
    assert why in program.note
    compare(trained(task, [4], "one by one")[0], by_hand(task, 4))


@pytest.mark.parametrize("model", [models.dropout, lambda: Transformer(dropout=0.3)])
def test_dropout_one_by_one_draws_as_the_plain_loop(model):
    task = models.task(model)
    torch.manual_seed(4)
    module = task.model()
    optimizer = torch.optim.Adam(module.parameters(), lr=LR)
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(4))
    losses = []
    torch.manual_seed(0)  # where the stream of numbers drawn in training begins
    for i in range(6):
        x, y = task.train[order[16 * i : 16 * (i + 1)]]
        optimizer.zero_grad()
        loss = task.loss.of(module(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    found = trained(task, [4], "one by one")[0]
    np.testing.assert_allclose(found[0, 0], np.mean(losses), rtol=1e-5)


def test_dropout_together_learns_and_repeats():
    task = models.task(lambda: Transformer(dropout=0.1))
    program = probe(task, 16, "cpu")
    assert (program.backend, program.note, program.concurrent) == ("eager", "", False)
    first, again = (trained(task, (0, 4), "eager") for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first[:, -1, 0] < first[:, 0, 0]).all()


def test_attention_runs_as_fast_as_before_once_a_study_is_over():
    before = torch.backends.cuda.flash_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()
    probe(models.task(Attends), 16, "cpu")
    after = torch.backends.cuda.flash_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()
    assert before == after


def by_numpy(outputs, y):
    """A metric that leaves torch, as those of scikit-learn do."""
    return torch.tensor(np.mean(outputs.argmax(-1).numpy() == y.numpy()))


def test_a_metric_that_vmap_cannot_take_leaves_the_runs_together():
    task = models.task(models.mlp)
    plain = trained(task, (0, 4), "eager")
    judged = Task(
        model=task.model, train=task.train, validation=task.validation, test=task.test,
        loss=task.loss, metric=Metric("by numpy", by_numpy),
    )  # fmt: skip
    program = probe(judged, 16, "cpu")
    assert program.backend == "eager"
    assert "evaluation takes one run after another" in program.note
    assert "test_models.py:" in program.note
    np.testing.assert_allclose(trained(judged, (0, 4), "eager"), plain, rtol=1e-6)


def test_what_leaves_torch_and_comes_back_is_not_frozen():
    def weighted(outputs, y):
        share = 1.0 + float(np.mean(y.numpy() == 0))  # of the batch, which no trace may keep
        return share * nn.functional.cross_entropy(outputs, y)

    task = models.task(models.mlp, loss=weighted)
    program = probe(task, 16, "cpu", shared=True)
    assert "not traced" in program.note
    found = trained(task, [4], "eager")[0]
    compare(found, by_hand(task, 4))


@pytest.mark.parametrize("model", [Transformer, lambda: Recurrent(nn.LSTM), images])
def test_a_study_of_it(model):
    found = thalweg.study(models.task(model), ["adam", "sgd"], lr=[0.01], seeds=2, epochs=2)
    assert (found.runs["outcome"] == "completed").all()
    assert found.verdict


class Trims(nn.Module):
    """Cuts a batch to its longest sample, whose length it reads from the inputs alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, lengths):
        return self.layer(x[:, : int(lengths.max())].sum(1))


def trims() -> Task:
    def part(n, seed):
        split = models.data(n, seed)
        return (split.x.view(-1, 3, 4), 1 + torch.arange(n) // 8 % 3), split.y

    train, validation, test = part(96, 1), part(48, 2), part(48, 3)
    metric = Metric("accuracy", models.accuracy, percent=True)
    return Task(model=Trims, train=train, validation=validation, test=test, metric=metric)


def labelled(outputs, y):
    known = y > 0
    return nn.functional.cross_entropy(outputs[known], y[known])


READERS = {"targets": lambda: models.task(models.mlp, loss=labelled), "inputs": trims}


@pytest.mark.parametrize("name", READERS)
def test_what_reads_values_of_its_data_trains_every_seed(name):
    task = READERS[name]()
    program = probe(task, 16, "cpu")
    assert program.backend == "one by one"
    assert "test_models.py:" in program.note
    for seed, curve in zip((0, 4), trained(task, (0, 4), "eager"), strict=True):
        compare(curve, by_hand(task, seed))


@pytest.mark.parametrize("name", READERS)
def test_a_study_of_what_reads_values_of_its_data(name):
    task = READERS[name]()
    found = thalweg.study(task, ["adam"], lr=[0.01], seeds=3, epochs=2)
    assert (found.runs["outcome"] == "completed").all()
    assert found.runs["train_loss"].notna().all()
    assert any("one after another" in note for note in found.notes)
    told = [f.evidence for f in thalweg.check(task).findings if f.what == "replicas"]
    assert "one after another" in told[0]
