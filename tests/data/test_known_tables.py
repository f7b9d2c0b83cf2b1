"""Tables of known columns: cells that are filled in keep what varies, and cells that were there stay as they were."""

import csv
import io
import math

import numpy as np
import pytest

from pyrovae.data import Column, cell_text, load, read_known_table

KNOWN = (Column("a", "continuous"), Column("b", "binary", categories=("no", "yes")))


def filled(path, columns=KNOWN, suffix=".csv", **settings):
    """The text of a table whose missing cells in the known columns are filled in with `!`."""
    known = read_known_table(path, columns, **settings)
    holes = zip(columns, known.x.isnan().T.tolist(), strict=True)
    return known.text({one.name: ["!" if hole else None for hole in missing] for one, missing in holes}, {}, suffix)


@pytest.mark.parametrize("mean", [101_325.0, -40.0, 1e9, 0.0])
@pytest.mark.parametrize("sd", [0.4, 3e-4, 250.0])
def test_what_varies_in_a_column_is_written_however_large_its_mean(mean, sd):
    """A pressure of 101325 +- 0.4 was 101325 in every draw."""
    z = np.random.default_rng(0).normal(size=50)
    standardised, raw = Column("a", "continuous", mean=mean, sd=sd), Column("a", "continuous")
    for column, x, spread in ((standardised, z, 1.0), (raw, z * sd + mean, sd)):
        found = [float(cell_text(column, value, spread)) for value in x]
        assert np.abs(np.array(found) - (z * sd + mean)).max() <= 1e-5 * sd
    unknown = {cell_text(Column("a", "positive"), value) for value in 101_325 + 0.4 * z}
    assert len(unknown) == 50, "nor where one draw alone is made, whose spread is unknown"


def test_a_cell_has_no_more_digits_than_are_known():
    texts = [cell_text(Column("a", "continuous", mean=m, sd=300.0), 1 / 3, 1.0) for m in (0.0, 2_000.0, 3e6)]
    assert texts == ["100", "2100", "3000100"]
    assert cell_text(Column("a", "continuous"), 2 / 3, 0.5) == "0.666667"
    assert cell_text(Column("a", "unit"), 1.0, 0.1) == repr(1 - 1e-7)
    assert cell_text(Column("a", "continuous"), 12.5, math.nan) == "12.5"


def test_codes_with_leading_zeros_are_names_as_they_stand(tmp_path):
    """02134 was filled in as 2134, and 01 read as 1 where both are categories."""
    path = tmp_path / "a.csv"
    path.write_text("zip,bit,code\n" + "02134,00,1\n10001,01,01\n7.0,00,A\n,01,1.0\n")
    kinds = {"zip": "category", "bit": "binary", "code": "category"}
    data = load(path, kinds=kinds, missing="mask", shares=(1, 0, 0))
    assert [column.categories for column in data.columns] == [
        ("7", "02134", "10001"),
        ("00", "01"),
        ("01", "1", "1.0", "A"),
    ]
    again = read_known_table(path, data.columns)
    np.testing.assert_array_equal(again.x.numpy(), data.train_x.numpy())
    assert data.train_x[:, 0].tolist()[:3] == [1, 2, 0]
    assert cell_text(data.columns[0], 1.0) == "02134"
    frame = np.array([[3.0], [5.0], [math.nan], [3.0]])
    (column,) = (found := load(frame, kinds="category", missing="mask", shares=(1, 0, 0))).columns
    assert column.categories == ("3", "5")
    np.testing.assert_array_equal(found.train_x.numpy(), np.array([[0], [1], [math.nan], [0]], np.float32))


# Cells that were there -----------------------------------------------------------------------------------------------

AWKWARD = (
    "id,  a, b ,note",
    "9007199254740993,0.10,yes,  two blanks before",
    '007, 1e3 ,"no",behind  ',
    '"8", ,  yes,"a ""quote"", and one\nmore line"',
    '+1.50,-0,,5" pipe',
    ',  "2.0",?,   "quoted after blanks"',
)


