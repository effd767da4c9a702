"""Files of rows, CSV or Parquet, scanned lazily under our own column names (polars)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import polars as pl

_ZONE = r"\s*(?:[Zz]|UTC|GMT|[+-]\d\d(?::?\d\d)?)"
#: The zone of a time, after a time of day: in a date alone, ``-01`` is no zone but a day.
ZONE = rf"(:\d\d(?:\.\d+)?){_ZONE}$"
#: The time of day at the end of a text, after a date or alone, in ISO 8601 also without colons; then a zone.
TIME_OF_DAY = (
    r"(?:(?:^|[T\s])(?<hour>[0-9]{1,2}):(?<minute>[0-9]{2})(?::(?<second>[0-9]{2})(?:\.(?<fraction>[0-9]+))?)?"
    r"(?:\s*(?<half>[AaPp])[Mm])?"
    rf"|T(?<hh>[0-9]{{2}})(?<mm>[0-9]{{2}})(?<ss>[0-9]{{2}})?)(?:{_ZONE})?\s*$"
)
FORMATS = ".csv, .csv.gz, .csv.zst or .parquet"


def scan(
    path: Path,
    what: Literal["trip", "trace"],
    known: Sequence[str],
    needed: Callable[[Collection[str]], Sequence[str]],
    columns: Mapping[str, str],
) -> pl.LazyFrame:
    """The columns that we need, under our names; everything in a CSV is text.

    Args:
        path: The file.
        what: What its rows are, for messages.
        known: All names of ours.
        needed: Those of them to read, given the names in the file.
        columns: Maps our names to the file's, where they differ.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If polars is not installed.
        ValueError: If the file is of another kind or cannot be read, or a column is missing or unknown.
    """
    try:
        import polars as pl
    except ImportError as error:
        raise ImportError(f"Reading {what} files needs polars: pip install 'safe-m3-taxi[trips]'") from error

    unknown = set(columns) - set(known)
    if unknown:
        raise ValueError(f"columns maps unknown names {sorted(unknown)}; allowed are {list(known)}")
    if not path.is_file():
        raise FileNotFoundError(f"no {what} file at {path}")
    kind = path.name.lower()
    try:
        if kind.endswith((".parquet", ".pq")):
            frame = pl.scan_parquet(path, glob=False)  # the path as it is: brackets in it are no pattern
        elif kind.endswith((".csv", ".csv.gz", ".csv.zst")):
            # As text: a single malformed number must be counted and named, not abort the reader.
            frame = pl.scan_csv(path, infer_schema=False, glob=False)
        else:
            raise ValueError(f"{path}: {what}s must be a {FORMATS} file")
        names = frame.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(path, error) from error
    actual = {name: columns.get(name, name) for name in needed(names)}
    missing = [f"{column!r} (for {name})" for name, column in {**actual, **columns}.items() if column not in names]
    if missing and len(names) == 1 and any(sign in names[0] for sign in ";\t|"):
        raise ValueError(
            f"{path}: columns must be separated by commas, and numbers have decimal points; its first line is {names[0]!r}"
        )
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(missing)}; it has {names}. Map our names to the file's with columns={{...}}"
        )
    return frame.select(pl.col(column).alias(name) for name, column in actual.items())


def unreadable(path: Path, error: BaseException) -> ValueError:
    """What to raise where polars failed on a file."""
    lines = str(error).strip().splitlines()
    return ValueError(f"{path} cannot be read: {lines[0] if lines else type(error).__name__}")


def as_number(name: str, kind: pl.DataType) -> pl.Expr:
    """A column of a type as floating-point numbers, null where unreadable; text may have blanks around them."""
    import polars as pl

    column = pl.col(name).str.strip_chars() if kind == pl.String else pl.col(name)
    return column.cast(pl.Float64, strict=False)


def local_time_text(name: str) -> pl.Expr:
    """A column of times as text without their zone, that is local time as written; null where there is no time of day."""
    import polars as pl

    text = pl.col(name).str.strip_chars().str.replace(ZONE, "$1")
    return pl.when(text.str.contains("[T:]")).then(text)


def with_times_of_day(frame: pl.LazyFrame, name: str) -> pl.LazyFrame:
    """The frame with a column of text turned into times of day, as written; null where there is none.

    What stands before the time is not read: dates are written in too many ways, and month and day are told apart by guessing.
    """
    import polars as pl

    def part(*names: str) -> pl.Expr:
        return pl.coalesce(pl.col(name).struct.field(one) for one in names)

    hour, minute = part("hour", "hh").cast(pl.Int64), part("minute", "mm").cast(pl.Int64)
    second = part("second", "ss").fill_null("0").cast(pl.Int64)
    fraction = part("fraction").fill_null("0").str.pad_end(9, "0").str.head(9).cast(pl.Int64)
    half = part("half").str.to_lowercase()
    possible = pl.when(half.is_null()).then(hour < 24).otherwise(hour.is_between(1, 12)) & (minute < 60) & (second < 60)
    hour = pl.when(half.is_null()).then(hour).otherwise(hour % 12 + 12 * (half == "p").cast(pl.Int64))
    nanoseconds = ((hour * 60 + minute) * 60 + second) * 10**9 + fraction
    # The parts as a column of their own: each use of an expression would search the text once more.
    parts = frame.with_columns(pl.col(name).str.extract_groups(TIME_OF_DAY))
    return parts.with_columns(pl.when(possible).then(nanoseconds).cast(pl.Time).alias(name))


def check_time_type(path: Path, column: str, kind: pl.DataType) -> None:
    """Refuse a column that holds neither times of day nor text, such as one of dates alone.

    Raises:
        ValueError: If so; the message names file, column and type.
    """
    import polars as pl

    if not isinstance(kind, (pl.String, pl.Time, pl.Datetime)):
        raise ValueError(f"{path}: column {column!r} must hold times or text, not {kind}")


def is_degree(name: str, most: int) -> pl.Expr:
    """Whether a number is an angle of at most ``most`` degrees either way; null is not."""
    import polars as pl

    return (pl.col(name).is_finite() & (pl.col(name).abs() <= most)).fill_null(False)
