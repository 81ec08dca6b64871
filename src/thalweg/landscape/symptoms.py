"""What is wrong with the flow of gradients: from what was recorded to findings with numbers.

The thresholds lie between what networks do that train and what those do that are stuck: on digits,
3 to 30 layers of ReLU, tanh and sigmoid by several initialisations, with and without batch
normalisation, convolutional and residual ones, each by SGD and Adam (`docs/landscape.md`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from thalweg.landscape.flow import INPUT, Flow

__all__ = ["Symptom", "dead", "exploding", "nonfinite", "saturated", "symptoms", "vanishing"]

# Weight gradient of the first layer over that of the last: 0.1 to 8 where training works, below
# 0.025 and down to 1e-25 where it stands still.
VANISHED = 1 / 30
EXPLODED = 30.0
# Values of a tanh: up to 0.25 of a layer where training works, from 0.5 on where weights are large.
SATURATED = 0.4
# Units of a ReLU: up to 0.3 of a layer where training works.
DEAD = 0.5
OTHERS = "Norm|Embedding|PReLU"  # in the names of layers whose parameters weigh no inputs


@dataclass(frozen=True)
class Symptom:
    """One thing that is wrong.

    Attributes:
        cause: ``vanishing_gradient``, ``exploding_gradient``, ``saturation``, ``dead_relu`` or
            ``nonfinite``.
        layer: where it is worst, or first.
        step: from which on it is so.
        value: what was measured.
        threshold: from which on it counts.
        evidence: a sentence with the numbers.
    """

    cause: str
    layer: str
    step: int
    value: float
    threshold: float
    evidence: str


def symptoms(flow: Flow) -> list[Symptom]:
    """All that is found, what was not finite first."""
    frame = flow.frame
    kinds: tuple[Callable[[pd.DataFrame], Symptom | None], ...] = (
        vanishing, exploding, saturated, dead,
    )  # fmt: skip
    found = [nonfinite(flow), *(kind(frame) for kind in kinds)]
    return [symptom for symptom in found if symptom is not None]


def vanishing(frame: pd.DataFrame) -> Symptom | None:
    """Gradients with respect to weights that get small towards the input.

    Compared is the root mean square of the first layer's with the last one's, in the median over
    steps. What is due to the size of the model's inputs does not count, nor do gradients of
    exactly 0: these have not vanished but been cut, by dead units or weights of 0.

    Args:
        frame: as `Flow.frame` documents it.
    """
    ratio, first, last = _first_over_last(frame, "weight gradient")
    ratio = max(ratio, ratio / _inputs(frame))
    if not ratio < VANISHED:
        return None
    return Symptom(
        "vanishing_gradient", first, int(frame["step"].min()), ratio, VANISHED,
        f"the gradient of the weights is {_times(1 / ratio)} times smaller at layer {first} than "
        f"at {last}{_over(frame)}",
    )  # fmt: skip


def exploding(frame: pd.DataFrame) -> Symptom | None:
    """Gradients that get large towards the input.

    Those with respect to weights, compared as `vanishing` does, or the norms of those with respect
    to outputs of layers with weights: where activations grow from layer to layer as well, the
    gradients of all weights are alike.

    Args:
        frame: as `Flow.frame` documents it.
    """
    ratio, first, last = _first_over_last(frame, "weight gradient")
    of_weights = min(ratio, ratio / _inputs(frame))
    of_outputs, *_ = _first_over_last(frame, "gradient")
    ratio = float(np.fmax(of_weights, of_outputs))
    if not ratio > EXPLODED:
        return None
    what = "of the weights" if ratio == of_weights else "with respect to outputs"
    return Symptom(
        "exploding_gradient", first, int(frame["step"].min()), ratio, EXPLODED,
        f"the gradient {what} is {_times(ratio)} times larger at layer {first} than at {last}"
        f"{_over(frame)}",
    )  # fmt: skip


def _first_over_last(frame: pd.DataFrame, what: str) -> tuple[float, str, str]:
    """The ratio in the median over steps, and the layers."""
    weighted = frame[(frame["what"] == "weight gradient") & ~frame["kind"].str.contains(OTHERS)]
    called = frame.loc[frame["what"] == "activation", "layer"]
    layers = weighted.loc[weighted["layer"].isin(called), "layer"]
    mine = frame[(frame["what"] == what) & frame["layer"].isin(layers)]
    mine = mine[np.isfinite(mine["rms"]) & (mine["rms"] > 0)]
    # Norms of gradients with respect to outputs, as layers of few values have large ones.
    size = mine["rms"] * np.sqrt(mine["count"]) if what == "gradient" else mine["rms"]
    table = mine.assign(size=np.log10(size)).pivot_table("size", "step", "depth")
    if table.shape[1] < 2:
        return np.nan, "", ""
    first, last = table.columns[0], table.columns[-1]
    names = mine.drop_duplicates("depth").set_index("depth")["layer"]
    return float(10 ** (table[first] - table[last]).median()), names[first], names[last]


def _inputs(frame: pd.DataFrame) -> float:
    """How large the model's inputs are, 1 where this is not known."""
    size = frame.loc[(frame["layer"] == INPUT) & (frame["rms"] > 0), "rms"].median()
    return float(size) if np.isfinite(size) else 1.0


