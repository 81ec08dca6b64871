"""`thalweg.fit` against loops written out, and against itself cut short."""

import json
import math
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import thalweg
from tests.train.tasks import dropout_task, plain
from thalweg import optim
from thalweg.replicas import Budget, Replica, train
from thalweg.schedules import parse
from thalweg.tasks import load
from thalweg.train.batches import InMemory
from thalweg.train.checkpoint import read, write


def loop(task, epochs, make, batch_size=16, accumulate=1, clip=None, factor=lambda step: 1.0):
    """A plain loop over batches in the order that the seed gives; losses and the model."""
    torch.manual_seed(0)
    model = task.model()
    optimizer = make(model.parameters())
    base = optimizer.param_groups[0]["lr"]
    order = torch.Generator().manual_seed(0)
    epoch_losses, step = [], 0
    for _ in range(epochs):
        index = torch.randperm(len(task.train), generator=order)
        total = 0.0
        for rows in index.split(batch_size * accumulate):
            x, y = task.train[rows]
            optimizer.param_groups[0]["lr"] = base * factor(step)
            optimizer.zero_grad()
            loss = task.loss.of(model(x), y)
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            total += loss.item() * len(y)
            step += 1
        epoch_losses.append(total / len(task.train))
    return epoch_losses, model


def loop_until(task, steps, lr):
    """The same by gradient descent for some steps of the first epoch."""
    torch.manual_seed(0)
    model = task.model()
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(0))
    for rows in order.split(16)[:steps]:
        x, y = task.train[rows]
        loss = task.loss.of(model(x), y)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p -= lr * g
    return steps, model


def far(weights, model):
    return max(float((weights[n] - p).abs().max()) for n, p in model.state_dict().items())


def test_equals_a_plain_loop():
    task = plain()
    found = thalweg.fit(task, optimizer="adam", lr=0.01, epochs=4)
    losses, model = loop(task, 4, lambda p: torch.optim.Adam(p, lr=0.01))
    assert found.history["train_loss"].tolist() == pytest.approx(losses, rel=1e-12)
    best = found.history["metric"].idxmin()  # the mean absolute error: the task's is an error
    assert found.epoch == best + 1
    if found.epoch == 4:
        assert far(found.weights, model) < 1e-12
    model.load_state_dict(found.weights)
    with torch.no_grad():
        outputs = model(task.test.x)
    assert found.test_loss == pytest.approx(task.loss.of(outputs, task.test.y).item(), rel=1e-12)
    assert found.test_metric == pytest.approx((outputs - task.test.y).abs().mean().item())
    assert (found.steps, found.epochs, found.outcome) == (28, 4, "completed")


def test_accumulated_batches_are_the_big_batch_in_unequal_windows_too():
    """101 samples in batches of 16 are 7, the last of 5; windows of 3 are of 48, 48 and 5."""
    task = plain()
    found = thalweg.fit(task, optimizer="adam", lr=0.01, epochs=3, accumulate=3)
    losses, _ = loop(task, 3, lambda p: torch.optim.Adam(p, lr=0.01), accumulate=3)
    assert found.steps == 9
    assert found.history["train_loss"].tolist() == pytest.approx(losses, rel=1e-12)


@pytest.mark.parametrize("own", [False, True])
def test_clips_and_follows_a_schedule(own):
    task = plain()
    made = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.5)} if own else {"optimizer": "sgd"}
    if not own:
        made["lr"] = 0.5
    found = thalweg.fit(task, **made, schedule="cosine", clip_norm=0.05, epochs=3)
    cosine = parse("cosine", 21, 7)
    losses, _ = loop(task, 3, lambda p: torch.optim.SGD(p, lr=0.5), clip=0.05, factor=cosine)
    assert found.history["train_loss"].tolist() == pytest.approx(losses, rel=1e-12)
    assert found.history["lr"].iloc[-1] == pytest.approx(0.5 * cosine(20))


