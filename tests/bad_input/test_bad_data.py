"""Files and arrays of one's own that `load` refuses, and fields of a `Dataset` that do not fit each other."""

import math
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import Table, check_refusal

import pyrovae as pv

CASES = Table()
add = CASES.add


def text(content: str | bytes, name: str = "mine.csv"):
    """Makes a file in the working folder."""
    return lambda: Path(name).write_bytes(content.encode() if isinstance(content, str) else content)


def table(name: str, said: str, content: str | bytes, **settings) -> None:
    add(f"csv: {name}", said, pv.load, "mine.csv", given=text(content), **settings)


HINT = "; if the column holds categories, say kinds={'a': 'category'}"
BODY = "".join(f"{i}.5,{i % 3}\n" for i in range(20))
table("empty", "mine.csv is empty", "")
table("blank", "mine.csv is empty", "\n \n")
table("a header alone", "mine.csv has a header and no rows below it", "a,b\n")
table("one row", r"mine.csv has 1 row, too few for shares 0.8, 0.1, 0.1; shares=\(1, 0, 0\) takes .+", "a,b\n1,2\n")
table("two rows", "mine.csv has 2 rows, too few for shares .+", "a,b\n1,2\n3,4\n")
table("a short row", "mine.csv, row 3: must have 2 cells, as the first row, got 1", "a,b\n1,2\n3\n4,5\n")
table("a long row", "mine.csv, row 4: must have 2 cells, as the first row, got 3", "a,b\n1,2\n\n3,4,5\n")
table("an open quote", r"mine.csv, line \d: not a row of values \(.+\)", 'a,b\n1,"2\n3,4\n')
table("a header twice", "mine.csv, row 4: repeats the header of row 1", "a,b\n1,x\n2,y\na,b\n3,x\n")
table("a name twice", "mine.csv, row 1: the name 'a' must be unique, and is there twice or more", "a,b,a\n1,2,3\n")
table("a column without a name", r"mine.csv, row 1: column 1 has no name; name it, .+index=False\)\)", ",b\n0,2\n1,3\n")
table(
    "text in a number's column",
    f"mine.csv, row 23, column 'a': must be a number, got 'six'{HINT}",
    f"a,b\n{BODY}\nsix,1\n",
)
POINT = "must be a number with a decimal point, got"
table("a decimal comma", f"mine.csv, row 22, column 'a': {POINT} '3,14'", f'a,b\n{BODY}"3,14",1\n')
COMMAS = "".join(f"{i % 3},5;{i}.5\n" for i in range(30))
table("decimal commas, few enough for a category", f"mine.csv, row 2, column 'a': {POINT} '0,5'", f"a;b\n{COMMAS}")
table("text in a count", "mine.csv, row 2, column 'a': must be a number, got 'x'", "a\nx\ny\n", kinds={"a": "count"})
table("infinity", "mine.csv, row 22, column 'a': must be finite, got inf", f"a,b\n{BODY}inf,1\n")
table(
    "a missing cell",
    """mine.csv, row 22, column 'b': the cell is missing; missing='mask' keeps .+""",
    f"a,b\n{BODY}1,NaN\n",
)
table(
    "a fraction as a count",
    "mine.csv, row 2, column 'a': must be a whole number .+, got 0.5",
    f"a,b\n{BODY}",
    kinds={"a": "count"},
)
table(
    "0 as positive",
    "mine.csv, row 2, column 'b': must be above 0 as a positive number, got 0",
    f"a,b\n{BODY}",
    kinds={"b": "positive"},
)
table(
    "1 as a unit",
    r"mine.csv, row 2, column 'b': must lie between 0 and 1 .+, got 0",
    f"a,b\n{BODY}",
    kinds={"b": "unit"},
)
table(
    "three values as binary",
    "mine.csv, column 'b': must have two values as binary, got '0', '1', '2'",
    f"a,b\n{BODY}",
    kinds={"b": "binary"},
)
table(
    "one value as a category",
    "mine.csv, column 'a': must have two values or more .+, got 'x'",
    "a\nx\nx\nx\n",
)
table("a large count", "mine.csv, row 2, column 'a': torch.float32 does not hold 16777217", "a\n16777217\n1\n2\n")
table(
    "a name for each row",
    "mine.csv, column 'a': holds 30 different texts, too many for a category; leave it out with exclude=.+",
    "a\n" + "".join(f"n{i}\n" for i in range(30)),
)
blank = """mine.csv, row {}, column 'a': the cell is missing; .+"""
table("a blank line in one column", blank.format(3), "a\n1\n\n2\n")
table("an empty last cell of one column", blank.format(3), 'a\n1\n""\n \n')
table(
    "a column without cells",
    "mine.csv, column 'a': every cell is missing; leave it out with exclude=.+",
    "a,b\n,1\n,2\n,3\n",
    missing="mask",
)
table(
    "a constant to standardise",
    "mine.csv, column 'a': must vary in the training data to be standardised, all of it is -0.1; .+",
    "a\n" + "-0.1\n" * 9,
    standardise=True,
)
table(
    "no such label", r"label_column must name columns of mine.csv \(a, b\), got 'c'", f"a,b\n{BODY}", label_column="c"
)
table("a label close by", ".+, got 'heigth': did you mean height[?]", f"height,b\n{BODY}", columns=["heigth"])
for columns in (["spnd"], ["age", "spnd"]):  # of those of the file that had been read, the second listed `age` alone
    known = r"columns must name columns of mine.csv \(age, spend, city\), got 'spnd': did you mean spend[?]"
    table(f"a column close by, {len(columns)}", known, "age,spend,city\n1,2,3\n", columns=columns)
