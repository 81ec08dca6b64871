"""A trained network that predicts rows of a table, and the file it is kept in."""

import io
import json
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.files import whole
from thalweg.tasks.memory import available_memory, shown
from thalweg.tasks.split import TaskError
from thalweg.tasks.tables.columns import Column
from thalweg.tasks.tables.encode import BLOCK, Encoder, conform
from thalweg.tasks.tables.network import network
from thalweg.tasks.tables.read import Data, read
from thalweg.tasks.tables.target import Target

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Predictor"]

FORMAT = "thalweg predictor 1"
PARTS = ("about.json", "encoder.skops", "weights.pt")
TRUSTED = ["numpy.dtype"]  # what skops asks about; all else in the file must be scikit-learn's


@dataclass(frozen=True)
class Predictor:
    """A trained network with what turns rows into its inputs, and its outputs into answers.

    Attributes:
        encoder: what makes inputs of rows.
        answer: what outputs mean.
        hidden: widths of the hidden layers.
        weights: by name.
        meta: what else was kept, as JSON has it: the study, the optimizer, the metric.
    """

    encoder: Encoder
    answer: Target
    hidden: tuple[int, ...]
    weights: Mapping[str, Tensor]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.network()

    def network(self) -> nn.Module:
        """The network with its weights.

        Raises:
            TaskError: if they are not of this network.
        """
        levels = sum(self.encoder.levels)
        module = network(self.encoder.dense, levels, self.hidden, self.answer.outputs)
        try:
            module.load_state_dict(dict(self.weights))
        except RuntimeError as error:
            first = " ".join(str(error).split())
            raise TaskError("weights", f"are not of this task's network ({first:.200})") from None
        return module.eval()

    def predict(
        self, data: Data, *, delimiter: str | None = None, charset: str = "utf-8"
    ) -> "pd.DataFrame":
        """Answers to new rows.

        Args:
            data: path of a table, or a data frame, with the columns of training in any order;
                others are ignored.
            delimiter: as `thalweg.tasks.tables.table` takes it.
            charset: likewise.

        Returns:
            A row for each row: ``prediction``, a class as it was in the table or a number in its
            units, and for classes ``probability of CLASS``, one column each.

        Raises:
            TaskError: if columns are missing or have values of another kind.
        """
        import pandas as pd

        table = read(data, "data", delimiter=delimiter, charset=charset)
        found = conform(table, self.encoder.features)
        module, rows = self.network(), np.arange(table.rows)
        outputs = []
        with torch.no_grad():
            for start in range(0, table.rows, BLOCK):
                x = self.encoder.inputs(found, rows[start : start + BLOCK])
                outputs.append(module(*x) if isinstance(x, tuple) else module(x))
        every = torch.cat(outputs)
        columns: dict[str, Any] = {"prediction": self.answer.decode(every)}
        if self.answer.classes is not None:
            shares = every.double().softmax(-1).numpy()
            for i, label in enumerate(self.answer.labels):
                columns[f"probability of {label}"] = shares[:, i]
        index = data.index if isinstance(data, pd.DataFrame) else None
        return pd.DataFrame(columns, index=index)

    def save(self, path: str | Path) -> Path:
        """Write to a file, which is whole or not there at all.

        Raises:
            OSError: if it cannot be written.
        """
        import skops.io

        path = Path(path)
        about = {
            "format": FORMAT,
            "features": [asdict(c) for c in self.encoder.features],
            "dense": self.encoder.dense,
            "levels": self.encoder.levels,
            "target": _answer_said(self.answer),
            "hidden": self.hidden,
            "meta": dict(self.meta),
        }
        weights = io.BytesIO()
        torch.save({k: v.detach().cpu().clone() for k, v in self.weights.items()}, weights)
        parts = (
            json.dumps(about, ensure_ascii=False, indent=1).encode(),
            skops.io.dumps(self.encoder.transformer),
            weights.getvalue(),
        )
        with whole(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, part in zip(PARTS, parts, strict=True):
                archive.writestr(name, part)
        return path

    @staticmethod
    def load(path: str | Path) -> "Predictor":
        """Read from a file; nothing in it is run.

        Raises:
            TaskError: if it is none that `save` wrote.
        """
        path = Path(path)
        if not path.is_file():
            raise TaskError("model", f"there is no file {path}")
        try:
            return _loaded(path)
        except TaskError as error:
            raise TaskError("model", f"{path}: {error.problem}") from None
        except Exception as error:  # whatever a damaged or a malicious file makes readers raise
            first = (str(error) or "no message").splitlines()[0]
            raise TaskError(
                "model",
                f"{path} is not a file that thalweg wrote, or it is damaged "
                f"({type(error).__name__}: {first:.200})",
            ) from None


def _loaded(path: Path) -> Predictor:
    import skops.io

    with zipfile.ZipFile(path) as archive:
        size = sum(i.file_size for i in archive.infolist())
        if size > available_memory():
            raise TaskError("model", f"would take {shown(size)} of memory, more than there is")
        said, encoder, weights = (archive.read(name) for name in PARTS)
    about = json.loads(said)
    if about["format"] != FORMAT:
        raise TaskError("model", f"is of the format {about['format']!r}, not {FORMAT!r}")
    foreign = set(skops.io.get_untrusted_types(data=encoder)) - set(TRUSTED)
    if foreign:
        raise TaskError("model", f"has in it what thalweg never writes ({min(foreign)})")
    with warnings.catch_warnings():
        # Of another version of scikit-learn: what matters is whether it still transforms.
        warnings.simplefilter("ignore")
        transformer = skops.io.loads(encoder, trusted=TRUSTED)
    features = tuple(Column(**{**c, "levels": tuple(c["levels"])}) for c in about["features"])
    return Predictor(
        Encoder(features, transformer, int(about["dense"]), tuple(about["levels"])),
        _answer(**about["target"]),
        tuple(about["hidden"]),
        torch.load(io.BytesIO(weights), weights_only=True),
        about["meta"],
    )


def _answer_said(answer: Target) -> dict[str, Any]:
    """A target as JSON has it."""
    classes = answer.classes
    return {
        "name": answer.name,
        "classes": None if classes is None else classes.tolist(),
        "dtype": "" if classes is None else str(classes.dtype),
        "mean": answer.mean,
        "scale": answer.scale,
    }


def _answer(
    name: str, classes: Sequence[Any] | None, dtype: str, mean: float, scale: float
) -> Target:
    found = None if classes is None else np.array(classes, dtype=np.dtype(dtype))
    return Target(name, found, mean, scale)
