"""Tables: what is read, what is refused with which words, and log-densities in the user's units."""

import re
import zipfile

import numpy as np
import pytest
import scipy.stats
import torch

from fmkit import specs
from fmkit.data import DataSet, Tabular
from fmkit.errors import ArgumentError
from fmkit.fields import VectorField
from fmkit.flow import Flow
from fmkit.sources import Gaussian

ROWS = np.random.default_rng(0).normal(size=(40, 3)) * [1e6, 1.0, 1e-3] + [0.0, 5.0, -7.0]


class Still(VectorField):
    """v = 0, so that a flow's density is its start's, pulled back through its transform."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros((), dtype=dtype))

    def forward(self, t, x, cond=None):
        return self.weight * x


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes text, or arrays, to a file in the working directory, and gives its name."""
    monkeypatch.chdir(tmp_path)

    def write(content, name="t.csv"):
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        elif isinstance(content, str):
            (tmp_path / name).write_text(content, encoding="utf-8")
        elif isinstance(content, dict):
            np.savez(tmp_path / name, **content)
        else:
            np.save(tmp_path / name, content, allow_pickle=content.dtype == object)
        return name

    return write


def csv_text(rows, header=None, end="\n"):
    lines = [",".join(repr(float(v)) for v in row) for row in rows]
    return end.join([header, *lines] if header else lines) + end


def all_rows(split):
    """Training and held-out rows in one order that does not depend on the split."""
    x = torch.cat([split.train.x, split.test]).numpy()
    return x[np.lexsort(x.T)]


def in_order(rows):
    rows = np.asarray(rows)
    return rows[np.lexsort(rows.T)]


