"""From a file or a data frame to columns as they stand there."""

import pickle
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from thalweg.tasks.memory import refuse_what_does_not_fit
from thalweg.tasks.split import TaskError

if TYPE_CHECKING:
    import pandas as pd

    Data: TypeAlias = str | Path | pd.DataFrame
else:
    Data = Any  # pandas is imported when it is needed

__all__ = ["Data", "Table", "is_table", "listing", "nearest", "quoted", "read"]

_TEXT = {".csv": ",", ".txt": ",", ".tsv": "\t", ".tab": "\t"}
_PARQUET = (".parquet", ".pq")
_PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth")
_COMPRESSED = (".gz", ".bz2", ".zst")


@dataclass(frozen=True)
class Table:
    """Columns as they stand in a file or a data frame.

    Attributes:
        name: of the file, as messages have it.
        argument: of `thalweg.tasks.tables.table` that it was given as.
        columns: by name, in order; those of a text file are text.
        rows: how many.
        unnamed: which names are ours, because the column has none.
        place: where a row stands, ``line 7`` of a text file say, by its number counted from 0.
    """

    name: str
    argument: str
    columns: "dict[str, pd.Series]"
    rows: int
    unnamed: tuple[str, ...]
    place: Callable[[int], str]


def is_table(text: str) -> bool:
    """Whether what a person types for a task is meant as the path of a table, by its ending."""
    ending = Path(text).suffix.lower()
    return ending not in ("", ".npz", ".npy") and ending.partition(":")[0] != ".py"


def read(
    data: Data,
    argument: str,
    *,
    delimiter: str | None = None,
    charset: str = "utf-8",
    trust_pickle: bool = False,
) -> Table:
    """A table.

    Args:
        data: path of a CSV, TSV or Parquet file, or a data frame.
        argument: where it was given, for messages.
        delimiter: of columns in a text file; a comma, or in ``.tsv`` a tab, by default.
        charset: of a text file, as Python names it.
        trust_pickle: whether files that run code when they are read may do so.

    Raises:
        TaskError: for what cannot be read, with the line and what to do.
    """
    import pandas as pd

    if isinstance(data, pd.DataFrame):
        return _of_frame(data, "the table", argument)
    path = Path(data)
    name = str(data)
    endings = [s.lower() for s in path.suffixes]
    if endings and endings[-1] in _COMPRESSED:
        endings.pop()
    ending = endings[-1] if endings else ""
    _look(path, argument)
    try:
        if ending in _TEXT:
            from thalweg.tasks.tables.text import read_text

            names, frame, place = read_text(
                path, argument, _delimiter(delimiter, _TEXT[ending]), charset
            )
            return _named(names, frame, name, argument, place)
        if ending in _PARQUET:
            return _of_frame(_parquet(path, argument), name, argument)
        if ending in _PICKLES:
            return _of_frame(_pickled(path, argument, ending, trust_pickle), name, argument)
    except OSError as error:
        raise TaskError(argument, f"cannot read {name} ({error.strerror or error})") from None
    raise TaskError(
        argument,
        f"{name} is of a kind that is not read here ({ending or 'its name has no ending'}); save "
        f"it as CSV, TSV or Parquet, with a name that ends in .csv, .tsv or .parquet",
    )


def nearest(name: str, names: "list[str]") -> str:
    """A few words on which names are like one that there is not."""
    alike = {n.casefold().strip(): n for n in names}
    near = [alike[n] for n in get_close_matches(name.casefold().strip(), alike, n=3, cutoff=0.5)]
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"there are {listing(names)}"


def listing(names: "list[str]") -> str:
    """The first few names."""
    return ", ".join(map(repr, names[:10])) + (", …" if len(names) > 10 else "")


def quoted(name: str) -> str:
    """A name as a shell takes it, on one line."""
    return shlex.quote(name) if name.isprintable() else repr(name)


