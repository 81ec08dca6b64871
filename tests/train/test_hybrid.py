"""A hybrid module against the same in plain Python."""

import copy
import io
import os
import random
import subprocess
import sys

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from thalweg import optim
from thalweg.train.arguments import FitError
from thalweg.train.hybrid import Hybrid, hybridize, load_exported


class Images(nn.Module):
    """A small convolutional network with running averages and dropout."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(4 * 4, 3)

    def forward(self, x):
        x = functional.relu(self.norm(self.convolution(x)))
        return self.linear(self.dropout(functional.max_pool2d(x, 2).flatten(1)))


class Tokens(nn.Module):
    """A transformer of one block, with a mask by name and several outputs."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.heads = nn.Linear(8, 24)
        self.linear = nn.Linear(8, 11)

    def forward(self, tokens, *, mask):
        x = self.embedding(tokens)
        q, k, v = self.heads(self.norm(x)).unflatten(-1, (3, 2, 4)).transpose(1, 3).unbind(2)
        seen = functional.scaled_dot_product_attention(q, k, v, mask[:, None, None])
        return {"logits": self.linear(x + seen.transpose(1, 2).flatten(2)), "embedded": x}


def mlp():
    return nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3))


def rows(n):
    return (torch.randn(n, 6),), {}


def images(n):
    return (torch.randn(n, 1, 6, 6),), {}


def tokens(n):
    mask = torch.rand(n, 5) < 0.7
    mask[:, 0] = True
    return (torch.randint(11, (n, 5)),), {"mask": mask}


BATCHES = {mlp: rows, Images: images, Tokens: tokens}


@pytest.fixture(scope="module")
def pairs():
    """Each model twice, hybrid and plain; compiled once for all tests."""
    torch.manual_seed(0)
    plain = {make: make() for make in BATCHES}
    return {make: (hybridize(copy.deepcopy(model)), model) for make, model in plain.items()}


def compilations():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def loss(model, batch):
    """Of a model under the same random numbers; its gradients are those of this loss alone."""
    args, kwargs = batch
    torch.manual_seed(1)
    outputs = model(*args, **kwargs)
    following = torch.rand(1)
    model.zero_grad()
    value = sum(t.square().mean() for t in (outputs.values() if kwargs else [outputs]))
    value.backward()
    return value, following, [p.grad for p in model.parameters()], dict(model.named_buffers())


@pytest.mark.parametrize("make", BATCHES)
def test_loss_gradients_buffers_and_random_numbers_are_those_of_plain_python(pairs, make):
    hybrid, plain = pairs[make]
    before = compilations()
    sizes = (32, 20, 17, 31) if make is Images else (32, 32)
    for n in sizes:
        batch = BATCHES[make](n)
        torch.testing.assert_close(loss(hybrid, batch), loss(plain, batch))
    assert hybrid.reason is None
    assert compilations() == before + len({*sizes[:2]})  # at most one more for all other sizes


def test_evaluation(pairs):
    hybrid, plain = pairs[Images]
    (x,), _ = images(20)
    with torch.no_grad():
        torch.testing.assert_close(hybrid.eval()(x), plain.eval()(x))
    assert not hybrid.norm.training
    hybrid.train(), plain.train()


def test_it_is_the_model_itself(pairs):
    model = Images()
    names, parameters = [*model.state_dict()], [*model.parameters()]
    hybrid = hybridize(model)
    assert hybrid is model
    assert isinstance(hybrid, Images)
    assert [*hybrid.state_dict()] == names
    assert all(p is q for p, q in zip(hybrid.parameters(), parameters, strict=True))
    assert hybridize(hybrid) is hybrid
    assert hybrid.to(torch.float64).linear.weight.dtype == torch.float64
    hybrid.load_state_dict(Images().state_dict())
    assert type(pairs[mlp][0][:2]).forward(pairs[mlp][0][:2], torch.zeros(1, 6)).shape == (1, 7)
    assert hybridize(hybrid, active=False) is model
    assert type(model) is Images
    assert vars(model).keys() == vars(Images()).keys()


def test_copies_are_hybrid_and_apart(pairs):
    hybrid, _ = pairs[mlp]
    file = io.BytesIO()
    torch.save(hybrid, file)
    file.seek(0)
    for other in (copy.deepcopy(hybrid), torch.load(file, weights_only=False)):
        assert isinstance(other, Hybrid)
        assert isinstance(other, nn.Sequential)
        torch.testing.assert_close(other.state_dict(), hybrid.state_dict(), rtol=0, atol=0)
        assert other[0].weight is not hybrid[0].weight