def test_trains_as_a_study_does():
    """The same start and batches as the run of a study with this seed, where batches divide."""
    task = load("wine")
    n = len(task.train) // 4 * 4
    task = thalweg.Task(
        model=task.model, train=(task.train.x[:n], task.train.y[:n]), validation=task.validation,
        test=task.test, batch_size=n // 4,
    )  # fmt: skip
    rule = optim.Adam.rule
    replica = Replica(rule, rule.complete({"lr": 0.01}), 3)
    seen = [float(e.validation_loss[0]) for e in train(task, [replica], Budget(20, n // 4, 4))]
    found = thalweg.fit(task, lr=0.01, epochs=5, seed=3)
    assert found.history["validation_loss"].tolist() == pytest.approx(seen[-5:], rel=1e-4)


def test_closures_are_given_where_a_rule_evaluates_elsewhere():
    task = plain()
    own = thalweg.fit(task, optimizer=lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2), epochs=2)
    assert own.history["train_loss"].is_monotonic_decreasing
    found = thalweg.fit(task, optimizer="nag:form=lookahead", lr=0.01, momentum=0.9, epochs=2)
    torch.manual_seed(0)
    model = task.model()
    speed = [torch.zeros_like(p) for p in model.parameters()]
    order = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(2):
        total = 0.0
        for rows in torch.randperm(101, generator=order).split(16):
            x, y = task.train[rows]
            here = [p.detach().clone() for p in model.parameters()]
            with torch.no_grad():
                for p, v in zip(model.parameters(), speed, strict=True):
                    p.sub_(0.01 * 0.9 * v)
            loss = task.loss.of(model(x), y)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for p, h, v, g in zip(model.parameters(), here, speed, gradients, strict=True):
                    v.mul_(0.9).add_(g)
                    p.copy_(h - 0.01 * v)
            total += loss.item() * len(y)
        losses.append(total / 101)
    assert found.history["train_loss"].tolist() == pytest.approx(losses, rel=1e-10)


def test_averaged_weights_are_what_is_evaluated_and_kept():
    task = plain()
    found = thalweg.fit(task, optimizer="sgd", lr=0.05, ema_decay=0.9, epochs=2)
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    order = torch.Generator().manual_seed(0)
    average = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        for rows in torch.randperm(101, generator=order).split(16):
            x, y = task.train[rows]
            optimizer.zero_grad()
            task.loss.of(model(x), y).backward()
            optimizer.step()
            now = [p.detach().clone() for p in model.parameters()]
            average = [0.9 * a + 0.1 * p for a, p in zip(average, now, strict=True)]
    with torch.no_grad():
        for p, a in zip(model.parameters(), average, strict=True):
            p.copy_(a)
        loss = task.loss.of(model(task.validation.x), task.validation.y).item()
    assert found.history["validation_loss"].iloc[-1] == pytest.approx(loss, rel=1e-12)
    assert found.epoch == 2
    assert far(found.weights, model) < 1e-12


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_as_full_does(precision):
    full = thalweg.fit("wine", epochs=10, lr=0.01)
    half = thalweg.fit("wine", epochs=10, lr=0.01, precision=precision)
    # bfloat16 has 8 bits: losses agree to a percent or so, and are not the same.
    losses = half.history["train_loss"].to_numpy(), full.history["train_loss"].to_numpy()
    assert np.allclose(*losses, rtol=0.05, atol=0.01)
    assert not np.array_equal(*losses)
    assert all(t.dtype == torch.float32 for t in half.weights.values())


def test_stops_early_with_the_best_epoch():
    found = thalweg.fit("wine", epochs=200, lr=0.05, patience=3)
    ranks = list(zip(found.history["metric"], -found.history["validation_loss"], strict=True))
    assert found.outcome == "stopped"
    assert found.epochs == found.epoch + 3 == len(ranks)
    assert max(ranks) == ranks[found.epoch - 1]


def states():
    # Not Python's, which the checks of types in tests draw from.
    return torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002


def test_leaves_random_states_alone():
    before = states()
    thalweg.fit(dropout_task(), epochs=1)
    after = states()
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])