def _look(path: Path, argument: str) -> None:
    """Refuse a path with no file at its end."""
    if path.is_dir():
        raise TaskError(argument, f"{path} is a folder; give the path of a file")
    if not path.exists():
        folder = path.parent
        names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        near = get_close_matches(path.name, names, n=1)
        hint = f"; did you mean {folder / near[0]}?" if near else ""
        raise TaskError(argument, f"there is no file {path}{hint}")
    if not path.stat().st_size:
        raise TaskError(argument, f"{path} is empty; it needs a header and rows")


def _delimiter(given: str | None, usual: str) -> str:
    if given is None:
        return usual
    given = "\t" if given in ("\\t", "tab") else given
    if len(given) != 1 or given in '"\n\r':
        raise TaskError("delimiter", f"must be one character, as in --delimiter ';', got {given!r}")
    return given


def _parquet(path: Path, argument: str) -> "pd.DataFrame":
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows = file.metadata.num_rows
            first = next(file.iter_batches(batch_size=10_000), None)
        if first is not None and len(first):
            cells = rows * first.num_columns
            need = 2 * rows * first.nbytes / len(first) + 36 * cells
            refuse_what_does_not_fit(str(path), argument, rows, path.stat().st_size, need)
        return pd.read_parquet(path)
    except (pa.ArrowException, ValueError) as error:
        if isinstance(error, TaskError):
            raise
        first_line = (str(error) or "no message").splitlines()[0]
        raise TaskError(argument, f"{path} is not a Parquet file ({first_line})") from None


def _pickled(path: Path, argument: str, ending: str, trusted: bool) -> "pd.DataFrame":
    import pandas as pd

    if not trusted:
        raise TaskError(
            argument,
            f"{path} is a pickle, and reading one runs whatever code is in it; save the table as "
            f"CSV or Parquet, or, if you made the file yourself, give --trust-pickle",
        )
    try:
        if ending == ".joblib":
            import joblib  # type: ignore[import-untyped]

            found: Any = joblib.load(path)
        elif ending in (".pt", ".pth"):
            import torch

            found = torch.load(path, weights_only=False)
        else:
            found = pd.read_pickle(path)
    except (pickle.UnpicklingError, EOFError, ValueError, ImportError, AttributeError) as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise TaskError(argument, f"{path} cannot be unpickled ({first_line})") from None
    if not isinstance(found, pd.DataFrame):
        raise TaskError(argument, f"{path} holds a {type(found).__name__}, not a data frame")
    return found


def _of_frame(frame: "pd.DataFrame", name: str, argument: str) -> Table:
    import pandas as pd

    # An index with a name came from a column, and a person would look for it among them.
    if any(n is not None for n in frame.index.names):
        frame = frame.reset_index()
    names = ["" if pd.api.types.is_scalar(n) and pd.isna(n) else str(n) for n in frame.columns]
    return _named(names, frame, name, argument, lambda row: f"row {row + 1}")


def _named(
    names: list[str],
    frame: "pd.DataFrame",
    name: str,
    argument: str,
    place: Callable[[int], str],
) -> Table:
    """Columns by their names, each of which must be one column's."""
    columns: dict[str, pd.Series] = {}
    unnamed = []
    for i, given in enumerate(names):
        # What pandas calls a column without a name when it writes it again.
        if not given.strip() or given.startswith("Unnamed: "):
            given = f"column {i + 1} (unnamed)"
            unnamed.append(given)
        if given in columns:
            both = [str(k + 1) for k, n in enumerate(names) if n == given]
            raise TaskError(
                argument,
                f"{name} has the name {given!r} more than once (columns {' and '.join(both)}); "
                f"give each column a name of its own",
            )
        columns[given] = frame.iloc[:, i].reset_index(drop=True)
    if not len(frame):
        raise TaskError(argument, f"{name} has a header and no rows")
    return Table(name, argument, columns, len(frame), tuple(unnamed), place)