class TestReading:
    @pytest.mark.parametrize("header", [None, "mass,size,x 3"])
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_csv_to_the_last_bit(self, write, header, end):
        split = Tabular(write(csv_text(ROWS, header, end).encode())).load()
        assert split.test.dtype == torch.float64
        np.testing.assert_array_equal(all_rows(split), in_order(ROWS))

    def test_arrays_to_the_last_bit(self, write):
        for name, content in (("t.npy", ROWS), ("t.npz", {"only": ROWS})):
            np.testing.assert_array_equal(all_rows(Tabular(write(content, name)).load()), in_order(ROWS))

    def test_one_array_of_several(self, write):
        file = write({"a": ROWS, "b": 2 * ROWS}, "t.npz")
        np.testing.assert_array_equal(all_rows(Tabular(file, key="b").load()), in_order(2 * ROWS))

    @pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2"])
    def test_any_real_numbers(self, write, dtype):
        rows = (np.arange(30).reshape(10, 3) ** 2 % 17).astype(dtype)
        split = Tabular(write(rows, "t.npy")).load()
        assert split.test.dtype == torch.float64
        np.testing.assert_array_equal(all_rows(split), in_order(rows.astype(float)))

    def test_csv_with_all_that_spreadsheets_add(self, write):
        text = '\ufeff"first, of all", second\r\n\r\n" 1.5", 2\r\n-3e2,+.5\r\n0, 7\r\n4,4'
        split = Tabular(write(text), columns=["first, of all", "second"]).load()
        np.testing.assert_array_equal(all_rows(split), in_order([[1.5, 2], [-300, 0.5], [0, 7], [4, 4]]))

    def test_a_header_of_numbers_is_named_as_one(self, write):
        file = write(csv_text(ROWS, "2019,2020,2021"))
        assert len(all_rows(Tabular(file).load())) == 41
        split = Tabular(file, header=True, columns=["2021"]).load()
        np.testing.assert_array_equal(all_rows(split)[:, 0], np.sort(ROWS[:, 2]))

    def test_home_and_case(self, write, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        write(csv_text(ROWS), "T.CSV")
        assert len(all_rows(Tabular("~/T.CSV").load())) == 40


class TestColumns:
    HEADER = "mass,size,kind"

    def test_by_name_and_by_position_in_the_order_asked_for(self, write):
        file = write(csv_text(ROWS, self.HEADER))
        np.testing.assert_array_equal(all_rows(Tabular(file, columns=["kind", 0]).load()), in_order(ROWS[:, [2, 0]]))

    def test_text_is_looked_at_only_where_asked_for(self, write):
        file = write("name,a\n" + "".join(f"row{i},{i}\n" for i in range(5)))
        assert all_rows(Tabular(file, columns=["a"]).load()).ravel().tolist() == [0, 1, 2, 3, 4]

    def test_conditions_stay_with_their_rows(self, write):
        rows = np.column_stack([np.arange(50.0) ** 2, np.arange(50.0), -np.arange(50.0)])
        split = Tabular(write(csv_text(rows, self.HEADER)), condition=["kind", "size"]).load()
        for x, cond in ((split.train.x, split.train.cond), (split.test, split.test_cond)):
            assert x.shape[1] == 1
            torch.testing.assert_close(x, cond[:, 1:] ** 2)
            torch.testing.assert_close(cond[:, 0], -cond[:, 1])
        assert split.classes is None

    def test_labels(self, write):
        rows = np.column_stack([np.arange(30.0), np.arange(30) % 3])
        split = Tabular(write(rows, "t.npy"), condition=[1], classes=3).load()
        assert split.classes == 3
        assert split.train.cond.dtype == torch.int64
        assert torch.equal(split.test_cond, split.test[:, 0].long() % 3)


class TestSplit:
    def test_follows_from_the_seed(self, write):
        data = Tabular(write(ROWS, "t.npy"), test_fraction=0.25)
        first, again, other = data.load(0), data.load(0), data.load(1)
        assert (len(first.train.x), len(first.test)) == (30, 10)
        assert torch.equal(first.test, again.test)
        assert not torch.equal(first.test, other.test)

    def test_the_transform_sees_training_rows_alone(self, write):
        split = Tabular(write(ROWS, "t.npy")).load()
        y = split.train.transform(split.train.x)
        # Columns nine orders of magnitude apart all come to deviation 1.
        torch.testing.assert_close(y.mean(0), torch.zeros(3).double(), atol=1e-11, rtol=0)
        torch.testing.assert_close(y.std(0, correction=0), torch.ones(3).double())

    def test_without_standardisation(self, write):
        assert Tabular(write(ROWS, "t.npy"), standardise=False).load().train.transform is None


class TestLogDensity:
    def test_is_in_the_units_of_the_file(self, write):
        split = Tabular(write(csv_text(ROWS))).load()
        flow = Flow(Gaussian(), Still(), event_shape=3, transform=split.train.transform)
        train = split.train.x.numpy()
        exact = scipy.stats.norm(train.mean(0), train.std(0)).logpdf(split.test.numpy()).sum(1)
        np.testing.assert_allclose(flow.log_prob(split.test), exact, rtol=1e-10)

    def test_samples_are_in_the_units_of_the_file(self, write):
        split = Tabular(write(csv_text(ROWS))).load()
        flow = Flow(Gaussian(), Still(), event_shape=3, transform=split.train.transform)
        x = flow.sample(4000, generator=torch.Generator().manual_seed(0)).numpy()
        train = split.train.x.numpy()
        # Five standard errors of a mean and of a standard deviation: six false alarms in ten million runs each.
        assert np.all(np.abs(x.mean(0) - train.mean(0)) < 5 * train.std(0) / 4000**0.5)
        assert np.all(np.abs(x.std(0) / train.std(0) - 1) < 5 / 8000**0.5)

    def test_a_float32_flow_keeps_the_digits_behind_a_large_offset(self, write):
        # Unix times of one hour: float32 has steps of 128 s there, so x must not be rounded before it is centred.
        rows = 1.7e9 + 1000 * np.random.default_rng(0).normal(size=(200, 1))
        split = Tabular(write(rows, "t.npy")).load()
        flow = Flow(Gaussian(), Still(torch.float32), event_shape=1, transform=split.train.transform)
        train = split.train.x.numpy()
        exact = scipy.stats.norm(train.mean(), train.std()).logpdf(split.test.numpy())[:, 0]
        np.testing.assert_allclose(flow.log_prob(split.test), exact, atol=1e-4)


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "arguments", "message"),
        [
            ("a,b\n1,2\n\n3,x\n", {}, "t.csv, line 4, column 'b' (1): got 'x', expected a number"),
            ("1,2\n3,x\n", {}, "t.csv, line 2, column 1: got 'x', expected a number"),
            ("1,2\n3,\n", {}, "t.csv, line 2, column 1: missing, expected a number"),
            ("1,2\n3,1_000\n", {}, "t.csv, line 2, column 1: got '1_000', expected a number"),
            ("a,b\n1,2\n3,nan\nNaN,4\n", {}, "t.csv, line 3, column 'b' (1): got nan, expected a finite number, and 1"),
            ("1,2\n3,-inf\n", {}, "t.csv, line 2, column 1: got -inf, expected a finite number"),
            ("1,2\n3,1e999\n", {}, "t.csv, line 2, column 1: got inf, expected a finite number"),
            ("1,2\n3\n", {}, "t.csv, line 2: has 1 cells, expected 2 as in line 1"),
            ("a,1\n2,3\n", {}, "the first row mixes text ('a') and numbers ('1'); say header=true"),
            ("a;b\n1;2\n", {}, "t.csv is separated by semicolons or tabs, expected commas"),
            ("", {}, "t.csv is empty"),
            ("\n\n", {}, "t.csv is empty"),
            ("a,b\n", {}, "t.csv has a header and no rows"),
            (b"a,b\n\xff\xfe,2\n", {}, "t.csv cannot be read as .csv: 'utf-8' codec"),
            ("a,b\n1,2\n", {"columns": ["bb"]}, "t.csv has no column named 'bb'; did you mean 'b'?"),
            ("a,a\n1,2\n", {"columns": ["a"]}, "t.csv has 2 columns named 'a'; give positions from 0"),
            ("1,2\n3,4\n", {"columns": ["a"]}, "t.csv has no header, so no column 'a'; give positions from 0"),
            ("1,2\n3,4\n", {"columns": [2]}, "t.csv has columns 0 .. 1, and 2 was asked for"),
            ("1,2\n3,4\n", {"columns": [-1]}, "t.csv has columns 0 .. 1, and -1 was asked for"),
            ("a,b\n3,4\n", {"columns": ["a", 0]}, "t.csv: column 'a' (0) is asked for 2 times"),
            ("a,b\n3,4\n", {"columns": ["a"], "condition": [0]}, "column 'a' (0) is both modelled and a condition"),
            ("a,b\n3,4\n", {"condition": [0, 1]}, "t.csv has 2 columns and all are conditions"),
            ("1,2\n3,4\n", {}, "t.csv has 2 rows, of which 1 are held out; expected at least 2 to train on"),
            ("a,b\n1,5\n2,5\n3,5\n4,5\n", {}, "t.csv: column 'b' (1) is 5 in every training row"),
            ("a,b\n1,5\n2,5\n3,5\n", {"condition": ["b"], "classes": 5}, "line 2, column 'b' (1): got 5, expected"),
            ("1,2\n3,4\n", {"key": "a"}, "key is 'a', and t.csv is no .npz file"),
        ],
    )  # fmt: skip
    def test_csv(self, write, content, arguments, message):
        with pytest.raises(ArgumentError, match=re.escape(message)):
            Tabular(write(content), **arguments).load()

    def test_a_constant_column_whose_mean_rounds(self, write):
        # The deviation of 0.1, 0.1, ... computed in floating point is not zero.
        rows = np.column_stack([np.arange(11.0), np.full(11, 0.1)])
        with pytest.raises(ArgumentError, match=r"column 1 is 0.1 in every training row"):
            Tabular(write(rows, "t.npy")).load()

    @pytest.mark.parametrize(
        ("content", "name", "arguments", "message"),
        [
            (np.arange(5.0), "t.npy", {}, "t.npy has shape (5,), expected two dimensions (rows, columns); save"),
            (np.zeros((2, 3, 4)), "t.npy", {}, "t.npy has shape (2, 3, 4), expected two dimensions"),
            (np.zeros((0, 3)), "t.npy", {}, "t.npy is empty: it has shape (0, 3)"),
            (np.array([[1.0, np.nan], [2, 3]]), "t.npy", {}, "t.npy, row 0, column 1: got nan, expected a finite"),
            (np.array([["a"]]), "t.npy", {}, "t.npy holds values of type <U1, expected real numbers"),
            (np.ones((3, 2), complex), "t.npy", {}, "t.npy holds values of type complex128"),
            (np.array([[{}]], object), "t.npy", {}, "t.npy holds Python objects, or is damaged"),
            (b"not an array", "t.npy", {}, "pickles are never loaded"),
            (b"not an array", "t.npz", {}, "pickles are never loaded"),
            (b"PK\x03\x04 not an archive", "t.npz", {}, "t.npz cannot be read as .npz"),
            (b"", "t.npy", {}, "t.npy cannot be read as .npy: No data left in file"),
            ({"a": ROWS, "b": ROWS}, "t.npz", {}, "t.npz holds 2 arrays (a, b); say which one with key=..."),
            ({"mass": ROWS}, "t.npz", {"key": "mas"}, "t.npz has no array 'mas'; did you mean 'mass'?"),
            ({"a": np.array([[1.0, np.inf]])}, "t.npz", {}, "t.npz[a], row 0, column 1: got inf"),
            (ROWS, "t.npy", {"columns": ["a"]}, "t.npy has no header, so no column 'a'"),
            (ROWS, "t.npy", {"header": True}, "header is True, and t.npy is no .csv file"),
        ],
    )  # fmt: skip
    def test_arrays(self, write, content, name, arguments, message):
        with pytest.raises(ArgumentError, match=re.escape(message)):
            Tabular(write(content, name), **arguments).load()

    def test_a_pickle_is_not_run(self, write, tmp_path):
        class Trap:
            def __reduce__(self):
                return (exec, (f"open({str(tmp_path / 'sprung')!r}, 'w')",))

        for name in ("t.npy", "t.npz"):
            np.save(tmp_path / "t.npy", np.array([[Trap()]], object), allow_pickle=True)
            with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
                archive.write(tmp_path / "t.npy", "a.npy")
            with pytest.raises(ArgumentError, match="pickles are never loaded"):
                Tabular(str(tmp_path / name)).load()
        assert not (tmp_path / "sprung").exists()

    def test_files_that_are_not_there(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ArgumentError, match=re.escape(f"no file at gone.csv; looked for {tmp_path}/gone.csv")):
            Tabular("gone.csv").load()
        (tmp_path / "folder.csv").mkdir()
        with pytest.raises(ArgumentError, match=r"there is a folder at folder.csv"):
            Tabular("folder.csv").load()
        with pytest.raises(ArgumentError, match=r"t.xlsx ends in '.xlsx', expected .csv, .npy or .npz"):
            Tabular("t.xlsx").load()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"test_fraction": 0.0}, "test_fraction is 0.0, expected a share between 0 and 1"),
            ({"test_fraction": 1.0}, "test_fraction is 1.0"),
            ({"columns": []}, "columns is empty"),
            ({"columns": "mass"}, r"columns is 'mass', expected a list of columns, as \['mass'\]"),
            ({"classes": 3}, "classes is 3 with 0 condition columns; expected one column of labels"),
        ],
    )
    def test_parameters(self, arguments, message):
        with pytest.raises(ArgumentError, match=message):
            Tabular("t.csv", **arguments)

    def test_is_written_down_and_built_again(self, write):
        data = Tabular(write(csv_text(ROWS, "a,b,c")), columns=["a", 2], test_fraction=0.5)
        again = specs.build(DataSet, specs.describe(data), "data")
        assert torch.equal(data.load(3).test, again.load(3).test)