table("columns as a text", "columns must be a list of names of columns, got 'a'", f"a,b\n{BODY}", columns="a")
table("exclude as a text", "exclude must be a list of names of columns, got 'a'", f"a,b\n{BODY}", exclude="a")
table("exclude close by", "exclude must name .+, got 'heigth': did .+", f"height,b\n{BODY}", exclude=["heigth"])
table("exclude of all columns chosen", "columns must name .+", f"a,b\n{BODY}", columns=["a"], exclude=["a"])
others = "exclude must not name the column of the labels or of the split, got b"
table("exclude of the labels", others, f"a,b\n{BODY}", exclude=["b"], label_column="b")
table("exclude of all", "columns must name at least one column of x, .+", f"a,b\n{BODY}", exclude=["a", "b"])
for first in ("2024-05-{:02d}", "{:02d}/05/2024", "2024-05-{:02d}T10:00"):
    dates = "".join(f"{first.format(day)},1\n" for day in range(1, 31))
    said = r"mine.csv, column 'a': holds 30 different texts that look like dates, as '.+'; leave it out with .+"
    table(f"dates, {first}", said, f"a,b\n{dates}")
table(
    "a missing label", "mine.csv, row 22, column 'b': a label must not be missing", f"a,b\n{BODY}1,\n", label_column="b"
)
table(
    "a fraction as a label",
    "mine.csv, row 2, column 'a': a label must be a whole number or a text, got 0.5",
    f"a,b\n{BODY}",
    label_column="a",
)
table(
    "an unknown split",
    "mine.csv, row 2, column 'b': must be train, validation or test, got '0'",
    f"a,b\n{BODY}",
    split_column="b",
)
table("an unknown kind", "kinds must be one of continuous, .+; got 'real'", f"a,b\n{BODY}", kinds={"a": "real"})
table(
    "kinds of no column", r"kinds must name columns of mine.csv \(a, b\), got 'c'", f"a,b\n{BODY}", kinds={"c": "count"}
)
table("shares of two", r"shares must be three numbers, .+; got \(0.5, 0.5\)", f"a,b\n{BODY}", shares=(0.5, 0.5))
table("shares below 0", "shares must be 0 or more, got -1", f"a,b\n{BODY}", shares=(1, -1, 1))
beside = "split_column must not be given beside another split or shares"
table("shares and a split", beside, "a,b\n1,train\n", split_column="b", shares=(1, 0, 0))
table("missing=drop", """missing must be None or "mask", got 'drop'""", f"a,b\n{BODY}", missing="drop")
table(
    "binarize", "binarize is for image sets, and mine.csv is a table; got 'static'", f"a,b\n{BODY}", binarize="static"
)
table("num_test", "num_test is for data sets that .+, and mine.csv is a table; got 3", f"a,b\n{BODY}", num_test=3)
LATIN = f"a,b\n{BODY}1.5,caf\xe9\n"
table(
    "mixed encodings",
    "mine.csv, row 23: must be in UTF-8, got the byte 0xe9, in Latin-1 '1.5,café'; save the file as UTF-8",
    "é,b\n".encode() + LATIN.encode("latin-1"),
)
wide = ",".join(f"c{i}" for i in range(10**6)) + "\n" + ",".join("1" * 10**6) + "\n"
table("10^6 columns", "mine.csv has 1,000,000 columns, more than 100,000: choose some with columns=", wide)

for name in ("no.csv", "no/such/folder", "no.npz"):
    add(f"no file: {name}", f"'{name}' is no file or folder in .+", pv.load, name)
