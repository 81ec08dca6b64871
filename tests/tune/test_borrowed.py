"""A person's own model and optimizer, which a range test must leave as they are, to the bit."""

import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from thalweg import optim, schedules
from thalweg.tasks import load
from thalweg.tune import TuneError, lr_range_test

STEPS = 24


def data(n=96):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, generator=generator)
    return x, (x[:, :3] + 0.3 * x[:, 3:]).argmax(1)


class Net(nn.Module):
    """Batch normalisation, dropout, a frozen layer, and trouble when asked for."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.frozen, self.drop, self.last = nn.Linear(8, 8), nn.Dropout(0.3), nn.Linear(8, 3)
        self.frozen.requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))
        self.trouble = None

    def forward(self, x):
        self.calls += 1
        if self.trouble is not None and self.calls > 8:
            raise self.trouble
        return self.last(self.drop(self.frozen(self.norm(self.first(x)).relu())))


def loader(**others):
    generator = torch.Generator().manual_seed(5)
    return DataLoader(TensorDataset(*data()), 16, shuffle=True, generator=generator, **others)


def two_groups(make):
    def made(model):
        return make(
            [
                {"params": [*model.first.parameters(), *model.norm.parameters()], "lr": 0.01},
                {"params": model.last.parameters(), "lr": 0.03},
            ]
        )

    return made


def plain(make, **hyper):
    return lambda model: make([p for p in model.parameters() if p.requires_grad], **hyper)


OPTIMIZERS = {
    "sgd": plain(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adam": plain(torch.optim.Adam, lr=0.01),
    "adam with a tensor": plain(
        lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), capturable=False, foreach=False)
    ),
    "adam fused": plain(torch.optim.Adam, lr=0.01, fused=True),
    "groups": two_groups(torch.optim.AdamW),
    "lbfgs": plain(torch.optim.LBFGS, lr=0.1, max_iter=3),
    "thalweg sgd": plain(optim.SGD, lr=0.1, momentum=0.9),
    "thalweg adam": plain(optim.AdamW, lr=0.01, clip_norm=1.0, ema_decay=0.9),
    "thalweg groups": two_groups(optim.Adam),
    "thalweg adan": plain(optim.Adan, lr=0.01),
    "schedule-free": plain(optim.ScheduleFreeAdamW, lr=0.01),
    "lookahead": plain(lambda p: optim.Lookahead(torch.optim.SGD(p, lr=0.1, momentum=0.9))),
    "sam": plain(lambda p: optim.SAM(optim.SGD(p, lr=0.1))),
    "lookahead of lbfgs": plain(lambda p: optim.Lookahead(torch.optim.LBFGS(p, max_iter=2))),
}
SCHEDULED = {"sgd", "adam", "groups", "thalweg sgd", "thalweg groups", "lbfgs"}


class Training:
    """A model in the middle of its training, with all that belongs to it."""

    def __init__(self, kind, schedule=None):
        torch.manual_seed(0)
        self.model = Net()
        self.optimizer = OPTIMIZERS[kind](self.model)
        self.loader = loader()
        self.scheduler = {
            "torch": lambda: torch.optim.lr_scheduler.StepLR(self.optimizer, 3, 0.5),
            "thalweg": lambda: schedules.Scheduler(self.optimizer, schedules.step(3, 0.5)),
            None: lambda: None,
        }[schedule]()
        random.seed(3)
        np.random.seed(4)  # noqa: NPY002

    def epoch(self):
        self.model.train()
        losses = []
        for x, y in self.loader:

            def closure(x=x, y=y):
                self.optimizer.zero_grad()
                loss = nn.functional.cross_entropy(self.model(x), y)
                loss.backward()
                return loss

            losses.append(float(self.optimizer.step(closure).detach()))
            if self.scheduler is not None:
                self.scheduler.step()
        return losses

    def test(self, **others):
        arguments = {"lr": (1e-4, 1.0), "steps": STEPS, "loss": "cross_entropy"} | others
        return lr_range_test(
            self.model, self.optimizer, **({"data": self.loader} | arguments)
        )  # fmt: skip

    def everything(self):
        """All that a range test could have touched, as bytes and plain values."""
        groups = [
            {k: plainly(v) for k, v in group.items() if k != "params"}
            | {"params": [id(p) for p in group["params"]]}
            for group in self.optimizer.param_groups
        ]
        return {
            "tensors": {k: plainly(v) for k, v in self.model.state_dict().items()},
            "storage": [p.data_ptr() for p in self.model.parameters()],
            "versions": [p._version for p in self.model.parameters()],
            "grads": [plainly(p.grad) for p in self.model.parameters()],
            "modes": [module.training for module in self.model.modules()],
            "groups": groups,
            "state": plainly(self.optimizer.state_dict()["state"]),
            "hooks": len(self.optimizer._optimizer_step_post_hooks),
            "attributes": sorted(vars(self.optimizer)),
            "scheduler": self.scheduler and plainly(self.scheduler.state_dict()),
            "torch": plainly(torch.get_rng_state()),
            "python": random.getstate(),
            "numpy": plainly(np.random.get_state()),  # noqa: NPY002
            "loader": plainly(self.loader.generator.get_state()),
        }


def plainly(value):
    """As something that == compares to the bit."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.detach().numpy().tobytes())
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.tobytes())
    if isinstance(value, dict):
        return {str(k): plainly(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plainly(v) for v in value]
    return value if value is None or isinstance(value, int | float | str) else repr(value)


def pairs():
    for kind in OPTIMIZERS:
        yield kind, None
        if kind in SCHEDULED:
            yield kind, "torch"
            yield kind, "thalweg"


ENDS = [None, ValueError("in the model"), KeyboardInterrupt()]


@pytest.mark.parametrize("end", ENDS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize(("kind", "schedule"), list(pairs()))
def test_nothing_is_touched(kind, schedule, end):
    mine, same = Training(kind, schedule), Training(kind, schedule)
    for training in (mine, same):
        torch.manual_seed(2)
        training.epoch()  # so that there are moments, statistics and gradients
        training.model.calls.zero_()
        training.model.trouble = end
    before = mine.everything()
    if end is None:
        found = mine.test()
        assert np.isfinite(found.losses[0, :9]).all()
    else:
        with pytest.raises(type(end)):
            mine.test()
    assert mine.everything() == before
    # Training goes on as if nothing had been.
    for training in (mine, same):
        training.model.trouble = None
    torch.manual_seed(7)
    losses = mine.epoch() + mine.epoch()
    torch.manual_seed(7)
    assert losses == same.epoch() + same.epoch()
    assert mine.everything()["tensors"] == same.everything()["tensors"]


@pytest.mark.parametrize("mode", ["train", "eval", "part"])
def test_modes_stay_and_a_model_is_trained_in_training_mode(mode):
    mine = Training("sgd")
    mine.model.train(mode != "eval")
    if mode == "part":
        mine.model.norm.eval()  # a frozen normalisation, in a model that is fine-tuned
    seen = []
    mine.model.register_forward_pre_hook(
        lambda module, _: seen.append((module.training, module.norm.training))
    )
    before = mine.everything()
    mine.test(check=False)
    assert mine.everything() == before
    assert set(seen) == {(True, mode != "part")}


def test_nothing_is_touched_without_gradients():
    mine = Training("adam")
    with torch.no_grad():
        found = mine.test(check=False)
        assert not torch.is_grad_enabled()
    np.testing.assert_array_equal(found.losses, mine.test(check=False).losses)


def test_the_test_starts_from_the_state_that_is_there():
    """The losses are those of a copy that goes on with these rates, seed and order of batches."""
    mine = Training("groups")
    mine.epoch()
    found = mine.test(check=False, seeds=[11])
    twin = deepcopy(mine.model)
    other = OPTIMIZERS["groups"](twin)
    other.load_state_dict(deepcopy(mine.optimizer.state_dict()))
    torch.manual_seed(11)
    shuffled = loader()
    shuffled.generator.manual_seed(11)
    losses = []
    while len(losses) < STEPS:
        for x, y in shuffled:
            rate = 1e-4 * 1e4 ** (len(losses) / (STEPS - 1))
            for group, share in zip(other.param_groups, (1 / 3, 1), strict=True):
                group["lr"] = rate * share
            other.zero_grad()
            loss = nn.functional.cross_entropy(twin(x), y)
            loss.backward()
            other.step()
            losses.append(loss.item())
    # The rates agree to the last place of float64, weights are float32.
    np.testing.assert_allclose(found.losses[0], losses[:STEPS], rtol=1e-5)


@pytest.mark.parametrize("kind", ["groups", "thalweg groups"])
def test_groups_keep_the_ratio_of_their_rates(kind):
    seen = []

    class Watched(torch.optim.AdamW if kind == "groups" else optim.AdamW):
        def step(self, closure=None):
            seen.append([float(group["lr"]) for group in self.param_groups])
            return super().step(closure)

    mine = Training("groups")
    mine.optimizer = two_groups(Watched)(mine.model)
    found = mine.test(check=False)
    rates = np.array(seen)[:STEPS]
    np.testing.assert_allclose(rates[:, 1], found.lrs, rtol=1e-12)
    np.testing.assert_allclose(rates[:, 0], found.lrs / 3, rtol=1e-12)


def test_seeds_are_orders_of_batches_also_with_a_generator_of_ones_own():
    found = Training("sgd").test(check=False, seeds=[0, 1, 0x7FFF_FFFF_FFFF])
    assert len(found.losses) == 3
    assert len(set(found.losses[:, 0])) == 3
    again = Training("sgd").test(check=False, seeds=[1])
    np.testing.assert_array_equal(again.losses[0], found.losses[1])


def test_the_generator_of_a_sampler_inside_a_batch_sampler_stays():
    generator = torch.Generator().manual_seed(5)
    of = TensorDataset(*data())
    sampler = BatchSampler(RandomSampler(of, generator=generator), 16, drop_last=False)
    mine = Training("sgd")
    before = generator.get_state()
    mine.test(data=DataLoader(of, batch_sampler=sampler), check=False)
    assert torch.equal(generator.get_state(), before)


class Noisy(torch.utils.data.Dataset):
    """Augments by NumPy's and Python's global random numbers."""

    def __len__(self):
        return 48

    def __getitem__(self, i):
        x, y = data(48)
        return x[i] * (1 + 0.1 * np.random.rand() + 0.1 * random.random()), y[i]  # noqa: NPY002


def test_what_augmentation_draws_from_stays():
    mine = Training("sgd")
    before = mine.everything()
    mine.test(data=DataLoader(Noisy(), 16), check=False)
    assert mine.everything() == before


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, a, b):
        return self.layer(torch.cat([a, b], 1))


@pytest.mark.parametrize("form", ["tuple", "dictionary"])
def test_models_of_several_inputs(form):
    x, y = data()
    model = Several()
    a, b = x[:, :2], x[:, 2:]
    batches = [
        ((a[i::4], b[i::4]) if form == "tuple" else {"a": a[i::4], "b": b[i::4]}, y[i::4])
        for i in range(4)
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = lr_range_test(
        model, optimizer, lr=(1e-3, 10.0), steps=40, loss="cross_entropy", data=batches
    )
    with torch.no_grad():
        first = nn.functional.cross_entropy(model(a[::4], b[::4]), y[::4]).item()
    assert found.losses[0, 0] == pytest.approx(first, rel=1e-6)
    assert found.suggestion is not None


def test_the_loss_recorded_is_the_one_before_the_step():
    """LBFGS and SAM call the closure several times, a step of one's own may return nothing."""

    class Silent(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)

    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    batch = data()
    with torch.no_grad():
        first = nn.functional.cross_entropy(model(batch[0]), batch[1]).item()
    for make in (torch.optim.LBFGS, torch.optim.SGD, Silent, lambda p: optim.SAM(optim.SGD(p))):
        found = lr_range_test(
            model, make(model.parameters()), steps=20, loss="cross_entropy", data=[batch],
            check=False,
        )  # fmt: skip
        assert found.losses[0, 0] == pytest.approx(first, rel=3e-7)  # float32


def raised(model, optimizer, **others):
    arguments = {"loss": "cross_entropy", "data": loader(), "steps": STEPS} | others
    with pytest.raises(TuneError) as caught:
        lr_range_test(model, optimizer, **arguments)
    assert "\n" not in str(caught.value)
    return caught.value


class Uncopied(nn.Linear):
    def __deepcopy__(self, memo):
        raise RuntimeError("holds a socket\nand more")


def generator_of_batches():
    yield data()


@pytest.mark.parametrize(
    ("others", "argument", "problem"),
    [
        ({"data": iter(loader())}, "data", "is an iterator, which a range test would use up"),
        ({"data": generator_of_batches()}, "data", "is an iterator"),
        ({"data": zip(*data(), strict=True)}, "data", "is an iterator"),
        ({"data": 3}, "data", "must give batches when gone through, got 3"),
        ({"data": []}, "data", "gives no batch at all"),
        (
            {"data": DataLoader(TensorDataset(*data(8)), 16, drop_last=True)},
            "data",
            "gives no batch at all",
        ),
        ({"data": [data()[0]]}, "data", "must give batches (inputs, targets), and gave Tensor"),
        ({"data": [(*data(), 3)]}, "data", "must give batches (inputs, targets), and gave tuple"),
        ({"data": None}, "data", "is needed with a module of one's own"),
        ({"loss": None}, "loss", "is needed with a module of one's own"),
        ({"loss": "crossentropy"}, "loss", "there is no 'crossentropy'; choose from cross_entr"),
        (
            {"loss": nn.CrossEntropyLoss(reduction="none")},
            "loss",
            "must return one number, a scalar tensor; it returned (16,)",
        ),
        ({"loss": lambda o, y: 3.0}, "loss", "must return one number, a scalar tensor; it retu"),
        ({"loss": 3}, "loss", "must be a name or a function, got 3"),
        ({"lr": (0.1, 0.01)}, "lr", "the low end 0.1 must be below the high end 0.01"),
        ({"steps": 19}, "steps", "19 are too few to see a trend; give at least 20"),
        ({"seeds": 0}, "seeds", "must be a whole number of at least 1, got 0"),
        ({"batch_size": 8}, "batch_size", "is for a task; with a module its data say"),
    ],
)
def test_arguments_that_cannot_be_used(others, argument, problem):
    model = nn.Linear(6, 3)
    error = raised(model, torch.optim.SGD(model.parameters(), lr=0.1), **others)
    assert error.argument == argument
    assert error.problem.startswith(problem)


def test_optimizers_that_cannot_be_used():
    model, other = nn.Linear(6, 3), nn.Linear(6, 3)
    assert "holds no parameter" in raised(model, torch.optim.SGD(other.parameters())).problem
    zero = torch.optim.SGD(model.parameters(), lr=0.0)
    assert "the largest must be above 0" in raised(model, zero).problem
    for what in ("adam", optim.Adam, 3):
        assert raised(model, what).problem.startswith("with a module give its optimizer, got")


def test_a_model_that_cannot_be_copied():
    model = Uncopied(6, 3)
    error = raised(model, torch.optim.SGD(model.parameters()))
    assert error.argument == "task"
    assert "cannot be copied (holds a socket); give a thalweg.Task" in error.problem


def test_a_loss_that_is_never_finite():
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.weight.fill_(torch.nan)
    error = raised(model, torch.optim.SGD(model.parameters()))
    assert error.argument == "task"
    assert "the loss of Linear is not finite at its first step" in error.problem


def test_labels_and_fields_of_a_module():
    mine = Training("adam")
    found = mine.test(steps=60, lr=(1e-5, 1.0))
    assert (found.optimizer, found.task, found.metric) == ("Adam", "Net", "")
    assert found.losses.shape == (1, 60)
    assert found.metrics.empty
    assert set(found.checked["stage"]) == {1}
    assert found.checked[["loss", "metric"]].isna().all().all()
    low, high = found.interval
    assert low <= found.suggestion <= high
    assert "had the best training loss after 60 steps" in found.reason


def test_rates_that_are_far_too_small():
    found = Training("sgd").test(lr=(1e-12, 1e-10), steps=100)
    assert found.suggestion is None
    assert found.interval is None
    assert found.bounds is None
    assert found.checked.empty
    assert found.reason == "No rate from 1e-12 to 1e-10 lowers the loss by more than its noise."


def test_the_suggestion_trains_digits():
    task = load("digits")
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    batches = DataLoader(TensorDataset(task.train.x, task.train.y), 32, shuffle=True)
    found = lr_range_test(model, optimizer, loss="cross_entropy", data=batches, steps=100)
    for group in optimizer.param_groups:
        group["lr"] = found.suggestion
    for _ in range(6):
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    with torch.no_grad():
        right = (model(task.test.x).argmax(1) == task.test.y).float().mean().item()
    # The demo's best rates end at 96.8 %; three standard errors of 360 test samples below that.
    assert right > 0.94


def test_a_loss_that_uses_the_model_itself_is_refused_and_nothing_is_touched():
    model = nn.Linear(13, 3)
    data = load("wine").train

    def penalised(outputs, y):
        return nn.functional.cross_entropy(outputs, y) + 1e-3 * model.weight.square().sum()

    loader = DataLoader(TensorDataset(data.x, data.y), batch_size=16)
    with pytest.raises(TuneError, match="uses parameters of the model itself") as caught:
        lr_range_test(model, torch.optim.SGD(model.parameters(), 0.1), loss=penalised, data=loader)
    assert caught.value.argument == "loss"
    assert model.weight.grad is None


def test_gradients_of_a_loss_with_parameters_stay_as_they_are():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, outputs, y):
            return nn.functional.cross_entropy(self.scale * outputs, y)

    model, loss, data = nn.Linear(13, 3), Scaled(), load("wine").train
    loader = DataLoader(TensorDataset(data.x, data.y), batch_size=16)
    lr_range_test(model, torch.optim.SGD(model.parameters(), 0.1), loss=loss, data=loader, steps=30)
    assert loss.scale.grad is None
    assert loss.scale.item() == 1