CASES = {
    "dropout, averages, schedule": {"ema_decay": 0.9, "schedule": "cosine", "lr": 0.01},
    "windows, momentum": {"accumulate": 3, "optimizer": "momentum:momentum=0.8"},
    "schedule-free": {"optimizer": "schedulefreeadamw"},
    "8 bits, scaled": {"optimizer": "adamw:state=8bit", "precision": "float16"},
    "torch's": {"optimizer": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5)},
}


class Stop(Exception):
    """The end comes in the middle."""


def cut_short(folder, task, at, **options):
    """Train until a step, with a checkpoint as often as can be, and drop everything."""

    def show(p):
        if p.step >= at:
            raise Stop

    with pytest.raises(Stop):
        thalweg.fit(task, out=folder, checkpoint_every=1e-9, progress=show, **options)
    assert not list(folder.glob(".*")), "nothing should be written any more"


@pytest.mark.parametrize("case", CASES)
def test_resumes_bit_for_bit(case, tmp_path):
    options = {"epochs": 6, "seed": 5, **CASES[case]}
    task = dropout_task()
    whole = thalweg.fit(task, out=tmp_path / "whole", **options)
    for at in (3, 11, 18):  # one after another, in the same folder
        cut_short(tmp_path / "cut", task, at, **options, resume=True)
    kept = read(tmp_path / "cut" / "last.pt")
    assert 0 < kept["engine"]["step"] < whole.steps
    left = {} if "torch" not in case else {"optimizer": CASES[case]["optimizer"]}
    again = thalweg.fit(task, out=tmp_path / "cut", resume=True, **left)
    assert again.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))
    for name in whole.weights:
        assert torch.equal(whole.weights[name], again.weights[name])
    ends = [read(tmp_path / part / "last.pt")["engine"] for part in ("whole", "cut")]
    for end in ends:  # the checks of types in tests draw from it
        assert end["random"][0].pop("python")
        for group in end["optimizer"]["param_groups"]:
            group.pop("differentiable", None)  # torch's, which loading adds to all
    assert equal(*ends)


