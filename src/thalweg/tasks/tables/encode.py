"""From values of columns to what the network takes, fitted on training rows alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from thalweg.tasks.split import Batch, TaskError
from thalweg.tasks.tables.columns import Column
from thalweg.tasks.tables.read import Table
from thalweg.tasks.tables.values import Values, values

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.compose import ColumnTransformer

__all__ = ["Encoder", "check_orders", "conform", "fit", "unseen"]

BLOCK = 1 << 16  # rows encoded at a time, so that double precision takes little memory


@dataclass(frozen=True)
class Encoder:
    """What makes a network's inputs of values.

    Attributes:
        features: the columns that it takes.
        transformer: of scikit-learn, fitted; columns that are looked up come last.
        dense: how many numbers a row becomes.
        levels: of each column that is looked up.
    """

    features: tuple[Column, ...]
    transformer: "ColumnTransformer"
    dense: int
    levels: tuple[int, ...]

    def inputs(self, found: Mapping[str, Values], rows: NDArray[np.int64]) -> Batch:
        """Numbers ``(rows, dense)`` in float32, and with columns that are looked up a pair.

        The second is then numbers of categories, ``(rows, columns)`` in int64, as
        `thalweg.tasks.tables.network.LookupLinear` takes them.
        """
        numbers = np.empty((len(rows), self.dense), dtype=np.float32)
        codes = np.empty((len(rows), len(self.levels)), dtype=np.int64)
        for start in range(0, len(rows), BLOCK):
            block = slice(start, start + BLOCK)
            encoded = self.transformer.transform(_frame(self.features, found, rows[block]))
            if not hasattr(encoded, "tocsr"):
                numbers[block] = encoded
                continue
            encoded = encoded.tocsr()
            numbers[block] = encoded[:, : self.dense].toarray()
            codes[block] = self._codes(encoded)
        dense = torch.from_numpy(numbers)
        return (dense, torch.from_numpy(codes)) if self.levels else dense

    def _codes(self, encoded: Any) -> NDArray[np.int64]:
        """Numbers of categories of a sparse one-hot encoding, read off where its ones are."""
        ends = np.cumsum((0, *self.levels))
        codes = np.full((encoded.shape[0], len(self.levels)), ends[-1], dtype=np.int64)
        for i, start in enumerate(ends[:-1]):
            one = encoded[:, self.dense + start : self.dense + ends[i + 1]].tocsr()
            codes[np.diff(one.indptr) == 1, i] = start + one.indices
        return codes


def fit(
    features: Sequence[Column], found: Mapping[str, Values], rows: NDArray[np.int64]
) -> Encoder:
    """An encoder of these features, fitted on these rows."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

    def names(wanted: Any) -> list[str]:
        return [f.name for f in features if wanted(f)]

    ranked = names(lambda f: f.encoding == "ordinal")
    orders = [list(f.levels) for f in features if f.name in ranked]
    ranks = make_pipeline(
        SimpleImputer(missing_values="", strategy="most_frequent"),
        OrdinalEncoder(categories=orders, handle_unknown="use_encoded_value", unknown_value=np.nan),
        StandardScaler(),
        # A category that training did not have is in the middle of those that it had.
        SimpleImputer(strategy="constant", fill_value=0.0),
    )
    parts = [
        ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()),
         names(lambda f: f.encoding == "number")),
        ("ranks", ranks, ranked),
        ("few", OneHotEncoder(handle_unknown="ignore"), names(lambda f: f.encoding == "onehot")),
        ("many", OneHotEncoder(handle_unknown="ignore", sparse_output=True),
         names(lambda f: f.encoding == "lookup")),
    ]  # fmt: skip
    # Sparse as soon as one part is: a row of a one-hot is then one number, however wide.
    transformer = ColumnTransformer([p for p in parts if p[2]], sparse_threshold=1.0)
    transformer.fit(_frame(features, found, rows))
    fitted = transformer.named_transformers_
    levels = [len(c) for c in fitted["many"].categories_] if "many" in fitted else []
    few = sum(len(c) for c in fitted["few"].categories_) if "few" in fitted else 0
    dense = len(parts[0][2]) + len(ranked) + few
    return Encoder(tuple(features), transformer, dense, tuple(levels))


def _frame(
    features: Sequence[Column], found: Mapping[str, Values], rows: NDArray[np.int64]
) -> "pd.DataFrame":
    """Values as scikit-learn takes them: a label that is missing is an empty text."""
    import pandas as pd

    def column(read: Values) -> Any:
        if read.numbers is not None:
            return read.numbers[rows]
        assert read.labels is not None
        names = np.append(read.labels.categories.to_numpy(dtype=object), "")
        return pd.Series(names[read.labels.codes[rows]], dtype=object)

    return pd.DataFrame({f.name: column(found[f.name]) for f in features})


def conform(table: Table, features: Sequence[Column]) -> dict[str, Values]:
    """Values of another table's columns, read as those of training.

    Raises:
        TaskError: if columns are missing, or have values of another kind.
    """
    absent = [f.name for f in features if f.name not in table.columns]
    if absent:
        raise TaskError(
            table.argument,
            f"{table.name} lacks {'columns' if len(absent) > 1 else 'column'} "
            f"{', '.join(map(repr, absent))}, which training had",
        )
    found = {}
    for feature in features:
        wanted: Any = "nominal" if feature.levels else feature.kind
        found[feature.name] = values(table, feature.name, wanted)
    check_orders(table, features, found)
    return found


def check_orders(table: Table, features: Sequence[Column], found: Mapping[str, Values]) -> None:
    """Refuse values that are not in the order of an ordinal column.

    Raises:
        TaskError: naming the first.
    """
    for feature in features:
        labels = found[feature.name].labels
        if feature.kind != "ordinal" or labels is None:
            continue
        outside = ~np.append(labels.categories.isin(feature.levels), True)[labels.codes]
        if outside.any():
            row = int(np.argmax(outside))
            add = "add it to --ordinal, or " if table.argument != "data" else ""  # as of new rows
            raise TaskError(
                table.argument,
                f"column {feature.name!r} of {table.name} has {str(labels[row])!r:.60} in "
                f"{table.place(row)}, which is not in its order "
                f"{' < '.join(feature.levels)}; {add}correct it or leave it empty",
            )


def unseen(
    where: str, features: Sequence[Column], found: Mapping[str, Values], rows: NDArray[np.int64]
) -> list[str]:
    """A sentence on each column with categories that the training rows do not have."""
    said = []
    for feature in features:
        labels = found[feature.name].labels
        if feature.kind != "nominal" or labels is None:
            continue
        new = ~np.append(labels.categories.isin(feature.levels), True)[labels.codes[rows]]
        if new.any():
            names = sorted(set(labels[rows[new]]))
            shown = ", ".join(f"{n!r:.40}" for n in names[:5])
            more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
            said.append(
                f"{where}: column {feature.name!r} has {shown}{more} in {int(new.sum()):,} rows, "
                f"which the training rows never have: ignored there."
            )
    return said