def test_hooks_that_are_added_later_are_called(pairs):
    hybrid, plain = (copy.deepcopy(model) for model in pairs[mlp])
    x = torch.randn(32, 6)
    hybrid(x)
    doubled = [
        m[1].register_forward_hook(lambda module, args, out: 2 * out) for m in (hybrid, plain)
    ]
    whole = hybrid.register_forward_hook(lambda module, args, out: -out)
    torch.testing.assert_close(hybrid(x), -plain(x))
    for hook in (*doubled, whole):
        hook.remove()
    torch.testing.assert_close(hybrid(x), plain(x))
    assert hybrid.reason is None


def test_an_optimizer_and_distributed_data_parallel_take_it_as_any_other(pairs, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    hybrid, plain = pairs[mlp]
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(hybrid)
        for model, inner in ((wrapped, hybrid), (plain, plain)):
            optimizer = optim.Adam(inner.parameters(), lr=0.1)
            generator = torch.Generator().manual_seed(0)
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.randn(32, 6, generator=generator)).square().mean().backward()
                optimizer.step()
    finally:
        distributed.destroy_process_group()
    torch.testing.assert_close(hybrid.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)


def test_a_graph_can_be_kept_and_gives_no_gradients_of_gradients(pairs):
    hybrid, plain = pairs[mlp]
    x = torch.randn(32, 6)
    for model in (hybrid, plain):
        model.zero_grad()
        value = model(x).square().sum()
        value.backward(retain_graph=True)
        value.backward()
    for p, q in zip(hybrid.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(hybrid(leaf).square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        slope.square().sum().backward()


def test_autocast(pairs):
    hybrid, plain = pairs[mlp]
    x = torch.randn(32, 6)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = hybrid(x), plain(x)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs)
    assert hybrid.reason is None


def test_transforms_of_functions_see_plain_python(pairs):
    hybrid, plain = pairs[mlp]
    x = torch.randn(2, 32, 6)
    parameters = {name: p.detach() for name, p in hybrid.named_parameters()}

    def outputs(model, x):
        return torch.func.functional_call(model, parameters, (x,))

    ours, theirs = (
        torch.vmap(lambda x, model=model: outputs(model, x))(x) for model in (hybrid, plain)
    )
    torch.testing.assert_close(ours, theirs)
    assert hybrid.reason is None


class Counts(nn.Module):
    """With everything that a failed try could disturb."""

    def __init__(self):
        super().__init__()
        self.norm, self.dropout, self.calls = nn.BatchNorm1d(6), nn.Dropout(0.5), 0

    def before(self, x):
        self.calls += 1
        return self.dropout(self.norm(x))


class Prints(Counts):
    def forward(self, x):
        x = self.before(x)
        print("here")
        return x


class Branches(Counts):
    def forward(self, x):
        x = self.before(x)
        if x.sum() > 0:
            return x
        return -x


class Draws(Counts):
    def forward(self, x):
        return self.before(x) * random.random()


@pytest.mark.parametrize(
    ("kind", "words", "line"),
    [
        (Prints, "print", 'print("here")'),
        (Branches, "[Dd]ata-dependent branching", "if x.sum() > 0:"),
        (Draws, "skipped", "return self.before(x) * random.random()"),
    ],
)
def test_what_cannot_be_traced_runs_as_plain_python(kind, words, line, recwarn):
    torch.manual_seed(0)
    plain = kind()
    hybrid = hybridize(copy.deepcopy(plain))
    found = []
    for model in (hybrid, plain):
        torch.manual_seed(2)
        random.seed(2)
        generator = torch.Generator().manual_seed(3)
        outputs = [model(torch.randn(4, 6, generator=generator)) for _ in range(3)]
        found.append((outputs, torch.rand(1), random.random(), model.state_dict(), model.calls))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    (warning,) = recwarn
    assert (
        str(warning.message) == f"hybridize: {kind.__name__} runs as plain Python: {hybrid.reason}"
    )
    assert warning.filename == __file__
    assert hybrid.reason.endswith(f", `{line}`")
    assert "at test_hybrid.py:" in hybrid.reason
    assert copy.deepcopy(hybrid).reason == hybrid.reason


def test_the_models_own_mistakes_are_its_own(pairs):
    hybrid, _ = pairs[mlp]
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        hybrid(torch.zeros(4, 5))
    assert hybrid.reason is None
    assert hybrid(torch.zeros(32, 6)).shape == (32, 3)


class Scales(nn.Module):
    def forward(self, x, name):
        return x * len(name)


def test_what_would_be_compiled_ever_again_is_not(recwarn):
    hybrid = hybridize(Scales())
    x = torch.ones(3)
    with torch._dynamo.config.patch(recompile_limit=1):
        assert [hybrid(x, "a" * n).tolist() for n in (1, 2, 3)] == [[1.0] * 3, [2.0] * 3, [3.0] * 3]
    assert len(recwarn) == 1
    assert "compiled ever again" in hybrid.reason


def soft():
    return nn.Sequential(nn.Linear(3, 3), nn.Softmax(1), nn.GELU())


def test_a_compiler_that_fails_leaves_plain_python(tmp_path, recwarn):
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && echo g++ 12.2.0\n')
    compiler.chmod(0o755)
    model = soft()
    x = torch.randn(4, 3, requires_grad=True)
    wanted = model(x)
    hybridize(model)
    from torch._inductor import config

    with config.patch({"cpp.cxx": (None, str(compiler)), "force_disable_caches": True}):
        assert torch.equal(model(x), wanted)
        assert torch.equal(model(x), wanted)
    assert len(recwarn) == 1
    assert model.reason.startswith("the compiler failed with CppCompileError: C++ compile error")


WITHOUT = """
import warnings
from tests.train.test_hybrid import hybridize, soft, torch

model = soft()
x = torch.randn(4, 3)
wanted = model(x)
hybridize(model)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert torch.equal(model(x), wanted)
    assert torch.equal(model(x), wanted)
print(*[w.message for w in caught if "hybridize" in str(w.message)], sep="\\n")
"""


def test_without_a_compiler_it_is_plain_with_a_warning(tmp_path):
    """In a process of its own, which finds none."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "CXX"},
        "PATH": str(tmp_path),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (
        "hybridize: Sequential runs as plain Python: no C++ compiler is found; install g++, or say "
        "in CXX which there is"
    )


READS = """
import sys
import torch

for name in sys.argv[1:]:
    model = torch.export.load(name).module()
    for args, kwargs, wanted in torch.load(name + ".batches"):
        torch.testing.assert_close(model(*args, **kwargs), wanted)
        print(len(args[0]))
"""


def test_an_export_runs_in_a_fresh_process_on_batches_of_any_size(pairs, tmp_path):
    names = []
    for make, (hybrid, plain) in pairs.items():
        args, kwargs = BATCHES[make](20)
        hybrid(*args, **kwargs)
        plain.load_state_dict(hybrid.state_dict())
        hybrid.norm.eval() if make is Images else None
        modes = [part.training for part in hybrid.modules()]
        names.append(str(tmp_path / f"{make.__name__}.pt2"))
        hybrid.export(names[-1])
        assert [part.training for part in hybrid.modules()] == modes
        plain.eval()
        batches = [BATCHES[make](n) for n in (1, 3, 40)]
        with torch.no_grad():
            torch.save([(a, k, plain(*a, **k)) for a, k in batches], names[-1] + ".batches")
            torch.testing.assert_close(
                load_exported(names[-1])(*batches[1][0], **batches[1][1]),
                plain(*batches[1][0], **batches[1][1]),
            )
        hybrid.train(), plain.train()
    done = subprocess.run([sys.executable, "-c", READS, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "3", "40"] * 3


def test_an_export_takes_inputs_that_it_is_given_and_asks_for_them(tmp_path):
    hybrid = hybridize(Tokens())
    with pytest.raises(FitError, match=r"has not been called yet.*give a batch: export\(path, x\)"):
        hybrid.export(tmp_path / "tokens.pt2")
    (t,), kwargs = tokens(1)
    hybrid.export(tmp_path / "tokens.pt2", t, **kwargs)
    (t,), kwargs = tokens(7)
    outputs = load_exported(tmp_path / "tokens.pt2")(t, **kwargs)
    torch.testing.assert_close(outputs, hybridize(hybrid, active=False)(t, **kwargs))


def test_what_cannot_be_exported_or_read_is_refused(tmp_path):
    path = tmp_path / "model.pt2"
    path.write_text("what was there")
    with pytest.raises(FitError, match=r"cannot be exported: .* at test_hybrid.py:\d+, `if x.sum"):
        hybridize(Branches()).export(path, torch.zeros(4, 6))
    assert path.read_text() == "what was there"
    with pytest.raises(FitError, match=r"model.pt2 is no module that was exported"):
        load_exported(path)


def test_what_is_no_module_or_is_wrapped_already_is_refused():
    with pytest.raises(FitError, match=r"must be a torch\.nn\.Module, got int"):
        hybridize(3)
    with pytest.raises(FitError, match="this ModuleList has no forward"):
        hybridize(nn.ModuleList([mlp()]))
    with pytest.raises(FitError, match=r"first: DataParallel\(hybridize\(model\)\)"):
        hybridize(nn.DataParallel(mlp()))
    with pytest.raises(FitError, match="the OptimizedModule is compiled already"):
        hybridize(torch.compile(mlp()))
    model = mlp()
    model.forward = lambda x: x
    with pytest.raises(FitError, match="the forward of this Sequential was replaced"):
        hybridize(model)
