"""The flags by which files that join a data folder may be read otherwise than its own were."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from lcrec.core.config import option


@dataclass(frozen=True, kw_only=True)
class ReadingFlags:
    """Settings of `lcrec add_interactions` and `lcrec add_items`: options of `lcrec prepare`.

    None is what the data folder was prepared with.
    """

    format: str | None = option(
        "how the files are written, as in `lcrec prepare --format`; this and the next ones by "
        "default as when the data folder was prepared",
        None,
    )
    encoding: str | None = option("how text files are encoded, as in `lcrec prepare`", None)
    columns: str | None = option("which columns to read, as in `lcrec prepare`", None)
    order: Literal["time", "file"] | None = option(
        "time: by their times; file: rows have no times and stand in order", None
    )
    bad_rows: Literal["error", "drop"] | None = option(
        "rows that cannot be used: refuse, naming the first; or drop and count them", None
    )
    differing_items: Literal["error", "longest"] | None = option(
        "when an item has several rows with different texts: refuse, or take the one with most "
        "text",
        None,
    )

    def given(self) -> dict[str, Any]:
        """Return the flags that were given."""
        values = {field.name: getattr(self, field.name) for field in fields(ReadingFlags)}
        return {name: value for name, value in values.items() if value is not None}
