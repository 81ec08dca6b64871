"""What the command says of files that cannot be used, and what to do."""

import numpy as np
import pandas as pd
import pytest

QUICK = ["--optimizers", "adam", "--lr", "0.01", "--seeds", "2", "--epochs", "1"]
X = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")
Y = (X[:, 0] > 0).astype("int64")
GAPS = X.copy()
GAPS[3, 1] = np.nan


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ((X, Y[:-1]), "TASK: data.npz, train: has 60 inputs and 59 targets"),
        ((GAPS, Y), "TASK: data.npz, train: 1 of 60 samples have inputs that are NaN"),
        ((X, np.full(60, 3.0)), "TASK: data.npz has the same targets in all samples"),
        ((X, np.arange(60)), "60 different ones in 60 samples, too many to be classes; for a"),
    ],
)
def test_arrays(arrays, said, here, run):
    np.savez("data.npz", x=arrays[0], y=arrays[1])
    code, out, error = run("study", "data.npz", *QUICK)
    assert (code, out) == (2, "")
    assert said in error


def test_whole_numbers_are_said_to_be_classes(here, run):
    np.savez("data.npz", x=X, y=Y)
    code, out, error = run("study", "data.npz", *QUICK)
    assert code == 0, error
    assert "Targets are whole numbers, taken for classes: 2." in out


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["junk.npz"], "write it anew by numpy.savez(path, x=x, y=y)"),
        (["nonsense"], "tables (FILE.csv), images (mnist, fashion_mnist, cifar10)"),
        (["noending"], "'noending' is a file whose name has no ending"),
        (["one.npy"], "save both in one file by numpy.savez('one.npz', x=x, y=y)"),
        (["data.csv", "--target", "a", "--losses", "cross_entropy,mse"], "classes by --nominal a"),
        (["."], "'.' is a folder; give a file"),
        (["data.csv", "--target", "kind"], "'rare' is in line 2"),
        (["data.csv", "--target", "b", "--group", "c"], "no value in line 3; fill it in, or leave"),
    ],
)
def test_names_and_tables(typed, said, here, run):
    frame = pd.DataFrame(X, columns=["a", "b", "d"])
    frame["kind"] = ["rare", *"xy" * 29, "x"]
    frame["c"] = ["u", None, *"vwxyz" * 11, "u", "u", "u"]
    frame.to_csv("data.csv", index=False)
    np.save("one.npy", X)
    (here / "junk.npz").write_text("junk")
    (here / "noending").write_text("a,b\n1,2\n")
    code, _, error = run("study", *typed, *QUICK)
    assert code == 2
    assert said in error
    assert "np.str_" not in error


def test_rows_without_a_target_are_left_out_and_not_filled_in(here, run):
    frame = pd.DataFrame(X, columns=["a", "b", "price"])
    frame.loc[:4, "price"] = np.nan
    frame.to_csv("data.csv", index=False)
    code, _, error = run("study", "data.csv", "--target", "price", *QUICK)
    assert code == 0, error
    assert "left out" in error
    assert "taken as standardised" not in error
    (here / "bad.csv").write_text("q\n1\n")
    code, _, error = run("predict", "data", "bad.csv")
    assert code == 2
    assert "Invalid value for ROWS" in error


def test_new_rows_are_told_of_no_option_that_predict_lacks(here, run):
    frame = pd.DataFrame({"size": list("SML") * 20, "w": X[:, 0], "y": X[:, 1]})
    frame.to_csv("data.csv", index=False)
    own = ["--target", "y", "--ordinal", "size=S<M<L"]
    assert run("study", "data.csv", *own, *QUICK)[0] == 0
    for column, value in (("size", "XXL"), ("w", "inf")):
        frame.head(3).astype({column: object}).assign(**{column: value}).to_csv("new.csv")
        code, out, error = run("predict", "data", "new.csv")
        assert (code, out) == (2, "")
        assert "correct it or leave it empty" in error
        assert "--" not in error