add(
    "a text file",
    "a.txt must be a folder or a file of type .csv, .+, got .txt",
    pv.load,
    "a.txt",
    given=text("1", "a.txt"),
)


class Code:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return print, ("code was run",)


def arrays(name: str, said: str, file: str = "mine.npz", given=lambda: None, **settings) -> None:
    add(f"arrays: {name}", said, pv.load, file, given=given, **settings)


def npz(**found):
    return lambda: np.savez("mine.npz", **found)


X = np.random.default_rng(0).normal(size=(20, 3))
KNOWN = "x and y, or train_x, train_y, ..., test_y"
arrays("none", f"mine.npz must hold arrays named {KNOWN}; got none", given=npz())
arrays("other names", f"mine.npz must hold arrays named {KNOWN}; got a, b", given=npz(a=X, b=X))
arrays(
    "objects",
    r"mine.npz is not a readable .npz file of arrays \(.+allow_pickle=False\)",
    given=npz(x=np.array([Code()])),
)
arrays(
    "npy of objects",
    "mine.npy is not a readable .npy file .+",
    "mine.npy",
    given=lambda: np.save("mine.npy", np.array([Code()])),
)
arrays("a pickle", "mine.npy is not a readable .npy file .+", "mine.npy", given=text(pickle.dumps(Code()), "mine.npy"))
arrays(
    "pt with code",
    "mine.pt must hold tensors alone, and not objects that run code .+",
    "mine.pt",
    given=lambda: torch.save({"x": Code()}, "mine.pt"),
)
for file in ("mine.npy", "mine.npz", "mine.pt"):
    arrays(f"rubbish as {file}", f"{file} .+", file, given=text("rubbish", file))
    arrays(f"empty {file}", f"{file} is not a readable .+", file, given=text("", file))
arrays(
    "other lengths", "mine.npz: y must have a row for each of the 20 rows of x, got 19", given=npz(x=X, y=np.zeros(19))
)
arrays("other shapes", "mine.npz: x must have one shape in every split, got .+", given=npz(train_x=X, test_x=X[:, :2]))
arrays(
    "y of one split", "mine.npz: y must have a row for each row of x, got .+", given=npz(train_x=X, test_x=X, test_y=X)
)
arrays(
    "shares", "shares must not be given where mine.npz has arrays of each split", given=npz(train_x=X), shares=(1, 0, 0)
)
arrays("one name more", f"mine.npz must hold arrays named {KNOWN}; got x, labels", given=npz(x=X, labels=X))
times = 1.7e9 + np.arange(20.0)[:, None]
arrays(
    "seconds",
    "mine.npz, column 'x1': must be of torch.float32, .+ 1700000001.0 .+ lose digits in it",
    given=npz(x=times),
    kinds="continuous",
)
texts = np.array([["a", "b"]] * 20)
for given in ({"x": texts}, {"train_x": texts}, {"x": texts[:, 0].astype("U")}):
    arrays(f"texts as {[*given]}", "mine.npz, array .*x: must hold numbers, got texts; .+", given=npz(**given))
add("arrays: texts", "source, array x: must hold numbers, got texts; .+", pv.load, texts.astype(object))
sparse = torch.eye(5).to_sparse()
add("arrays: sparse", "source, array x must be a dense tensor of numbers, got torch.sparse_coo", pv.load, sparse)
big = 2**53 + np.arange(20)
EXACT = r"must lie between -2\^53 and 2\^53 to be told from others"
large_label = f"a label {EXACT}, or be a text, got 9007199254740992"
arrays("large labels", f"mine.npz, array y, index 0: {large_label}", given=npz(x=X, y=big))
for sign in (1, -1):
    arrays(
        f"large categories {sign}",
        f"mine.npz, index 0, column 'x1': {EXACT} as a category, got -?9007199254740992",
        given=npz(x=sign * big[:, None]),
        kinds="category",
    )
lines = "a,b\n" + "".join(f"{i % 3}.5,{value}\n" for i, value in enumerate(big.tolist()))
table("large labels", f"mine.csv, row 2, column 'b': {large_label}", lines, label_column="b")
for shape in ((5, 8, 8, 4), (5, 4, 8, 8), (5, 8, 8, 2)):
    arrays(
        f"bytes {shape}",
        r"mine.npz, array x: bytes in 4 dimensions must be images of 1 or 3 channels, got shape \(5, .+\); drop .+",
        given=npz(x=np.zeros(shape, np.uint8)),
    )
