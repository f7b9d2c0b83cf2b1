"""Tables: their columns and kinds, labels, splits, missing cells, standardisation, and log p(x) in the file's units."""

import math
from time import perf_counter

import numpy as np
import pytest
import torch
from helpers import refusal

import pyrovae as pv

PEOPLE = """\ufeffage,height,smoker,city,income,group
31,1.75,no,"Bonn, am Rhein",1200,b
40,1.62,yes,Paris,3100.5,a
,1.80,no,Oslo,,b
28,NA,no,Paris,2500,c
55,1.71,yes,Oslo,1800,a
"""


def write(folder, text: str, name: str = "people.csv", encoding: str = "utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture
def people(tmp_path):
    return write(tmp_path, PEOPLE)


def test_kinds_are_guessed_and_cells_become_numbers(people):
    data = pv.load(people, missing="mask", label_column="group", shares=(1, 0, 0))
    assert [(column.name, column.kind) for column in data.columns] == [
        ("age", "count"),
        ("height", "continuous"),
        ("smoker", "binary"),
        ("city", "category"),
        ("income", "continuous"),
    ]
    assert data.columns[2].categories == ("no", "yes")
    assert data.columns[3].categories == ("Bonn, am Rhein", "Oslo", "Paris")
    nan = math.nan
    expected = [[31, 1.75, 0, 0, 1200], [40, 1.62, 1, 2, 3100.5], [nan, 1.8, 0, 1, nan], [28, nan, 0, 2, 2500]]
    torch.testing.assert_close(data.train_x, torch.tensor([*expected, [55, 1.71, 1, 1, 1800]]), equal_nan=True)
    assert (data.classes, data.train_y.tolist()) == (("a", "b", "c"), [1, 0, 1, 2, 0])
    assert (data.kind, data.name, data.event_shape) == ("mixed", "people", (5,))
    torch.testing.assert_close(data.train_mean[0], torch.tensor((31 + 40 + 28 + 55) / 4))


def test_columns_and_kinds_are_as_asked(people):
    data = pv.load(people, columns=["income", "age"], kinds={"age": "continuous", "income": "positive"}, missing="mask")
    assert [(one.name, one.kind) for one in data.columns] == [("income", "positive"), ("age", "continuous")]
    assert data.train_y == ()
    one_kind = pv.load(people, columns=["height", "age"], kinds="continuous", missing="mask")
    assert (one_kind.kind, [one.kind for one in one_kind.columns]) == ("real", ["continuous"] * 2)
    numbers = pv.load(
        (np.array([[3.0, 7], [5, 7], [3, 9]])), kinds={"x1": "category", "x2": "binary"}, shares=(1, 0, 0)
    )
    assert [one.categories for one in numbers.columns] == [("3", "5"), ("7", "9")]
    assert numbers.train_x.tolist() == [[0, 0], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("1,2\n3,4\n5,6\n", {}),
        ("1,2\n3,4\n5,6\n", {"header": False}),
        ("x1,x2\n1,2\n3,4\n5,6\n", {}),
        ("x1;x2\r\n1;2\r\n\r\n3;4\r\n5;6", {"header": True}),
        ('x1, x2\n"1", 2\n 3 ,"4"\n5,6.0\n', {}),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_headers_separators_quotes_and_encodings_are_read(tmp_path, text, settings, encoding):
    data = pv.load(write(tmp_path, text, encoding=encoding), shares=(1, 0, 0), **settings)
    assert [one.name for one in data.columns] == ["x1", "x2"]
    assert data.train_x.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_blank_lines_of_one_column_are_missing_cells(tmp_path):
    for text in ('\na\n1.5\n\n2.5\n""\n3.5\n\n \n', "\n1.5\n\n2.5\r\n \r\n3.5"):
        data = pv.load(write(tmp_path, text), missing="mask", shares=(1, 0, 0))
        expected = [[1.5], [math.nan], [2.5], [math.nan], [3.5]]
        torch.testing.assert_close(data.train_x, torch.tensor(expected), equal_nan=True)


def test_tabs_separate_in_a_tsv(tmp_path):
    data = pv.load(write(tmp_path, "a\tb\np, q\tx\nr, s\ty\nr, s\tx\n", "data.tsv"), shares=(1, 0, 0))
    assert [one.categories for one in data.columns] == [("p, q", "r, s"), ("x", "y")]


def test_a_split_is_by_chance_from_the_seed_or_by_a_column(tmp_path):
    x = np.arange(200.0).reshape(100, 2)
    first, again, other = (pv.load(x, kinds="continuous", seed=seed) for seed in (3, 3, 4))
    parts = [getattr(first, f"{split}_x")[:, 0] for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [80, 10, 10]
    assert sorted(torch.cat(parts).tolist()) == x[:, 0].tolist()
    assert all(part.tolist() == sorted(part.tolist()) for part in parts)  # in the order of the file
    assert torch.equal(first.test_x, again.test_x)
    assert not torch.equal(first.test_x, other.test_x)
    sizes = pv.load(x, kinds="continuous", shares=(6, 3, 1))
    assert [len(sizes.train_x), len(sizes.validation_x), len(sizes.test_x)] == [60, 30, 10]
    text = "a,part\n1,train\n2,Test\n3,val\n4,training\n5,dev\n"
    named = pv.load(write(tmp_path, text), split_column="part")
    assert [part.flatten().tolist() for part in (named.train_x, named.validation_x, named.test_x)] == [
        [1, 4],
        [3, 5],
        [2],
    ]


def test_continuous_columns_alone_are_standardised_by_their_observed_training_cells(tmp_path):
    rows = ["0.5,3,0,a,0.2,7.5,train", ",1,1,b,0.3,1.5,train", "2.5,0,1,c,0.4,2.5,train", "100.5,8,0,a,0.9,3.5,test"]
    path = write(tmp_path, "\n".join(["real,count,binary,category,unit,positive,part", *rows]))
    settings = {"kinds": {"unit": "unit", "positive": "positive"}, "missing": "mask", "split_column": "part"}
    raw, data = pv.load(path, **settings), pv.load(path, **settings, standardise=True)
    assert torch.equal(raw.train_x[:, 1:], data.train_x[:, 1:])
    assert [(one.mean, one.sd) for one in data.columns] == [(1.5, 1.0), *[(None, None)] * 5]
    assert data.train_x[[0, 2], 0].tolist() == [-1, 1]
    assert data.test_x[0, 0].item() == 99
    torch.testing.assert_close(data.in_file_units(data.train_x), raw.train_x, equal_nan=True)


def test_rows_of_x_are_shown_by_the_names_and_in_the_units_of_the_file(people):
    data = pv.load(people, missing="mask", label_column="group", standardise=True, shares=(1, 0, 0))
    frame = data.to_pandas(data.train_x)
    assert list(frame.columns) == ["age", "height", "smoker", "city", "income"]
    assert frame["city"].tolist() == ["Bonn, am Rhein", "Paris", "Oslo", "Paris", "Oslo"]
    assert frame["smoker"].tolist() == ["no", "yes", "no", "no", "yes"]
    assert frame["height"].tolist() == pytest.approx([1.75, 1.62, 1.8, math.nan, 1.71], nan_ok=True)
    hole = data.train_x.clone()
    hole[1, 3] = math.nan
    assert data.to_pandas(hole)["city"].isna().tolist() == [False, True, False, False, False]
    for value in (1.53, 3.0, -1.0, math.inf):
        hole[1, 3] = value
        said = f"column 'city' must hold codes 0 ... 2 of its names, got {value:.4g}, as a mean of codes is"
        assert refusal(data.to_pandas, hole) == said
    assert refusal(data.to_pandas, hole[0]) == "x must be a tensor of shape (num, 5), got torch.float32 (5,)"
    ring = pv.load("ring", num_train=10)
    assert refusal(ring.to_pandas, ring.train_x) == "to_pandas needs the columns of a table, and ring has none"


@pytest.mark.usefixtures("float64")
def test_log_px_in_file_units_is_that_of_the_same_model_on_raw_data():
    """cells = sd x + mean: W, b and the scale of p(x|z) are mapped by hand, and log p(cells) is a known Gaussian."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.randn(60, 3, generator=generator) @ torch.randn(3, 3, generator=generator)
    cells = cells * torch.tensor([1e-3, 40.0, 7.0]) + torch.tensor([5.0, -300.0, 0.0])
    cells[::4, 1], cells[::5, 2] = math.nan, math.nan
    data = pv.load(cells, missing="mask", standardise=True)
    mean, sd = (torch.tensor([getattr(one, name) for one in data.columns]) for name in ("mean", "sd"))
    weight, bias, scale = torch.randn(3, 2, generator=generator), torch.randn(3, generator=generator), 0.6

    def log_density(x, loc, covariance):
        """log p of the observed cells of each row, under a Gaussian that is marginalised by hand."""
        found = []
        for row in x:
            seen = ~row.isnan()
            joint = torch.distributions.MultivariateNormal(loc[seen], covariance[seen][:, seen])
            found.append(joint.log_prob(row[seen]))
        return torch.stack(found)

    covariance = weight @ weight.T + scale**2 * torch.eye(3)
    of_x = log_density(data.test_x, bias, covariance)
    raw = data.in_file_units(data.test_x)
    of_cells = log_density(raw, sd * bias + mean, sd[:, None] * covariance * sd)
    assert (data.log_px_in_file_units(of_x, data.test_x) - of_cells).abs().max() < 1e-10
    assert (of_x - of_cells).abs().min() > 0.1
    several = data.log_px_in_file_units(torch.stack((of_x, of_x + 1)), data.test_x)  # bounds at several K
    torch.testing.assert_close(several, torch.stack((of_cells, of_cells + 1)))


@pytest.mark.usefixtures("float64")
def test_log_marginal_of_a_trained_pair_in_file_units_is_that_of_the_pair_on_raw_data():
    """The same through `log_marginal`: a `LinearGaussianVAE` of a standardised column is another one of the column."""
    cells = 3.0 + 20.0 * torch.randn(50, 1, generator=torch.Generator().manual_seed(1))
    data = pv.load(cells, standardise=True)
    (column,) = data.columns
    weight, bias, zero = torch.tensor([[0.8]]), torch.tensor([0.1]), torch.zeros(1)
    ours = pv.LinearGaussianVAE(weight, bias, 0.6, zero)
    raw = pv.LinearGaussianVAE(column.sd * weight, column.sd * bias + column.mean, 0.6 * column.sd, zero)
    found = pv.log_marginal(ours.model, ours.exact_guide, data.test_x, num_samples=10)
    of_cells = pv.log_marginal(raw.model, raw.exact_guide, data.in_file_units(data.test_x), num_samples=10)
    difference = data.log_px_in_file_units(found.log_px, data.test_x) - of_cells.log_px
    assert difference.abs().max() < 1e-6


def test_a_data_set_that_is_no_table_has_log_px_in_its_own_units():
    data = pv.load("ring", num_train=5)
    log_px = torch.randn(2_000)
    assert data.log_px_in_file_units(log_px, data.test_x) is log_px
    assert data.in_file_units(data.test_x) is data.test_x


class Frame:
    """A frame as pandas has it, as far as `load` and `fit` look at it."""

    def __init__(self, **columns):
        self._columns = columns

    @property
    def columns(self):
        return list(self._columns)

    def __getitem__(self, name):
        return Series(self._columns[name])

    def to_numpy(self):
        return np.stack([np.asarray(values) for values in self._columns.values()], 1)


class Series:
    def __init__(self, values):
        self.values = values

    def to_numpy(self):
        return np.asarray(self.values, dtype=object if None in self.values else None)


def test_a_frame_is_a_table():
    frame = Frame(a=[0.5, 1.5, None], b=["u", "v", "u"], c=[True, False, True], group=[3, 1, 3])
    data = pv.load(frame, label_column="group", missing="mask", shares=(1, 0, 0))
    assert [(one.name, one.kind, one.categories) for one in data.columns] == [
        ("a", "continuous", ()),
        ("b", "binary", ("u", "v")),
        ("c", "binary", ()),
    ]
    torch.testing.assert_close(data.train_x, torch.tensor([[0.5, 0, 1], [1.5, 1, 0], [math.nan, 0, 1]]), equal_nan=True)
    assert (data.classes, data.train_y.tolist()) == (("1", "3"), [1, 0, 1])
    assert "the frame, index 2, column 'a': the cell is missing" in refusal(pv.load, frame)


def test_a_column_of_a_frame_that_is_not_asked_for_may_hold_anything(tmp_path):
    times = np.arange(20).astype("datetime64[s]")
    columns = {"a": np.arange(20) + 0.5, "time": times, "group": np.arange(20) % 2}
    settings = {"columns": ["a"], "label_column": "group", "shares": (1, 0, 0)}
    sources = [Frame(**columns)]
    try:
        import pandas
        import pyarrow  # noqa: F401
    except ImportError:
        pass
    else:
        sources += [pandas.DataFrame(columns), tmp_path / "times.parquet"]
        sources[1].to_parquet(sources[2])
    for source in sources:
        data = pv.load(source, **settings)
        assert (data.train_x.flatten().tolist(), data.classes) == (columns["a"].tolist(), ("0", "1"))
        assert "column 'time': must hold numbers or texts, got datetime64" in refusal(pv.load, source)
    del columns["time"]
    assert "must name columns of the frame (a, group), got 'b'" in refusal(pv.load, Frame(**columns), columns=["b"])


def test_parquet_is_read_by_pandas_or_refused_in_one_line(tmp_path, people):
    path = tmp_path / "people.parquet"
    try:
        import pandas
        import pyarrow  # noqa: F401
    except ImportError:
        path.write_bytes(b"PAR1")
        assert "pip install 'pyrovae[tables]'" in refusal(pv.load, path)
        return
    pandas.read_csv(people).to_parquet(path)
    settings = {"missing": "mask", "label_column": "group"}
    one, other = pv.load(people, **settings), pv.load(path, **settings)
    torch.testing.assert_close(one.train_x, other.train_x, equal_nan=True)
    assert (one.columns, one.classes) == (other.columns, other.classes)
    path.write_bytes(b"PAR1")
    assert "is not a readable parquet file" in refusal(pv.load, path)


def test_a_large_table_is_read_within_seconds(tmp_path):
    numbers = np.random.default_rng(0).normal(size=(100, 20)).round(6)
    block = "\n".join(",".join(map(str, row)) for row in numbers.tolist()) + "\n"
    path = write(tmp_path, ",".join(f"c{j}" for j in range(20)) + "\n" + block * 200)
    start = perf_counter()
    data = pv.load(path)
    assert perf_counter() - start < 20  # a tenth of it here; 100,000 rows take five times as long
    assert len(data.train_x) == 16_000
