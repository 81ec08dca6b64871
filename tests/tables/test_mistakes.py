"""Every mistake is one sentence, with the place and what to do."""

import gzip
import io
import pickle
import re

import numpy as np
import pandas as pd
import pytest

from tests.tables.files import HEADER, changed, refused, rows, write
from thalweg.tasks import TaskError
from thalweg.tasks.tables import table


def _refuses(data, argument, problem, target="y", **options):
    found = refused(data, target, **options)
    assert found[0] == argument
    assert re.search(problem, found[1]), found[1]


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\n", b"\xef\xbb\xbf"])
def test_an_empty_file(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    _refuses(tmp_path / "t.csv", "task", "is empty")


def test_a_header_alone(tmp_path):
    _refuses(write(tmp_path / "t.csv", []), "task", "has a header and no rows")
    _refuses(pd.DataFrame({"y": []}), "task", "has a header and no rows")


@pytest.mark.parametrize(("delimiter", "said"), [(";", "';'"), ("\t", "tab"), ("|", "'|'")])
def test_another_delimiter(tmp_path, delimiter, said):
    path = write(tmp_path / "t.csv", rows(), delimiter=delimiter)
    _refuses(path, "delimiter", rf"give --delimiter {re.escape(said)}$")
    assert len(table(path, "y", delimiter=delimiter).columns) == 3
    assert len(table(path, "y", delimiter="tab" if delimiter == "\t" else delimiter).columns) == 3


def test_a_comma_in_a_tsv(tmp_path):
    _refuses(write(tmp_path / "t.tsv", rows()), "delimiter", "give --delimiter ','")
    _refuses(write(tmp_path / "t.csv", rows()), "delimiter", "one character", delimiter=";;")


def test_a_target_that_is_not_there(tmp_path):
    path = write(tmp_path / "t.csv", rows(), header=["size", "price", "y"])
    _refuses(path, "target", "has no column 'prize'; did you mean 'price'", target="prize")
    _refuses(path, "target", "did you mean 'y'", target="Y")
    _refuses(path, "target", "there are 'size', 'price', 'y'", target="nothing like it")


def test_a_target_of_which_nothing_can_be_learned(tmp_path):
    def with_target(name, value):
        return write(tmp_path / name, [[a, b, value(i)] for i, (a, b, _) in enumerate(rows())])

    _refuses(with_target("1.csv", lambda i: "u"), "target", "'y' of .* is 'u' in all rows")
    _refuses(with_target("2.csv", lambda i: "3"), "target", "is '3' in all rows")
    _refuses(with_target("3.csv", lambda i: f"n{i}"), "target", "another value in each .* 60 rows")
    _refuses(with_target("4.csv", str), "target", "counts the rows")
    _refuses(with_target("5.csv", lambda i: ""), "target", "has no values at all")
    _refuses(with_target("6.csv", lambda i: f"2020-01-{i % 9 + 1:02}"), "target", "has dates")


def test_columns_of_nothing(tmp_path):
    cells = [["", "NA", y] for _, _, y in rows()]
    path = write(tmp_path / "t.csv", cells)
    _refuses(path, "task", "column 'a' of .*t.csv has no value in any row; leave it .*--drop a")
    _refuses(path, "task", "no column to learn 'y' from", drop=["a", "b"])
    _refuses(path, "numeric", "'a' of .* has no values at all", numeric=["a"])
    _refuses(
        write(tmp_path / "y.csv", [["u"], ["v"]] * 9, header=["y"]), "task", "no column to lea"
    )


@pytest.mark.parametrize("value", ["inf", "-inf", "Infinity", "1e400"])
def test_an_infinite_number(tmp_path, value):
    path = write(tmp_path / "t.csv", changed(7, 0, value))
    _refuses(path, "task", r"column 'a' of .* has an infinite number in line 9; .*--drop a")
    frame = pd.read_csv(path)
    _refuses(frame, "task", "column 'a' of the table has an infinite number in row 8")


def test_a_column_of_numbers_with_something_else(tmp_path):
    path = write(tmp_path / "t.csv", changed(7, 0, "oops"))
    problem = "'a' of .* has numbers in 59 of 60 rows, and line 9 has 'oops'.*--nominal a.*--drop a"
    _refuses(path, "task", problem)
    _refuses(path, "numeric", "line 9 'oops', which is not a number", numeric=["a"])
    assert table(path, "y", nominal=["a"]).columns[0].kind == "nominal"


def test_text_with_numbers_among_it_is_pointed_out(tmp_path):
    cells = [[str(i % 3) if i % 5 < 2 else "few", b, y] for i, (_, b, y) in enumerate(rows())]
    path = write(tmp_path / "t.csv", cells)
    column = table(path, "y").columns[0]
    assert column.kind == "nominal"
    assert re.fullmatch(
        r"text, but \d\d % are numbers: correct the rest \('few'\) if all should be, or give "
        "--nominal a",
        column.why,
    )
    assert table(path, "y", nominal=["a"]).columns[0].why == "--nominal"
    cells = [["few" if i % 9 else "a lot", b, y] for i, (_, b, y) in enumerate(rows())]
    assert table(write(tmp_path / "u.csv", cells), "y").columns[0].why == "text"


def test_decimal_commas(tmp_path):
    cells = [[a.replace(".", ","), b, y] for a, b, y in rows()]
    path = write(tmp_path / "t.csv", cells, delimiter=";")
    _refuses(path, "task", r"line 2 '0,126', .*decimal point must be a point", delimiter=";")


def test_names(tmp_path):
    path = write(tmp_path / "t.csv", rows(), header=["a", "a", "y"])
    _refuses(path, "task", r"name 'a' more than once \(columns 1 and 2\)")
    _refuses(pd.DataFrame(rows(), columns=["a", "a", "y"]), "task", "name 'a' more than once")
    task = table(write(tmp_path / "u.csv", rows(), header=["", "b", "y"]), "y")
    assert [c.kind for c in task.columns] == ["ignored", "numeric", "target"]
    assert any("column 1 (unnamed)' is ignored: it has no name" in n for n in task.notes)


def test_text_that_is_not_utf_8(tmp_path):
    path = write(tmp_path / "t.csv", changed(9, 2, "é"), charset="latin-1")
    byte = path.read_bytes().index(b"\xe9") + 1
    _refuses(path, "charset", rf"line 11 has the byte 0xe9 \(byte {byte} of.*--charset latin-1")
    _refuses(path, "target", "class é has 1 of 60", charset="latin-1")
    path = write(tmp_path / "header.csv", rows(), header=["ü", "b", "y"], charset="latin-1")
    _refuses(path, "charset", "line 1 has the byte 0xfc")
    # Far beyond the sample that is looked at first.
    long = [["1.5", "x" * 500, "u"]] * 5000 + [["2", "ø", "v"]]
    _refuses(
        write(tmp_path / "l.csv", long, charset="latin-1"), "charset", "line 5002 has the byte"
    )
    _refuses(path, "charset", "there is no 'utf7b'", charset="utf7b")
    _refuses(path, "charset", "there is no 'zlib'", charset="zlib")


def test_utf_16(tmp_path):
    path = write(tmp_path / "t.csv", rows(), header=["ü", "b", "y"], charset="utf-16")
    _refuses(path, "charset", "begins as UTF-16 does; give --charset utf-16")
    assert table(path, "y", charset="utf-16").columns[0].name == "ü"
    _refuses(write(tmp_path / "u.csv", rows()), "charset", "is not utf-16", charset="utf-16")


@pytest.mark.parametrize(("cells", "fields"), [(["1", "2"], 2), (["1", "2", "u", "x"], 4)])
def test_rows_of_another_length(tmp_path, cells, fields):
    found = rows()
    found[11] = cells
    path = write(tmp_path / "t.csv", found)
    _refuses(path, "task", f"line 13 of .* has {fields} fields, and the header 3")


def test_lines_are_those_of_the_file(tmp_path):
    cells = changed(20, 0, "oops")
    cells[3][1] = '"1\n"'
    path = write(tmp_path / "t.csv", cells, header=['"a\nb"', "b", "y"])
    path.write_bytes(path.read_bytes().replace(b"\n-0.5", b"\n\n-0.5", 1))
    lines = path.read_text().split("\n")
    line = next(i for i, text in enumerate(lines, 1) if text.startswith("oops"))
    assert line > 23
    _refuses(path, "task", f"line {line} has 'oops'")


def test_a_quotation_mark_never_closed(tmp_path):
    path = write(tmp_path / "t.csv", changed(11, 0, '"x'))
    _refuses(path, "task", "line 13 of .*is a quotation mark never closed")


@pytest.mark.parametrize(
    "content", [b"a,y\0\n1,2\n", b"a,y\n" + b"1,u\n2,v\n" * 300_000 + b"\0,u\n"]
)
def test_zero_bytes(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    line = content.count(b"\n")
    line = 1 if line == 2 else line
    _refuses(tmp_path / "t.csv", "task", f"line {line}.* has a zero byte")


def test_bytes_of_no_kind(tmp_path):
    noise = np.random.default_rng(0).bytes(5000)
    for name in ("t.csv", "t.parquet", "t.csv.gz"):
        (tmp_path / name).write_bytes(noise)
        refused(tmp_path / name)
    whole = gzip.compress(write(tmp_path / "w.csv", rows()).read_bytes())
    (tmp_path / "cut.csv.gz").write_bytes(whole[:-30])
    _refuses(tmp_path / "cut.csv.gz", "task", "cannot be uncompressed; is it whole")


def test_a_rare_class(tmp_path):
    path = write(tmp_path / "t.csv", changed(11, 2, "rare"))
    _refuses(path, "target", "class rare has 1 of 60 samples, and each class needs at least 3")


@pytest.mark.parametrize("ending", [".pkl", ".pickle", ".joblib", ".pt"])
def test_pickles_are_refused(tmp_path, ending):
    touched = tmp_path / "touched"

    class Malicious:
        def __reduce__(self):
            return touched.touch, ()

    path = tmp_path / f"t{ending}"
    path.write_bytes(pickle.dumps(Malicious()))
    _refuses(path, "task", "is a pickle.*--trust-pickle")
    assert not touched.exists()


def test_a_trusted_pickle(tmp_path):
    frame = pd.read_csv(io.StringIO("\n".join(map(",".join, [HEADER, *rows()]))))
    frame.to_pickle(tmp_path / "t.pkl")
    found = table(tmp_path / "t.pkl", "y", trust_pickle=True)
    assert found.fingerprint == table(frame, "y", name="t").fingerprint
    (tmp_path / "n.pkl").write_bytes(pickle.dumps([1, 2]))
    _refuses(tmp_path / "n.pkl", "task", "holds a list, not a data frame", trust_pickle=True)
    (tmp_path / "b.pkl").write_bytes(b"abc")
    _refuses(tmp_path / "b.pkl", "task", "cannot be unpickled", trust_pickle=True)


def test_files_that_are_none(tmp_path):
    write(tmp_path / "houses.csv", rows())
    _refuses(tmp_path / "house.csv", "task", "there is no file .*did you mean .*houses.csv")
    _refuses(tmp_path, "task", "is a folder")
    for name in ("t.xlsx", "t.json", "t"):
        (tmp_path / name).write_text("{}")
        _refuses(tmp_path / name, "task", "save it as CSV, TSV or Parquet")


def test_another_table_must_have_the_same_columns(tmp_path):
    main = write(tmp_path / "t.csv", rows())
    other = write(tmp_path / "v.csv", rows(9), header=["q", "b", "y"])
    _refuses(main, "validation", "lacks column 'a'", validation=other)
    _refuses(main, "test", "no column 'y', the target", test=pd.DataFrame({"a": [1.0], "b": [1]}))
    other = write(tmp_path / "w.csv", changed(3, 2, "w", 9))
    _refuses(main, "test", "has 'w' in line 5, a class that the training rows never", test=other)
    other = write(tmp_path / "x.csv", changed(3, 1, "z", 9))
    _refuses(main, "test", "has in line 5 'z', which is not a number", test=other)


def test_orders(tmp_path):
    path = write(tmp_path / "t.csv", rows())
    _refuses(path, "task", "'2' in line 4, which is not in its order 0 < 1", ordinal=["b=0<1"])
    _refuses(path, "ordinal", "needs its values from low to high", ordinal=["b"])
    _refuses(path, "ordinal", "has a value twice", ordinal={"b": ["0", "0"]})
    other = write(tmp_path / "v.csv", changed(3, 1, "9", 9))
    order = ["b=0<1<2<3<4<5<6"]
    _refuses(path, "validation", "'9' in line 5, which is not", ordinal=order, validation=other)


@pytest.mark.parametrize(
    ("options", "argument", "problem"),
    [
        ({"numeric": ["b"], "nominal": ["b"]}, "nominal", "with --numeric too"),
        ({"drop": ["a", "b"]}, "task", "no column to learn 'y' from"),
        ({"drop": ["z"]}, "drop", "has no column 'z'"),
        ({"drop": ["y"]}, "drop", "with --target too"),
        ({"time": "a", "group": "b"}, "time", "by --group or by --time, not by both"),
        ({"hidden": [64, 0]}, "hidden", "1 or more, got 0"),
        ({"encodings": ["onehot"]}, "encodings", "needs two to compare"),
        ({"encodings": ["onehot,hash"]}, "encodings", "no encoding 'hash'"),
        ({"encodings": ["onehot", "ordinal"]}, "encodings", "no column has any"),
        ({"encodings": {"b": ["onehot", "ordinal"]}}, "encodings", "--nominal b does that"),
        ({"loss": "hinges"}, "loss", "there is no loss 'hinges'"),
    ],
)
def test_options(tmp_path, options, argument, problem):
    _refuses(write(tmp_path / "t.csv", rows()), argument, problem, **options)


def test_division(tmp_path):
    cells = [[a, "2020" if i < 40 else "", y] for i, (a, _, y) in enumerate(rows())]
    path = write(tmp_path / "t.csv", cells)
    _refuses(path, "time", "'b' of .* has no value in line 42", time="b")
    _refuses(path, "group", "'b' of .* has no value in line 42", group="b")
    _refuses(path, "time", "neither numbers nor dates", target="a", time="y")
    _refuses(path, "group", "for two of them are given", group="b", test=path, validation=path)


def test_a_class_of_later_times_alone():
    frame = pd.DataFrame(
        {"a": np.arange(50) % 7, "when": np.arange(50), "y": ["u"] * 35 + ["v"] * 15}
    )
    _refuses(frame, "time", "class 'v' .*for validation and not in those for training", time="when")


def test_objects_that_are_no_values():
    frame = pd.DataFrame({"a": [[1, 2]] * 20, "b": range(0, 40, 2), "y": ["u", "v"] * 10})
    _refuses(frame, "task", r"column 'a' of the table has values like \[1, 2\].*--drop a")
    assert [c.kind for c in table(frame, "y", drop=["a"]).columns] == [
        "ignored",
        "numeric",
        "target",
    ]
    with pytest.raises(TaskError, match="complex128"):
        table(frame.assign(a=1j), "y")