arrays("no data", r"mine.npz: x must hold at least one datum, got shape \(0, 3\)", given=npz(x=X[:0], y=X[:0]))
arrays("complex", r"mine.npz, array x: must hold numbers, .+, got complex128 .+", given=npz(x=X * 1j))
arrays(
    "nan", """mine.npz, index 1, column 'x3': the cell is missing; .+""", given=npz(x=np.where(X[1, 2] == X, np.nan, X))
)
cube = np.where(X[1, 2] == X, np.nan, X)[:, :, None]
arrays("nan in a cube", r"mine.npz, array x: must be finite, got nan at index \(1, 2, 0\); .+", given=npz(x=cube))
arrays(
    "columns of a cube",
    "columns is for tables, and mine.npz holds an array of 3 dimensions; got .+",
    given=npz(x=X[:, :, None]),
    columns=["x1"],
)
arrays(
    "pixels of a table",
    "binarize is for image sets, and mine.npz holds a table; got 'none'",
    given=npz(x=X),
    binarize="none",
)
add("arrays: three", r"source must be x, \(x, y\) or a dict of arrays, got a tuple of 3", pv.load, (X, X, X))
add("arrays: a list within", "source, array x: must be an array or a tensor, got list", pv.load, ([1, 2], X))


for value in (3, [["a"]], "a"):
    add(f"arrays: columns {value}", "columns must be a list of names of columns, got .+", pv.load, X, columns=value)
add("arrays: label 3", "label_column must be the name of a column, got 3", pv.load, X, label_column=3)


add("function: no module", "nowhere:data: there is no module nowhere in .+", pv.load, "nowhere:data")
add("function: none", "math:data: the module math has no function data", pv.load, "math:data")
add("function: another result", "builtins:dict must return a pyrovae.Dataset, got dict", pv.load, "builtins:dict")
add(
    "function: with options",
    "shares is for data of one's own, and math:pi is a function, .+; got .+",
    pv.load,
    "math:pi",
    shares=(1, 0, 0),
)

FIELDS = {
    "name": "mine",
    "kind": "real",
    **{f"{split}_x": torch.zeros(4, 3) for split in ("train", "validation", "test")},
    **{f"{split}_y": torch.zeros(4, dtype=torch.long) for split in ("train", "validation", "test")},
}
for field, value, said in (
    ("name", 3, "name must be a text, got 3"),
    ("kind", "images", "kind must be one of real, .+; got 'images'"),
    ("train_x", None, r"train_x must be a floating-point tensor .+, got NoneType; pv.load\(\(x, y\)\) .+"),
    ("train_x", X, "train_x must be a floating-point tensor .+, got ndarray; .+"),
    (
        "train_x",
        torch.zeros(4, 3, dtype=torch.long),
        r"train_x must be a floating-point tensor .+, got torch.int64 \(4, 3\)",
    ),
    ("train_x", torch.zeros(0, 3), "train_y must be .+ of 0 rows, .+"),
    (
        "test_x",
        torch.zeros(4, 2),
        r"test_x must be as train_x, torch.float32 \(4, 3\), save .+; got torch.float32 \(4, 2\)",
    ),
    ("test_x", torch.zeros(4, 3).double(), "test_x must be as train_x, .+; got torch.float64 .+"),
    ("validation_y", None, r"validation_y must be .+ of 4 rows, as x has, or \(\) for none; got NoneType"),
    ("train_y", torch.zeros(5), r"train_y must be .+ of 4 rows, as x has, .+; got torch.float32 \(5,\)"),
    ("test_y", (), "test_y must have as many parts as train_y"),
    ("train_grey", torch.zeros(4, 3), r"train_grey must be None or a uint8 tensor of shape \(4, 3\), .+"),
    ("log_density", 1.0, "log_density must be a function, got 1.0"),
    (
        "columns",
        (pv.Column("a", "count"),),
        r"columns must be a tuple of a Column for each element of x, \(3,\), or \(\)",
    ),
    ("classes", (0, 1), r"classes must be a tuple of texts, got \(0, 1\)"),
):
    add(f"Dataset: {field} {type(value).__name__} {said[:30]}", said, partial(pv.Dataset, **{**FIELDS, field: value}))
add("Column: kind", "kind must be one of continuous, .+; got 'real'", pv.Column, "a", "real")
assert math.isnan(cube[1, 2, 0])


@pytest.mark.parametrize("case", CASES.parameters())
def test_bad_input_is_one_line_that_names_field_rule_and_value_and_nothing_is_written(case, tmp_path, capsys):
    check_refusal(case, tmp_path, capsys)
