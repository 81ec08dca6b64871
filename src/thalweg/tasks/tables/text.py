"""Text files: every cell as text, and where what cannot be read stands."""

import codecs
import csv
import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.tasks.memory import refuse_what_does_not_fit
from thalweg.tasks.split import TaskError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["read_text"]

SAMPLE = 1 << 20  # bytes
BLOCK = 1 << 24  # bytes that Arrow parses at a time; no row may be longer


def read_text(
    path: Path, argument: str, delimiter: str, charset: str
) -> "tuple[list[str], pd.DataFrame, Callable[[int], str]]":
    """Names of columns, their cells as text, and where a row stands.

    Raises:
        TaskError: for what is not such a file.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow

    _known(charset)
    _sample(path, argument, charset)
    file = _Rows(path, argument, delimiter, charset)
    header = file.header()
    _one_column(path, header, delimiter)
    _fits(path, argument, len(header), charset)
    keys = [str(i) for i in range(len(header))]
    try:
        table = arrow.read_csv(
            str(path),
            arrow.ReadOptions(
                column_names=keys, skip_rows_after_names=1, block_size=BLOCK, encoding=charset
            ),
            arrow.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            arrow.ConvertOptions(
                column_types=dict.fromkeys(keys, pa.large_string()), strings_can_be_null=False
            ),
        )
    except (pa.ArrowException, UnicodeError) as error:
        _undecodable(path, argument, charset)
        file.uneven(len(header))
        first = (str(error) or "no message").splitlines()[0]
        raise TaskError(
            argument, f"{path} cannot be read as a table with delimiter {delimiter!r} ({first})"
        ) from None
    _no_zeros(path, argument, table, file, header)
    import pandas as pd

    text = pd.StringDtype("pyarrow")
    return header, table.to_pandas(types_mapper=lambda kind: text), file.place


def _open(path: Path) -> io.BufferedReader:
    """Bytes of a file, uncompressed."""
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(path), compression="detect"))


def _known(charset: str) -> None:
    try:
        "a".encode(charset)
    except (LookupError, ValueError):
        raise TaskError(
            "charset", f"there is no {charset!r}; utf-8, latin-1, cp1252 and utf-16 are usual"
        ) from None


def _encoding(charset: str) -> str:
    """With a mark at the start of the file skipped, as Arrow does."""
    return "utf-8-sig" if codecs.lookup(charset).name == "utf-8" else charset


def _sample(path: Path, argument: str, charset: str) -> None:
    """Refuse what the first bytes show to be no text of this charset."""
    try:
        with _open(path) as file:
            first = file.read(SAMPLE)
    except OSError:
        raise TaskError(argument, f"{path} cannot be uncompressed; is it whole?") from None
    wide = codecs.lookup(charset).name.startswith(("utf-16", "utf-32"))
    if not wide and first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise TaskError("charset", f"{path} is not {charset}: it begins as UTF-16 does; give"
                        f" --charset utf-16")  # fmt: skip
    if not wide and b"\0" in first:
        line = first[: first.index(0)].count(b"\n") + 1
        raise TaskError(
            argument, f"{path} is not a text file: line {line} has a zero byte; is it a table?"
        )
    if not first.strip():
        raise TaskError(argument, f"{path} is empty; it needs a header and rows")
    _undecodable(path, argument, charset, SAMPLE)


def _undecodable(path: Path, argument: str, charset: str, limit: int | None = None) -> None:
    """Refuse a file for the first bytes that are nothing in its charset, if there are any."""
    decoder = codecs.getincrementaldecoder(charset)()
    lines, seen = 1, 0
    with _open(path) as file:
        while block := file.read(SAMPLE):
            held = len(decoder.getstate()[0])  # bytes of a character that the last block began
            try:
                lines += decoder.decode(block).count("\n")
            except UnicodeDecodeError as error:
                broken: bytes = error.object
                line = lines + broken[: error.start].count(b"\n")
                byte = seen - held + error.start
                raise TaskError(
                    "charset",
                    f"{path} is not {charset}: line {line} has the byte "
                    f"0x{broken[error.start]:02x} (byte {byte + 1} of the file); if it was written "
                    f"by an older program, try --charset latin-1",
                ) from None
            except UnicodeError as error:
                raise TaskError("charset", f"{path} is not {charset} ({error})") from None
            seen += len(block)
            if limit is not None and seen >= limit:
                return


def _one_column(path: Path, header: list[str], delimiter: str) -> None:
    """Refuse a header that was not cut, because its columns are apart by something else."""
    for other in (";", "\t", "|", ","):
        if len(header) == 1 and other != delimiter and other in header[0]:
            shown = "tab" if other == "\t" else f"'{other}'"
            raise TaskError(
                "delimiter",
                f"{path} has one column with delimiter {delimiter!r}, named {header[0]!r}; if its "
                f"columns are apart by {shown}, give --delimiter {shown}",
            )


def _fits(path: Path, argument: str, columns: int, charset: str) -> None:
    """Refuse a file too large for the memory, by a sample of its rows."""
    size = path.stat().st_size
    with _open(path) as file:
        first = file.read(SAMPLE)
        whole = size if len(first) < SAMPLE else _uncompressed(path, size)
    rows = max(1, int(whole / len(first) * first.count(b"\n")))
    # Measured with files of 8 MB and 1 GB: text with its offsets, numbers, their encoding, three
    # parts, and what the parser holds of blocks that it works on.
    need = 1.1 * whole + rows * columns * 36 + 6 * min(whole, BLOCK)
    refuse_what_does_not_fit(str(path), argument, rows, size, need)


def _uncompressed(path: Path, size: int) -> int:
    """Bytes of the text in a file; of a compressed one a guess, as if all of it were alike."""
    import pyarrow as pa

    if path.suffix.lower() not in (".gz", ".bz2", ".zst"):
        return size
    kind = pa.Codec.detect(str(path)).name
    with pa.OSFile(str(path)) as raw, pa.CompressedInputStream(raw, kind) as stream:
        read = sum(len(stream.read(SAMPLE)) for _ in range(8))
        return int(size * read / max(1, raw.tell()))


def _no_zeros(path: Path, argument: str, table: Any, file: "_Rows", header: list[str]) -> None:
    import pyarrow.compute as pc

    for name, column in zip(header, table.columns, strict=True):
        bad = pc.match_substring(column, "\0")
        if pc.any(bad).as_py():
            row = pc.index(bad, True).as_py()
            raise TaskError(
                argument,
                f"{path}, {file.place(row)}, column {name!r} has a zero byte, which no text has; "
                f"is the file damaged?",
            )


class _Rows:
    """A text file row by row, which is slow, and wanted for its beginning and for messages."""

    def __init__(self, path: Path, argument: str, delimiter: str, charset: str) -> None:
        self._path, self._argument = path, argument
        self._delimiter, self._charset = delimiter, charset

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Lines on which rows begin, and their cells; blank lines are none."""
        with (
            _open(self._path) as file,
            io.TextIOWrapper(file, encoding=_encoding(self._charset), newline="") as text,
        ):
            reader = csv.reader(text, delimiter=self._delimiter)
            begun = 1
            for cells in reader:
                if cells:
                    yield begun, cells
                begun = reader.line_num + 1

    def header(self) -> list[str]:
        """Names of the columns."""
        try:
            found = next(self._rows(), None)
        except (csv.Error, UnicodeError) as error:
            raise TaskError(
                self._argument, f"the header of {self._path} cannot be read ({error})"
            ) from None
        if found is None:
            raise TaskError(self._argument, f"{self._path} is empty; it needs a header and rows")
        return found[1]

    def place(self, row: int) -> str:
        """Where a row stands, counted from 0 after the header."""
        with suppress(csv.Error, UnicodeError):
            for i, (line, _) in enumerate(self._rows()):
                if i == row + 1:
                    return f"line {line}"
        return f"row {row + 1}"

    def uneven(self, columns: int) -> None:
        """Refuse the file for the first row with more or fewer cells than the header."""
        with suppress(csv.Error, UnicodeError):
            for line, cells in self._rows():
                if len(cells) == columns:
                    continue
                opened = any("\n" in cell for cell in cells)
                hint = "is a quotation mark never closed?" if opened else (
                    f"correct it, or, if columns are apart by something other than "
                    f"{self._delimiter!r}, give --delimiter"
                )  # fmt: skip
                raise TaskError(
                    self._argument,
                    f"line {line} of {self._path} has {len(cells)} fields, and the header "
                    f"{columns}; {hint}",
                )