def equal(a, b):
    """Whether two states are the same in every bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) or (a.isnan() & b.isnan() | (a == b)).all()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_resumes_a_loader_with_random_numbers_of_its_own(tmp_path):
    """What its samples draw from torch's global generator comes again, in its place.

    They are not made ahead of the steps unless that is asked for: dropout draws from it too.
    """
    task = dropout_task()

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 50

        def __getitem__(self, i):
            (x, y) = task.train[i]
            return {k: v + 0.1 * torch.randn(()) for k, v in x.items()}, y

    def loader():
        return DataLoader(Noisy(), 8, shuffle=True, generator=torch.Generator().manual_seed(1))

    whole = thalweg.fit(task, loader=loader(), epochs=4)
    assert whole.steps == 28
    cut_short(tmp_path, task, 10, loader=loader(), epochs=4)
    again = thalweg.fit(task, loader=loader(), out=tmp_path, resume=True)
    assert all(torch.equal(whole.weights[n], again.weights[n]) for n in whole.weights)


def test_batches_of_a_loader_in_the_background_are_the_same():
    task = plain()
    loader = DataLoader(TensorDataset(task.train.x, task.train.y), 10)
    found = [thalweg.fit(task, loader=loader, epochs=2, prefetch=depth) for depth in (0, 3)]
    assert found[0].history["train_loss"].equals(found[1].history["train_loss"])
    own = [thalweg.fit(task, epochs=2, prefetch=depth) for depth in (0, 3)]
    assert own[0].history["train_loss"].equals(own[1].history["train_loss"])


def test_goes_on_for_longer_and_at_another_rate(tmp_path):
    task = plain()
    thalweg.fit(task, out=tmp_path, epochs=2, lr=0.01)
    more = thalweg.fit(task, out=tmp_path, resume=True, epochs=5)
    straight = thalweg.fit(task, epochs=5, lr=0.01)
    assert more.history["train_loss"].equals(straight.history["train_loss"])
    slower = thalweg.fit(task, out=tmp_path, resume=True, epochs=6, lr=1e-4)
    assert slower.history["lr"].tolist() == [0.01] * 5 + [1e-4]


def test_a_finished_training_is_only_read_again(tmp_path):
    first = thalweg.fit("wine", out=tmp_path, epochs=3)
    again = thalweg.fit("wine", out=tmp_path, resume=True)
    assert first.plain() | {"seconds": 0} == again.plain() | {"seconds": 0}


def test_a_best_checkpoint_that_was_deleted_is_the_average_at_the_end(tmp_path):
    first = thalweg.fit("wine", out=tmp_path, epochs=3, lr=0.01, ema_decay=0.9)
    assert first.epoch == 3
    first.checkpoint.unlink()
    again = thalweg.fit("wine", out=tmp_path, resume=True)
    assert again.plain() | {"seconds": 0} == first.plain() | {"seconds": 0}
    kept = read(again.checkpoint)["model"]
    for name, weight in first.weights.items():
        assert torch.equal(weight, again.weights[name])
        assert torch.equal(weight, kept[name])


@pytest.mark.parametrize(
    "options",
    [
        {"lr": np.float64(0.01), "seed": np.int64(3), "batch_size": np.int32(32)},
        {"optimizer": "adamw", "weight_decay": np.float32(0.5), "betas": (np.float64(0.8), 0.9)},
        {"optimizer": lambda p: torch.optim.SGD(p, lr=np.float64(0.01))},
    ],
    ids=["recipe", "further arguments", "an optimizer of one's own"],
)
def test_numbers_of_numpy_are_read_again(options, tmp_path):
    thalweg.fit("wine", out=tmp_path, epochs=2, **options)
    kept = {k: v for k, v in options.items() if callable(v)}
    more = thalweg.fit("wine", out=tmp_path, epochs=3, resume=True, **kept)
    straight = thalweg.fit("wine", epochs=3, **options)
    assert more.history["train_loss"].equals(straight.history["train_loss"])


def test_the_best_checkpoint_is_a_state_dictionary_of_the_model(tmp_path):
    found = thalweg.fit("wine", out=tmp_path, epochs=3)
    content = torch.load(found.checkpoint, weights_only=True)
    model = load("wine").model()
    model.load_state_dict(content["model"])
    assert content["metric"] == found.metric
    assert json.loads(json.dumps(found.plain()))["checkpoint"] == str(tmp_path / "best.pt")
    assert all(torch.equal(a, b) for a, b in zip(
        found.module().state_dict().values(), model.state_dict().values(), strict=True
    ))  # fmt: skip


class Root(nn.Module):
    """The root of what is above 0: finite everywhere, with a gradient that is NaN below."""

    def forward(self, x):
        return torch.where(x > 0, x.sqrt(), torch.zeros_like(x))


def test_a_loss_that_turns_nan_names_step_and_layer_and_where_to_go_on(tmp_path):
    task = plain()
    # By hand: with one linear layer and squared error a rate beyond 2 over the top eigenvalue
    # makes the weights grow by a factor at each step, until the product overflows in the layer.
    with pytest.raises(thalweg.DivergenceError) as caught:
        thalweg.fit(task, optimizer="sgd", lr=1e200, epochs=5, out=tmp_path)
    error = caught.value
    torch.manual_seed(0)
    model = task.model()
    order = torch.randperm(101, generator=torch.Generator().manual_seed(0))
    first = None
    for step, rows in enumerate(order.split(16), 1):
        x, y = task.train[rows]
        hidden = model[1](model[0](x))
        loss = task.loss.of(model[2](hidden), y)
        if not loss.isfinite():
            first = step
            break
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 1e200 * p.grad
                p.grad = None
    assert (error.step, error.epoch) == (first, 1)
    assert f"step {first}" in error.problem
    kept = read(tmp_path / "last.pt")
    assert all(t.isfinite().all() for t in kept["model"].values())
    assert kept["engine"]["step"] == 0
    went_on = thalweg.fit(task, out=tmp_path, resume=True, lr=0.01)
    assert math.isfinite(went_on.train_loss)


def test_the_layer_that_overflows_is_named():
    """Two linear layers: after a step of 1e25 each has outputs of 1e25 times those before it."""

    def deep():
        return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, 1))

    with pytest.raises(thalweg.DivergenceError) as caught:
        thalweg.fit(plain(dtype=torch.float32, model=deep), optimizer="sgd", lr=1e25, epochs=2)
    assert (caught.value.step, caught.value.layer) == (2, "1")
    assert "outputs of layer 1 (Linear)" in caught.value.problem


def test_a_gradient_that_is_nan_is_found_where_it_arises():
    """Outputs and loss are finite, and the gradient that goes on below the root is not.

    Above 0 all is well; a rate that is high enough gets the layer before it below 0 some steps on.
    """

    def made():
        model = nn.Sequential(nn.Linear(5, 7), Root(), nn.Linear(7, 1)).double()
        with torch.no_grad():
            model[0].weight.zero_()
            model[0].bias.fill_(1.0)
            model[2].weight.fill_(1.0)
        return model

    task = plain(model=made)
    with pytest.raises(thalweg.DivergenceError) as caught:
        thalweg.fit(task, optimizer="sgd", lr=0.3, epochs=50)
    error = caught.value
    assert error.layer == "0"
    assert "gradients that reach the outputs of layer 0 (Linear)" in error.problem
    _, model = loop_until(task, error.step - 1, lr=0.3)
    with torch.no_grad():
        order = torch.randperm(101, generator=torch.Generator().manual_seed(0))
        x, _ = task.train[order.split(16)[error.step - 1]]
        assert (model[0](x) <= 0).any()  # where the derivative is none


def test_statistics_that_overflow_are_found_though_the_loss_is_finite():
    """The square of 1e25 is infinite in float32, and what is divided by its root 0."""

    def made():
        return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 1))

    task = plain(dtype=torch.float32, model=made)
    x = task.train.x.clone()
    x[40] = 1e25
    task = thalweg.Task(
        model=made, train=(x, task.train.y), validation=task.validation, test=task.test,
        batch_size=16,
    )  # fmt: skip
    order = torch.randperm(101, generator=torch.Generator().manual_seed(0)).tolist()
    with pytest.raises(thalweg.DivergenceError, match=r"the elements of 1\.running_var") as caught:
        thalweg.fit(task, epochs=3)
    assert (caught.value.step, caught.value.layer) == (1 + order.index(40) // 16, "1")


class Late(nn.Linear):
    """Passes NaN back from its fourth batch on."""

    batches = 0

    def forward(self, x):
        outputs = super().forward(x)
        if self.training:
            self.batches += 1
            if self.batches > 4:
                outputs.register_hook(lambda g: g * math.nan)
        return outputs


def test_steps_that_float16_leaves_out_for_ever_end_the_training():
    """From a scale of 2^16 on 41 steps halve it to less than 2^-24; an epoch has 7 steps."""
    task = plain(dtype=torch.float32, model=lambda: nn.Sequential(Late(5, 1)))
    with pytest.raises(
        thalweg.DivergenceError, match="however little the loss is scaled"
    ) as caught:
        thalweg.fit(task, epochs=30, precision="float16")
    assert caught.value.layer == "0"
    assert 41 <= caught.value.step <= 4 + 41


BAD = {
    "optimizer": [("adan2", "did you mean adan"), ("adam:betas=3", "betas must be"), (3, "a name")],
    "lr": [(-1, "positive"), (float("nan"), "positive")],
    "schedule": [("cosin", "did you mean cosine"), ("step:size=0", "size")],
    "batch_size": [(10**6, "more than"), (0, "at least 1")],
    "epochs": [(0, "at least 1"), (1.5, "whole number")],
    "precision": [("fp8", "float32, bfloat16, float16")],
    "accumulate": [(0, "at least 1")],
    "clip_norm": [(0, "positive")],
    "seed": [(-1, "from 0")],
    "prefetch": [(-1, "from 0")],
    "patience": [(0, "at least 1")],
    "loader": [([], "no batches"), (3, "a length"), ([1], "two parts")],
    "loss": [("msee", "did you mean mse")],
    "resume": [(True, "out")],
    "tensorboard": [(True, "out")],
    "checkpoint_every": [(0, "positive")],
}


@pytest.mark.parametrize(
    ("argument", "value", "said"), [(k, v, s) for k, pairs in BAD.items() for v, s in pairs]
)
def test_says_what_cannot_be(argument, value, said):
    with pytest.raises((thalweg.FitError, thalweg.TaskError)) as caught:
        thalweg.fit("wine", **{"epochs": 1, argument: value})
    assert caught.value.argument == argument
    assert said in caught.value.problem


def test_what_a_model_raises_in_the_midst_is_one_sentence(tmp_path):
    class Odd(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += self.training
            if self.calls == 9:
                raise ValueError("nine of them")
            return super().forward(x)

    task = plain(model=lambda: Odd(5, 1).double())
    with pytest.raises(thalweg.TaskError) as caught:
        thalweg.fit(task, epochs=3, out=tmp_path)
    assert "raised ValueError: nine of them at test_fit.py:" in caught.value.problem
    assert '`raise ValueError("nine of them")`' in caught.value.problem
    with pytest.raises(Stop):  # what is no part of the task stays as it is
        thalweg.fit(task, epochs=1, progress=stopped)


def stopped(_):
    raise Stop


@pytest.mark.parametrize(
    "make",
    [lambda p: torch.optim.LBFGS(p, lr=0.1), lambda p: optim.SAM(optim.SGD(p, lr=0.02))],
    ids=["LBFGS", "SAM"],
)
def test_what_evaluates_the_gradient_itself_has_it_as_it_is(make):
    """Neither scaled nor clipped, so that both are refused; else it trains."""
    task = plain(batch_size=101)
    losses = thalweg.fit(task, optimizer=make, epochs=4).history["train_loss"]
    assert losses.iloc[-1] < losses.iloc[0]
    for argument, value in (("precision", "float16"), ("clip_norm", 1.0), ("clip_value", 1.0)):
        with pytest.raises(thalweg.FitError) as caught:
            thalweg.fit(plain(), optimizer=make, epochs=1, **{argument: value})
        assert caught.value.argument == argument


def test_another_argument_of_an_optimizer_is_named():
    with pytest.raises(thalweg.FitError, match="did you mean weight_decay"):
        thalweg.fit("wine", weight_decai=0.1)
    with pytest.raises(thalweg.FitError, match=r"give it in your function"):
        thalweg.fit("wine", optimizer=lambda p: torch.optim.SGD(p, lr=0.1), lr=0.1)
    with pytest.raises(thalweg.FitError, match=r"made a int"):
        thalweg.fit("wine", optimizer=lambda p: 3)


def test_does_not_take_one_training_for_another(tmp_path):
    thalweg.fit("wine", out=tmp_path, epochs=1)
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(thalweg.FitError, match="has a training already"):
        thalweg.fit("wine", out=tmp_path)
    with pytest.raises(thalweg.FitError, match="give one of them"):
        thalweg.fit("wine", out=tmp_path, overwrite=True, resume=True)
    with pytest.raises(thalweg.FitError, match="other data, another model"):
        thalweg.fit("digits", out=tmp_path, resume=True)
    for argument, value in (("optimizer", "sgd"), ("batch_size", 8), ("seed", 1)):
        with pytest.raises(thalweg.FitError, match="cannot change") as caught:
            thalweg.fit("wine", out=tmp_path, resume=True, **{argument: value})
        assert caught.value.argument == argument
    with pytest.raises(thalweg.FitError, match="at least 1"):
        thalweg.fit("wine", out=tmp_path, resume=True, epochs=0)
    assert (tmp_path / "last.pt").read_bytes() == before
    (tmp_path / "last.pt").write_bytes((tmp_path / "best.pt").read_bytes())
    with pytest.raises(thalweg.FitError, match="has weights alone"):
        thalweg.fit("wine", out=tmp_path, resume=True)
    (tmp_path / "last.pt").write_bytes(b"no checkpoint")
    with pytest.raises(thalweg.FitError, match="no checkpoint"):
        thalweg.fit("wine", out=tmp_path, resume=True)
    with pytest.raises(thalweg.FitError, match="cannot write"):
        thalweg.fit("wine", out=tmp_path / "last.pt")
    assert thalweg.fit("wine", out=tmp_path, overwrite=True, epochs=1).epochs == 1


def test_a_training_is_there_until_another_begins(tmp_path):
    thalweg.fit("wine", out=tmp_path, epochs=1)
    for argument, value in (("lr", -1), ("epochs", 0), ("loader", 3), ("schedule", "cosin")):
        with pytest.raises(thalweg.FitError):
            thalweg.fit("wine", out=tmp_path, overwrite=True, **{argument: value})
    assert sorted(f.name for f in tmp_path.iterdir()) == ["best.pt", "last.pt"]


def test_two_trainings_do_not_share_a_folder(tmp_path):
    (tmp_path / ".last.pt.k1ll3d").touch()  # of one that was killed while it wrote

    def another(_):
        thalweg.fit("wine", out=tmp_path, epochs=1)

    with pytest.raises(thalweg.FitError, match="another training is writing to"):
        thalweg.fit("wine", out=tmp_path, epochs=1, progress=another)
    assert not list(tmp_path.iterdir())
    assert thalweg.fit("wine", out=tmp_path, epochs=1).epochs == 1


def test_goes_on_with_the_batches_that_it_had(tmp_path):
    task = plain()

    def loader(size):
        return DataLoader(TensorDataset(task.train.x, task.train.y), size)

    for name, had, has, said in (
        ("own", loader(16), None, "give it again"),
        ("none", None, loader(16), "leave the loader out"),
        ("larger", loader(16), loader(32), "has 7 batches and would now have 4"),
    ):
        thalweg.fit(task, out=tmp_path / name, epochs=1, loader=had)
        with pytest.raises(thalweg.FitError, match=said) as caught:
            thalweg.fit(task, out=tmp_path / name, epochs=2, loader=has, resume=True)
        assert caught.value.argument == "loader"


def test_a_full_disk_is_an_error_of_the_disk(tmp_path):
    """Here a limit on the size of files; what was there stays."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    write(tmp_path / "last.pt", {"step": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path / "last.pt", {"weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read(tmp_path / "last.pt")["step"] == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_number_that_is_not_finite_is_null():
    found = replace(thalweg.fit("wine", epochs=1), validation_loss=math.nan, test_loss=math.inf)
    kept = json.loads(json.dumps(found.plain(), allow_nan=False))
    assert kept["validation_loss"] is kept["test_loss"] is None
    assert kept["train_loss"] == found.train_loss


def test_order_of_batches_comes_again_from_anywhere():
    split = plain().train
    straight = InMemory(split, 16, 0)
    expected = [y for _ in range(3) for _, y in straight.epoch()]
    half = InMemory(split, 16, 0)
    list(half.epoch())
    partly = half.epoch()
    for _ in range(3):
        next(partly)
    state = half.state()
    other = InMemory(split, 16, 0)
    other.load(state)
    rest = [y for _, y in other.epoch(3)] + [y for _, y in other.epoch()]
    assert all(torch.equal(a, b) for a, b in zip(rest, expected[10:], strict=True))
