"""What compiling a module whole gains: plain beside hybrid, forward alone and whole steps."""

import copy
from collections.abc import Callable
from time import perf_counter

import torch
from torch import nn
from torch.nn import functional

from benchmarks.measure import Row, alternate, report, shown
from thalweg import optim
from thalweg.tasks.networks import cnn, mlp
from thalweg.train.hybrid import hybridize

BATCH = 32


class _Transformer(nn.Module):
    """Two blocks of width 64 over 32 tokens, which predict the next one of 64."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 64)
        block = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.linear = nn.Linear(64, 64)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(self.blocks(self.embedding(tokens))).transpose(1, 2)
        return out


def _evaluation(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    model = copy.deepcopy(model).eval()

    @torch.no_grad()
    def forward() -> object:
        return model(x)

    return forward


def _steps(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], object]:
    model = copy.deepcopy(model)
    optimizer = optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def _first(call: Callable[[], object]) -> float:
    """Seconds that a call takes the first time, with nothing compiled before on this machine."""
    from torch._inductor.utils import fresh_cache

    with fresh_cache():
        start = perf_counter()
        call()
        return perf_counter() - start


def _rows(name: str, plain: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[Row]:
    hybrid = hybridize(copy.deepcopy(plain))
    rows = []
    for what, make in (
        ("forward", lambda model: _evaluation(model, x)),
        ("step", lambda model: _steps(model, x, y)),
    ):
        ours, theirs = make(hybrid), make(plain)
        compiling = _first(ours)
        found = alternate({"ours": ours, "theirs": theirs}, span=0.3)
        label = f"{what} of {name}, compiled in {shown(compiling)}"
        report(f"{label}: {shown(found['ours'])} where plain takes {shown(found['theirs'])}")
        rows.append(
            Row(
                label, shown(found["ours"]), shown(found["theirs"]), found["theirs"] / found["ours"]
            )
        )
    return rows


def hybrid() -> list[Row]:
    """All rows."""
    torch.manual_seed(0)
    _first(lambda: hybridize(nn.Linear(2, 2))(torch.zeros(2, 2)))  # loads the compiler
    classes = torch.randint(10, (BATCH,))
    tokens = torch.randint(64, (BATCH, 32))
    return [
        *_rows("an MLP 64-64-64-10", mlp(64, 64, 64, 10)(), torch.randn(BATCH, 64), classes),
        *_rows(
            "a CNN on images of 32x32",
            cnn((3, 32, 32), 10)(),
            torch.randn(BATCH, 3, 32, 32),
            classes,
        ),
        *_rows(
            "a transformer, 2 blocks of 64, 32 tokens", _Transformer(), tokens, tokens.roll(-1, 1)
        ),
    ]
