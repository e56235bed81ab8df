"""What every filter took away: rows by reason, which add up to the input.

Reads and writes nothing.

Public names: `Counts`, `Ledger`, `HEADER`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ibis import _
from ibis.expr.types import Table

from lcrec.core.errors import InputError


@dataclass(frozen=True)
class Counts:
    """How much data there is after a step."""

    users: int
    items: int
    interactions: int

    @classmethod
    def of(cls, interactions: Table) -> "Counts":
        """Count the distinct users and items, and the rows."""
        row = interactions.aggregate(
            users=_.user.nunique(), items=_.item.nunique(), interactions=_.count()
        )
        return cls(**row.to_pyarrow().to_pylist()[0])

    @property
    def sparsity(self) -> float:
        """The share of user-item pairs that no interaction stands for."""
        return 1 - self.interactions / (self.users * self.items)

    @property
    def mean_length(self) -> float:
        """Interactions per user."""
        return self.interactions / self.users

    def line(self, step: str) -> str:
        """Return a line of the table that `HEADER` heads."""
        return (
            f"{step:<28}{self.users:>14,}{self.items:>14,}{self.interactions:>14,}"
            f"{self.sparsity:>14.3%}{self.mean_length:>14.2f}"
        )


COLUMNS = ("users", "items", "interactions", "sparsity", "mean length")
HEADER = f"{'after':<28}" + "".join(f"{column:>14}" for column in COLUMNS)


class Ledger:
    """Counts after every step, and why rows went.

    Attributes:
        steps: the name of each step and the counts after it, from "reading" on.
        dropped: reason -> interactions, no zeros.
    """

    def __init__(self, read: Table, lost: dict[str, int], say: Callable[[str], None]) -> None:
        """Begin with the rows that were read; `lost` could not be, by reason."""
        self.dropped = dict(lost)
        self.say = say
        counts = Counts.of(read)
        self.total = counts.interactions + sum(lost.values())
        self.steps = [("reading", counts)]
        say(HEADER)
        say(counts.line("reading"))

    @property
    def counts(self) -> Counts:
        """What is left."""
        return self.steps[-1][1]

    def step(
        self,
        name: str,
        left: Table,
        flag: str,
        reasons: dict[str, int] | None = None,
        *,
        same_ids: bool = False,
    ) -> None:
        """Write down what a filter left.

        Args:
            name: of the filter; also the reason for what it took, unless `reasons` says more.
            left: the interactions after it.
            flag: what a person may change where nothing is left.
            reasons: reason -> interactions taken for it.
            same_ids: by its nature it leaves every user and every item something.

        Raises:
            InputError: nothing is left.
        """
        before = self.counts
        rows = left.count().execute()
        if not rows:
            raise InputError(
                f"{flag}: nothing is left; before, there were {before.interactions:,} "
                f"interactions of {before.users:,} users with {before.items:,} items"
            )
        # Counting different ids is dear, and needless where none can have gone.
        if same_ids or rows == before.interactions:
            after = replace(before, interactions=rows)
        else:
            after = Counts.of(left)
        gone = before.interactions - after.interactions
        for reason, count in (reasons or {name: gone}).items():
            if count:
                self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.steps.append((name, after))
        self.say(after.line(name))
        self.check()

    def check(self) -> None:
        """Assert that what was dropped and what is left add up to the input."""
        accounted = sum(self.dropped.values()) + self.counts.interactions
        assert accounted == self.total, f"{accounted} of {self.total} interactions accounted for"
