"""Tables from the user's own files: .csv, .npy and .npz.

    y = (x - mean)/std by column,   log p(x) = log p(y) - sum of log std

The transform is fitted on the training rows alone and travels with the flow, so samples and log-densities are in the
units of the file. Values stay float64 until the trainer casts them.
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmkit.arguments import check_instance
from fmkit.data.base import Data, DataSet, Split
from fmkit.errors import ArgumentError, did_you_mean
from fmkit.randomness import stream
from fmkit.transforms import Affine


class Tabular(DataSet):
    """Rows of numbers from a file.

    A .csv file is separated by commas; its first row is taken for a header if none of its cells is a number. A .npy
    file holds an array `(N, d)` of numbers, a .npz file one or more of them; pickled objects are never loaded.

    Args:
        file: the path; relative ones start from the working directory, `~` is the home directory.
        key: which array of a .npz file, if it holds several.
        columns: what to model, by name or by position from 0; everything but the conditions by default.
        condition: columns that are conditions, by name or position: vectors `(N, c)` in the units of the file.
        classes: the one condition column is a label in 0 .. classes - 1.
        header: whether a .csv file has one, where the rule above would get it wrong.
        standardise: mean 0 and standard deviation 1 for every modelled column while training.
        test_fraction: share of rows held out, in (0, 1).

    Raises:
        ArgumentError: for a fraction outside (0, 1), an empty list of columns, classes without a single condition, or a
            file that is missing or of another kind, with what was tried; from `load`, for one that cannot be read, and
            for a cell, row or column that cannot be used (not a number, missing, not finite, constant), naming file,
            row and column.
    """

    def __init__(
        self,
        file: str,
        key: str | None = None,
        columns: list[str | int] | None = None,
        condition: list[str | int] | None = None,
        classes: int | None = None,
        header: bool | None = None,
        standardise: bool = True,
        test_fraction: float = 0.2,
    ) -> None:
        super().__init__()
        if not 0 < test_fraction < 1:
            raise ArgumentError(f"test_fraction is {test_fraction}, expected a share between 0 and 1")
        for name, chosen in {"columns": columns, "condition": condition}.items():
            if isinstance(chosen, str):
                raise ArgumentError(f"{name} is {chosen!r}, expected a list of columns, as [{chosen!r}]")
        if columns is not None and not columns:
            raise ArgumentError("columns is empty, expected at least one; leave it out to model every column")
        condition = condition or []
        if classes is not None and (len(condition) != 1 or classes < 1):
            raise ArgumentError(
                f"classes is {classes} with {len(condition)} condition columns; expected one column of labels"
            )
        _found(check_instance("file", file, str), key, header)
        self.file, self.key, self.columns, self.condition = file, key, columns, condition
        self.classes, self.header = classes, header
        self.standardise, self.test_fraction = standardise, test_fraction

    def load(self, seed: int = 0) -> Split:
        table = read_table(self.file, self.key, self.header)
        condition = table.positions(self.condition)
        columns = table.positions(self.columns) if self.columns is not None else table.others(condition)
        if both := [table.label(c) for c in columns if c in condition]:
            raise ArgumentError(f"{table.file}: {both[0]} is both modelled and a condition; choose one")
        x, cond = table.numbers(columns), self._conditions(table, condition)
        order = torch.randperm(len(x), generator=stream(seed, "tabular-split"))
        held_out = max(1, round(self.test_fraction * len(x)))
        if len(x) - held_out < 2:
            raise ArgumentError(
                f"{table.file} has {len(x)} rows, of which {held_out} are held out; expected at least 2 to train on"
            )
        test, train = order[:held_out], order[held_out:]
        self._check_varying(table, columns, x[train])
        # No floor: columns may differ in scale by any factor, and constant ones were refused.
        transform = Affine.standardise(x[train], floor=0.0) if self.standardise else None
        data = Data(x[train], None if cond is None else cond[train], transform=transform)
        return Split(data, x[test], None if cond is None else cond[test], self.classes)

    def _conditions(self, table: Table, positions: list[int]) -> Tensor | None:
        if not positions:
            return None
        values = table.numbers(positions)
        if self.classes is None:
            return values
        labels = values[:, 0]
        wrong = ((labels != labels.round()) | (labels < 0) | (labels >= self.classes)).nonzero().flatten()
        if len(wrong):
            row = int(wrong[0])
            raise ArgumentError(
                f"{table.where(row, positions[0])}: got {labels[row]:g}, expected a label in 0 .. {self.classes - 1}"
            )
        return labels.long()

    def _check_varying(self, table: Table, columns: list[int], x: Tensor) -> None:
        for place, column in enumerate(columns):
            if x[:, place].min() == x[:, place].max():
                raise ArgumentError(
                    f"{table.file}: {table.label(column)} is {x[0, place]:g} in every training row, so it has no "
                    "density; leave it out with columns=[...]"
                )


@dataclass
class Table:
    """What a file holds: cells that may not all be numbers, and names for messages.

    Attributes:
        file: the path, as given.
        cells: rows of text, or a `(N, d)` array.
        rows: where each row stands in the file, as `"line 7"` or `"row 5"`.
        width: number of columns.
        names: of the columns, if there is a header.
    """

    file: str
    cells: list[list[str]] | np.ndarray
    rows: list[str]
    width: int
    names: list[str] | None = None

    def label(self, column: int) -> str:
        """`"column 'mass' (2)"`, or `"column 2"`."""
        return f"column {column}" if self.names is None else f"column {self.names[column]!r} ({column})"

    def where(self, row: int, column: int) -> str:
        """File, row and column of a cell, for messages."""
        return f"{self.file}, {self.rows[row]}, {self.label(column)}"

    def positions(self, chosen: Sequence[str | int]) -> list[int]:
        """Positions of columns given by name or position; an ArgumentError for one that is not there, or twice."""
        found = [self._position(column) for column in chosen]
        for column in found:
            if found.count(column) > 1:
                raise ArgumentError(f"{self.file}: {self.label(column)} is asked for {found.count(column)} times")
        return found

    def others(self, taken: list[int]) -> list[int]:
        """Every column that is not taken."""
        left = [column for column in range(self.width) if column not in taken]
        if not left:
            raise ArgumentError(
                f"{self.file} has {self.width} columns and all are conditions; nothing is left to model"
            )
        return left

    def _position(self, column: str | int) -> int:
        if isinstance(column, str):
            if self.names is None:
                raise ArgumentError(f"{self.file} has no header, so no column {column!r}; give positions from 0")
            if (copies := self.names.count(column)) != 1:
                problem = f"{copies} columns named {column!r}; give positions from 0"
                missing = f"no column named {column!r}{did_you_mean(column, self.names)}"
                raise ArgumentError(f"{self.file} has {problem if copies else missing}")
            return self.names.index(column)
        if isinstance(column, bool) or not 0 <= column < self.width:
            raise ArgumentError(f"{self.file} has columns 0 .. {self.width - 1}, and {column!r} was asked for")
        return column

    def numbers(self, columns: list[int]) -> Tensor:
        """`(N, len(columns))` finite numbers in float64; an ArgumentError naming the first cell that is none."""
        if isinstance(self.cells, np.ndarray):
            values = self.cells[:, columns].astype(np.float64)
        else:
            values = np.array([[self._number(r, c) for c in columns] for r in range(len(self.cells))])
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, place = bad[0]
            more = f", and {len(bad) - 1} cells more" if len(bad) > 1 else ""
            raise ArgumentError(
                f"{self.where(row, columns[place])}: got {values[row, place]}, expected a finite number{more}; "
                "drop or fill such rows first"
            )
        return torch.from_numpy(values)

    def _number(self, row: int, column: int) -> float:
        cell = self.cells[row][column].strip()
        if not cell:
            raise ArgumentError(f"{self.where(row, column)}: missing, expected a number; drop or fill such rows first")
        if not _is_number(cell):
            raise ArgumentError(
                f"{self.where(row, column)}: got {cell!r}, expected a number; "
                "leave columns of text out with columns=[...]"
            )
        return float(cell)


def read_table(file: str, key: str | None = None, header: bool | None = None) -> Table:
    """The table in a .csv, .npy or .npz file; the arguments and errors are those of `Tabular`."""
    path = _found(file, key, header)
    suffix = path.suffix.lower()
    try:
        return _read_csv(file, path, header) if suffix == ".csv" else _read_array(file, path, key)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zipfile.BadZipFile) as error:
        raise ArgumentError(f"{file} cannot be read as {suffix}: {error}") from error


def _found(file: str, key: str | None, header: bool | None) -> Path:
    """The path of a file of a kind that can be read, which is there, and may have the key and the header asked for."""
    try:
        path = Path(file).expanduser()
        there, folder = path.is_file(), path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file system allows, or nobody's home
        raise ArgumentError(f"{file!r} is no name of a file: {error}") from None
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".npy", ".npz"):
        raise ArgumentError(f"{file} ends in {suffix or 'nothing'!r}, expected .csv, .npy or .npz")
    if key is not None and suffix != ".npz":
        raise ArgumentError(f"key is {key!r}, and {file} is no .npz file, which alone has keys")
    if header is not None and suffix != ".csv":
        raise ArgumentError(f"header is {header}, and {file} is no .csv file, which alone has one")
    if not there:
        raise ArgumentError(f"there is {'a folder' if folder else 'no file'} at {file}; looked for {path.absolute()}")
    return path


def _read_csv(file: str, path: Path, header: bool | None) -> Table:
    with open(path, newline="", encoding="utf-8-sig") as stream_:
        reader = csv.reader(stream_, skipinitialspace=True)
        lines = [(reader.line_num, row) for row in reader if row]
    if not lines:
        raise ArgumentError(f"{file} is empty, expected rows of numbers separated by commas")
    width = len(lines[0][1])
    for number, row in lines:
        if len(row) != width:
            raise ArgumentError(
                f"{file}, line {number}: has {len(row)} cells, expected {width} as in line {lines[0][0]}"
            )
    if width == 1 and any(mark in lines[0][1][0] for mark in ";\t"):
        raise ArgumentError(f"{file} is separated by semicolons or tabs, expected commas")
    names = None
    if _has_header(file, lines[0][1]) if header is None else header:
        names = [name.strip() for name in lines[0][1]]
        lines = lines[1:]
        if not lines:
            raise ArgumentError(f"{file} has a header and no rows")
    return Table(file, [row for _, row in lines], [f"line {number}" for number, _ in lines], width, names)


def _has_header(file: str, first: list[str]) -> bool:
    numbers = [cell for cell in first if _is_number(cell)]
    names = [cell for cell in first if cell.strip() and not _is_number(cell)]
    if numbers and names:
        raise ArgumentError(
            f"{file}: the first row mixes text ({names[0]!r}) and numbers ({numbers[0]!r}); "
            "say header=true if it names the columns, header=false if it is data"
        )
    return bool(names)


def _is_number(cell: str) -> bool:
    """Whether the cell is a number, NaN and infinities included; not with Python's digit separators, as 1_000."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _read_array(file: str, path: Path, key: str | None) -> Table:
    try:
        # Opened here, because numpy leaves a damaged file open.
        with open(path, "rb") as raw:
            array = np.load(raw, allow_pickle=False)
            if isinstance(array, np.lib.npyio.NpzFile):
                key = _key(file, array.files, key)
                file, array = f"{file}[{key}]", array[key]
    except ArgumentError:
        raise
    except ValueError as error:
        raise ArgumentError(
            f"{file} holds Python objects, or is damaged ({error}); pickles are never loaded: "
            "save a plain array of numbers with numpy.save"
        ) from error
    if array.dtype.kind not in "fiub":
        raise ArgumentError(f"{file} holds values of type {array.dtype}, expected real numbers")
    if array.ndim != 2:
        hint = "; save x[:, None] if its values are rows of one column" if array.ndim == 1 else ""
        raise ArgumentError(f"{file} has shape {array.shape}, expected two dimensions (rows, columns){hint}")
    if array.size == 0:
        raise ArgumentError(f"{file} is empty: it has shape {array.shape}")
    return Table(file, array, [f"row {row}" for row in range(len(array))], array.shape[1])


def _key(file: str, keys: list[str], key: str | None) -> str:
    if key is not None and key not in keys:
        raise ArgumentError(f"{file} has no array {key!r}{did_you_mean(key, keys)}")
    if key is None and len(keys) != 1:
        raise ArgumentError(f"{file} holds {len(keys)} arrays ({', '.join(keys)}); say which one with key=...")
    return keys[0] if key is None else key
