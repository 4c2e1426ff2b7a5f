"""Reads CSV files: a line of column names, then numbers, with or without a column of times."""

import csv
import datetime
import io
import math
from collections.abc import Sequence

import numpy as np

from tbptt.streams.arrays import LARGEST
from tbptt.streams.files import DataError, read_bytes
from tbptt.streams.series import Series

MISSING = ("", "na", "nan", "null", "none", "?", "-")
DELIMITERS = ",;\t"
EXPECTED = "a CSV file with a line of column names and two lines of values at least"
TIMES = "like 2020-01-31, 20200131, 2020-01-31 12:00 or 2020-01-31T12:00:00+01:00"

Line = tuple[int, list[str]]  # its number in the file, and its fields


def read_series(
    path: str, columns: Sequence[str] | None = None, *, time_column: str | None = None
) -> Series:
    """Reads the series in a CSV file with a line of column names.

    Fields are separated by commas, semicolons or tabs, whichever is most frequent in the first
    line; with semicolons `1,5` is a number too. The text is UTF-8, or else Latin-1.

    Args:
      path: the path of the file.
      columns: names of the columns to read. None: all but the time column.
      time_column: the column of times, as ISO 8601 or as 20200131. None: the first column, unless
        it holds numbers. Times with a zone become UTC.

    Raises:
      DataError: the file or a column does not exist, there are no column names, a name occurs
        twice, a line has more or fewer fields, or a field is neither a number nor a sign for a
        missing one; the message names file, line and column.
    """
    names, body, delimiter = _read_lines(path)
    decimal = "," if delimiter == ";" else "."
    if time_column is None and _number(body[0][1][0], decimal) is None:
        time_column = names[0]
    values_of = [name for name in names if name != time_column]
    if columns is not None:
        values_of = list(columns)
        twice = sorted({name for name in values_of if values_of.count(name) > 1})
        if twice:
            raise DataError(f"The column {twice[0]!r} is asked for twice. Name each column once.")
    if not values_of:
        raise DataError(f"{path!r} has no column but {time_column!r}. It must be {EXPECTED}.")
    places = [_place(path, names, name) for name in values_of]
    values = np.empty([len(body), len(places)])
    for k, (number, line) in enumerate(body):
        for j, place in enumerate(places):
            value = _number(line[place], decimal)
            if value is None:
                raise DataError(
                    f"{path}:{number}: {line[place]!r} in column {names[place]!r} is no number. "
                    "Choose other columns, or leave it empty if it is missing."
                )
            if abs(value) > LARGEST:
                raise DataError(
                    f"{path}:{number}: {line[place]!r} in column {names[place]!r} is beyond what "
                    f"float32 holds, {LARGEST:.3g}. Replace it, or leave it empty if it is missing."
                )
            values[k, j] = value
    times = None
    if time_column is not None:
        place = _place(path, names, time_column)
        times = _times(path, time_column, [(number, line[place]) for number, line in body])
    return Series(values, tuple(values_of), times)


def _read_lines(path: str) -> tuple[list[str], list[Line], str]:
    """Returns column names, the lines below them, and the character that separates fields."""
    data = read_bytes(path, EXPECTED)
    if b"\0" in data:
        raise DataError(f"{path!r} holds zero bytes, so it is no text. It must be {EXPECTED}.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    first = text.lstrip("\r\n").partition("\n")[0]
    delimiter = max(DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    lines: list[Line] = []
    try:
        for fields in reader:
            if fields:
                lines.append((reader.line_num, fields))
    except csv.Error as error:
        raise DataError(
            f"{path}:{reader.line_num} cannot be read ({error}). Is a quotation mark not closed? "
            f"It must be {EXPECTED}."
        ) from None
    if len(lines) < 3:
        raise DataError(f"{path!r} has {len(lines)} lines, but must be {EXPECTED}.")
    (number, names), *body = lines
    names = [name.strip() for name in names]
    decimal = "," if delimiter == ";" else "."
    if all(_number(name, decimal) is not None for name in names):
        raise DataError(
            f"{path}:{number} holds numbers where the names of the columns must be. Put a line of "
            "names above it."
        )
    for k, name in enumerate(names):
        if not name:
            raise DataError(f"{path}:{number}: column {k + 1} has no name. Give it one.")
        if name in names[:k]:
            raise DataError(f"{path}:{number}: two columns are named {name!r}. Rename one of them.")
    for number, fields in body:
        if len(fields) != len(names):
            raise DataError(
                f"{path}:{number} has {len(fields)} fields, but there are {len(names)} column "
                "names."
            )
    return names, body, delimiter


def _number(text: str, decimal: str) -> float | None:
    """Parses a number: NaN for a missing value, None if the text is no number."""
    text = text.strip()
    if text.lower() in MISSING:
        return math.nan
    if decimal == "," and text.count(",") == 1:
        text = text.replace(",", ".")
    try:
        return float(text)
    except ValueError:
        return None


def _times(path: str, column: str, fields: Sequence[tuple[int, str]]) -> np.ndarray:
    """Parses times as datetime64; times with a zone become UTC."""
    times, zones = [], set()
    for number, field in fields:
        try:
            time, zone = _time(field.strip())
        except ValueError:
            raise DataError(
                f"{path}:{number}: {field!r} in column {column!r} is no time {TIMES}. Rewrite the "
                "times in one of these forms, or remove the column."
            ) from None
        times.append(time)
        zones.add(zone)
        if len(zones) > 1:
            raise DataError(
                f"{path}:{number}: {field!r} in column {column!r} has a time zone where others "
                "have none, or the reverse. Give a zone to all times, or to none."
            )
    return np.array(times, "datetime64")


def _time(text: str) -> tuple[np.datetime64, bool]:
    """Parses a time and returns whether it had a zone; raises ValueError if it is no time."""
    if len(text) == 8 and text.isdecimal():  # 20200131
        text = f"{text[:4]}-{text[4:6]}-{text[6:]}"
    clock = text[10:]
    if clock.endswith(("Z", "z")) or "+" in clock or "-" in clock:
        zoned = datetime.datetime.fromisoformat(text.upper().replace("Z", "+00:00"))
        return np.datetime64(zoned.astimezone(datetime.timezone.utc).replace(tzinfo=None)), True
    if not text[:4].isdecimal():  # NumPy would take "now" too
        raise ValueError(text)
    return np.datetime64(text), False


def _place(path: str, names: Sequence[str], name: str) -> int:
    if name not in names:
        raise DataError(f"There is no column {name!r} in {path!r}. There are: {', '.join(names)}.")
    return list(names).index(name)