@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n", "  \n"])
def test_a_cell_of_a_text_file_that_was_there_stays_letter_by_letter(tmp_path, end):
    path = tmp_path / "a.csv"
    path.write_text("\n".join(AWKWARD[:2]) + "\n\n" + "\n".join(AWKWARD[2:]) + end, newline="")
    expected = "\n".join(AWKWARD).replace('8", ,', '8",!,').replace(",-0,,", ",-0,!,").replace(",?,", ",!,")
    assert filled(path) == expected + "\n"
    tabs = list(csv.reader(io.StringIO(filled(path, suffix=".tsv")), delimiter="\t"))
    commas = list(csv.reader(io.StringIO(filled(path))))
    assert tabs[1:4] == commas[1:4]


def test_any_text_that_a_reader_takes_is_written_again_as_it_was(tmp_path):
    """Cells at random of all that matters to a reader, quoted or not, in files of each kind."""
    rng = np.random.default_rng(0)
    for index, (suffix, delimiter) in enumerate(((".csv", ","), (".csv", ";"), (".tsv", "\t")) * 20):
        rows = [["a", "b", "u", "v"]]
        for _ in range(5):
            plain, quotes = ("".join(rng.choice(list(some), rng.integers(6))) for some in ("x'. \"", 'x,;\t"\n '))
            plain = plain.replace('"', "") if plain.lstrip(" ").startswith('"') else plain
            rows.append(["1.0", " yes", plain, " " * rng.integers(3) + '"' + quotes.replace('"', '""') + '"'])
        text = "\n".join(delimiter.join(row) for row in rows) + "\n"
        path = tmp_path / f"{index}{suffix}"
        path.write_text(text)
        assert filled(path, suffix=suffix) == text


def test_a_file_without_a_header_stays_without(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1, 2.50\n3,\n")
    columns = (Column("x1", "continuous"), Column("x2", "continuous"))
    assert filled(path, columns) == "1, 2.50\n3,!\n"
    assert read_known_table(path, columns).text({}, {"x2_sd": ["", "0.5"]}, ".csv") == "1, 2.50,\n3,,0.5\n"


def test_a_value_of_a_parquet_file_that_was_there_keeps_its_digits(tmp_path, monkeypatch):
    """Columns that are not known may hold what `train --exclude` leaves out. pyarrow, which reads the file, is an
    extra: here pandas makes of a frame what it makes of a file."""
    pandas = pytest.importorskip("pandas")
    large = 2**53 + 1
    frame = pandas.DataFrame(
        {
            "a": np.array([0.1, 2.5, math.nan], np.float32),
            "key": np.array([large, 2, 3]),
            "hole": pandas.array([large, None, 3], dtype="Int64"),
            "b": ["yes", None, "no"],
            "true": [True, False, True],
            "day": pandas.to_datetime(["2024-01-01", None, "2024-01-03"]),
            "note": ["a, b", " c", "NA"],
        },
        index=pandas.Index(["u", "v", "w"], name="row"),
    )
    as_read = {"numpy_nullable": frame.convert_dtypes()}
    monkeypatch.setattr(pandas, "read_parquet", lambda path, dtype_backend: as_read[dtype_backend])
    (tmp_path / "a.parquet").write_bytes(b"")
    found = list(csv.DictReader(io.StringIO(filled(tmp_path / "a.parquet"))))
    assert [[row[name] for row in found] for name in ("row", "a", "key", "hole", "b", "true", "note")] == [
        ["u", "v", "w"],
        ["0.1", "2.5", "!"],
        [str(large), "2", "3"],
        [str(large), "", "3"],
        ["yes", "!", "no"],
        ["True", "False", "True"],
        ["a, b", " c", "NA"],
    ]
    assert [row["day"][:10] for row in found] == ["2024-01-01", "", "2024-01-03"]


def test_a_table_may_have_more_columns_than_a_model_could(tmp_path):
    names = ["a", "b", *(f"u{j}" for j in range(100_001))]
    (tmp_path / "a.csv").write_text(
        f"{','.join(names)}\n1,{'v,' * 100_001}w\n2,yes,{'v,' * 100_000}w\n".replace("1,v", "1,")
    )
    assert filled(tmp_path / "a.csv").splitlines()[1].startswith("1,!,v,")