def saturated(frame: pd.DataFrame) -> Symptom | None:
    """Bounded activation functions that are mostly flat where they are used.

    The share of a layer's values at which the derivative is below a twentieth of its maximum, in
    the median over the later half of the steps. The model's last layer is left out: a probability
    may be sure.

    Args:
        frame: as `Flow.frame` documents it.
    """
    known = frame[frame["saturated"].notna() & np.isfinite(frame["rms"])]
    known = known[known["depth"] < frame.loc[frame["what"] == "activation", "depth"].max()]
    share = _later(known).groupby("layer", sort=False)["saturated"].median()
    if share.empty or share.max() < SATURATED:
        return None
    layer = str(share.idxmax())
    many = int((share >= SATURATED).sum())
    over = known[(known["layer"] == layer) & (known["saturated"] >= SATURATED)]
    return Symptom(
        "saturation", layer, int(over["step"].min()), float(share.max()), SATURATED,
        f"{share.max():.0%} of the values of layer {layer} are where it is flat; so are at least "
        f"{SATURATED:.0%} in {_of(many, len(share))}",
    )  # fmt: skip


def dead(frame: pd.DataFrame) -> Symptom | None:
    """ReLU units that no sample activates any more.

    At the last step that enough samples follow to tell by (`thalweg.landscape.sizes.SEEN`).

    Args:
        frame: as `Flow.frame` documents it.
    """
    known = frame[frame["dead"].notna() & np.isfinite(frame["rms"])]
    share = known.groupby("layer", sort=False)["dead"].last()
    if share.empty or share.max() < DEAD:
        return None
    layer = str(share.idxmax())
    many = int((share >= DEAD).sum())
    over = known[(known["layer"] == layer) & (known["dead"] >= DEAD)]
    return Symptom(
        "dead_relu", layer, int(over["step"].min()), float(share.max()), DEAD,
        f"{share.max():.0%} of the units of layer {layer} are active for no sample any more; so "
        f"are at least {DEAD:.0%} in {_of(many, len(share))}",
    )  # fmt: skip


def nonfinite(flow: Flow) -> Symptom | None:
    """The first value that was not finite, and what made it."""
    first = flow.first_nonfinite
    if first is None:
        return None
    outputs = flow.frame.query("what == 'activation'")
    last = outputs.loc[outputs["depth"].idxmax(), "layer"]
    earliest = first.since + 1
    when = f"step {first.step}"
    if earliest < first.step:
        when = f"step {first.step}, or at one from {earliest} on that was not recorded"
    where = f"layer {first.layer} ({first.kind})"
    if first.layer == INPUT:
        said = f"the inputs of {when} are not finite"
    elif first.what == "weight":
        said = f"the weights of {where} are not finite at {when}; the update before made them so"
    elif first.what == "activation":
        said = f"the outputs of {where} are the first that are not finite, at {when}"
    elif first.layer == last and first.what == "gradient":
        said = f"all outputs are finite at {when}, and the gradient of the loss is not: the loss or"
        said += " its targets make it so"
    else:
        said = f"the {first.what} of {where} is the first that is not finite, at {when}"
    return Symptom("nonfinite", first.layer, first.step, np.nan, np.nan, said)


def _later(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["step"] >= frame["step"].median()]


def _over(frame: pd.DataFrame) -> str:
    return ", in the median over steps" if len(frame["step"].unique()) > 1 else ""


def _of(many: int, count: int) -> str:
    return f"{many} of {count} such layers" if count > 1 else "this one layer of its kind"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio < 1e6 else f"{ratio:.2g}"
