"""The data card: what a data set holds and what was removed on the way there.

`make_card` measures, and `card_page` shows the same figures as a page with pictures. Both hold the
same for the same input, wherever it lay and whenever it was read.
"""

import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes

from lcrec.core.report import Block, Heading, Paragraph, Picture, Table, draw_svg, render_page
from lcrec.data.splits import PARTS
from lcrec.prepare.filters import UNITS, time_unit
from lcrec.prepare.folder import Numbered
from lcrec.prepare.pipeline import Ledger
from lcrec.prepare.text import Catalogue

Card = dict[str, Any]
BARS = 40
NAMED = 10  # ids named of items that lost a text
UNIT_NAMES = {per_second: name for name, (_, _, per_second) in UNITS.items()}
SHOWN = 300  # characters of a text shown before and after cleaning


def make_card(
    name: str, ledger: Ledger, catalogue: Catalogue, numbered: Numbered, parts: np.ndarray | None
) -> Card:
    """Measure a data set.

    Args:
        ledger: what every step left and took.
        catalogue: the items, and what became of their texts.
        parts: int8 [interactions], the part of the split each belongs to; None for leave-one-out.

    Returns:
        JSON values. `dropped` and `interactions` add up to `input_interactions`.
    """
    ledger.check()
    lengths, popularity = np.diff(numbered.offsets), numbered.popularity()
    items = catalogue.items
    texts = pc.add(pc.utf8_length(items["title"]), pc.utf8_length(items["description"]))
    sizes = np.asarray(texts.to_numpy(), dtype=np.int64)
    first, last = float(numbered.times.min()), float(numbered.times.max())
    unit = 1_000_000 if numbered.is_date else time_unit(first, last)
    counts = {part: len(ids) for part, ids in catalogue.left_out.items()}
    left_out, splits = sum(counts.values()), None
    if parts is not None:
        splits = dict(zip(PARTS, np.bincount(parts, minlength=3).tolist(), strict=True))
    return {
        "name": name,
        "users": len(lengths),
        "items": len(popularity),
        "interactions": len(numbered.items),
        "sparsity": 1 - len(numbered.items) / (len(lengths) * len(popularity)),
        "input_interactions": ledger.total,
        "dropped": ledger.dropped,
        "steps": [
            {"after": step, "users": at.users, "items": at.items, "interactions": at.interactions}
            for step, at in ledger.steps
        ],
        "split": splits,
        "items_left_out": counts,
        "share_of_items_left_out": left_out / (left_out + len(items)),
        "texts_of_markup_alone": {
            field: {"items": len(ids), "such_as": ids[:NAMED]}
            for field, ids in catalogue.emptied.items()
        },
        "share_of_items_without": {
            field: _share_empty(items[field]) for field in items.column_names if field != "item"
        },
        "cleaned": [
            {"field": field, "before": before[:SHOWN], "after": after[:SHOWN]}
            for field, before, after in catalogue.samples
        ],
        "sequence_length": _spread(lengths),
        "item_popularity": _spread(popularity),
        "text_length": _spread(sizes),
        "share_of_ties": _share_of_ties(numbered),
        "time": {
            "unit": UNIT_NAMES.get(unit or 0, "not known"),
            "first": _moment(first, unit),
            "last": _moment(last, unit),
        },
        "histograms": {
            "sequence_length": _histogram(lengths, logarithmic=True),
            "item_popularity": _histogram(popularity, logarithmic=True),
            "text_length": _histogram(sizes, logarithmic=True),
            "time": _histogram(numbered.times / (unit or 1), logarithmic=False),
        },
    }


def _share_of_ties(numbered: Numbered) -> float:
    """Return the share of neighbours in the histories that happened at one time."""
    neighbours = np.ones(len(numbered.times) - 1, dtype=bool)
    neighbours[numbered.offsets[1:-1] - 1] = False
    return float((np.diff(numbered.times)[neighbours] == 0).mean()) if neighbours.any() else 0.0


def _share_empty(column: pa.ChunkedArray) -> float:
    empty = pc.sum(pc.equal(column, "")).as_py() or 0
    return empty / len(column)


def _spread(values: np.ndarray) -> dict[str, float]:
    """Return minimum, median, mean, 90th percentile and maximum."""
    return {
        "min": int(values.min()),
        "median": float(np.median(values)),
        "mean": float(values.mean()),
        "p90": float(np.quantile(values, 0.9)),
        "max": int(values.max()),
    }


def _moment(value: float, per_second: int | None) -> str | float:
    """Return a date where the unit is known, else the number."""
    if per_second is None:
        return value
    start = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    try:
        moment = start + datetime.timedelta(seconds=value / per_second)
    except OverflowError:
        return value
    return moment.isoformat(timespec="seconds")


def _histogram(values: np.ndarray, *, logarithmic: bool) -> dict[str, list[float]]:
    """Return counts [bars] and the edges of the bars [bars + 1]."""
    low, high = float(values.min()), float(values.max())
    if logarithmic:
        edges = np.unique(np.round(np.geomspace(max(low, 1), high + 1, BARS + 1)))
        edges[0] = low
    else:
        edges = np.linspace(low, high if high > low else low + 1, BARS + 1)
    if len(edges) < 2:
        edges = np.array([low, low + 1])
    counts, _ = np.histogram(values, edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def card_page(card: Card) -> str:
    """Return the card as a page, a whole HTML document."""
    steps = [
        [
            step["after"],
            *(f"{step[name]:,}" for name in ("users", "items", "interactions")),
            f"{1 - step['interactions'] / (step['users'] * step['items']):.3%}",
            f"{step['interactions'] / step['users']:.2f}",
        ]
        for step in card["steps"]
    ]
    dropped = [[reason, f"{count:,}"] for reason, count in card["dropped"].items()]
    dropped += [["kept", f"{card['interactions']:,}"]]
    dropped += [["all together: the input", f"{card['input_interactions']:,}"]]
    time = card["time"]
    blocks: list[Block] = [
        Paragraph(
            f"{card['users']:,} users, {card['items']:,} items, {card['interactions']:,} "
            f"interactions from {time['first']} to {time['last']}; sparsity "
            f"{card['sparsity']:.3%}. Of neighbours in a history "
            f"{card['share_of_ties']:.1%} happened at one time; "
            "a hash of user and item orders them."
        ),
        *(_picture(card, *what) for what in PICTURES),
        Heading("Step by step"),
        Table(
            "What was there after each step",
            ["after", "users", "items", "interactions", "sparsity", "mean length"],
            steps,
        ),
        Table("Where every interaction of the input went", ["reason", "interactions"], dropped),
    ]
    if card["split"]:
        rows = [[part, f"{count:,}"] for part, count in card["split"].items()]
        blocks.append(Table("The split", ["part", "interactions"], rows))
    blocks += [Heading("Spread"), _spread_table(card), Heading("Text"), _text_table(card)]
    if card["items_left_out"]:
        rows = [[reason, f"{count:,}"] for reason, count in card["items_left_out"].items()]
        blocks.append(Table("Items of the first core left out", ["reason", "items"], rows))
    if card["cleaned"]:
        rows = [[one["field"], one["before"], one["after"]] for one in card["cleaned"]]
        caption = "Texts before and after cleaning"
        blocks.append(Table(caption, ["field", "before", "after"], rows, text_columns=3))
    return render_page(f"Data card: {card['name']}", blocks)


def _spread_table(card: Card) -> Table:
    named = {
        "interactions of a user": "sequence_length",
        "interactions of an item": "item_popularity",
        "characters of title and description": "text_length",
    }
    columns = ["min", "median", "mean", "p90", "max"]
    rows = []
    for label, name in named.items():
        spread = card[name]
        rows.append([label, *(f"{round(spread[column], 2):,.10g}" for column in columns)])
    return Table("p90: nine of ten have no more", ["", *columns], rows)


def _text_table(card: Card) -> Table:
    rows = []
    for field, share in card["share_of_items_without"].items():
        lost = card["texts_of_markup_alone"].get(field, {"items": 0, "such_as": []})
        such = ", ".join(lost["such_as"])
        rows.append([field, such, f"{share:.1%}", f"{lost['items']:,}"])
    columns = ["field", "markup alone, such as", "items without", "items with markup alone"]
    return Table("Fields of the items", columns, rows, text_columns=2)


# Which histogram, its title, what the bars stand on, whether that is logarithmic, what is counted.
PICTURES = (
    ("sequence_length", "Length of the sequences", "interactions of a user", True, "users"),
    ("item_popularity", "Popularity of the items", "interactions of an item", True, "items"),
    ("time", "When it happened", "time", False, "interactions"),
    ("text_length", "Length of the texts", "characters of title and description", True, "items"),
)


def _picture(card: Card, name: str, title: str, label: str, log: bool, counted: str) -> Picture:
    edges = np.asarray(card["histograms"][name]["edges"])
    counts = np.asarray(card["histograms"][name]["counts"])
    is_date = name == "time" and card["time"]["unit"] != "not known"

    def draw(axes: Axes) -> None:
        axes.set_title(title)
        axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge")
        axes.set_xlabel(label)
        axes.set_ylabel(counted)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        if is_date:
            axes.xaxis.set_major_formatter(lambda value, _: str(_moment(value, 1))[:7])
            axes.set_xticks(np.linspace(edges[0], edges[-1], 4))
        elif log and edges[0] > 0:
            axes.set_xscale("log")
            axes.minorticks_off()
            axes.set_xticks(_log_ticks(edges[0], edges[-1]))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")

    fullest = int(counts.argmax())
    low, high = (
        str(_moment(edge, 1))[:10] if is_date else f"{edge:,.4g}"
        for edge in edges[fullest : fullest + 2]
    )
    text = f"Most {counted} per bar: {counts[fullest]:,} from {low} to {high}."
    return Picture(draw_svg(draw, f"{title}. {text}"), text)


def _log_ticks(low: float, high: float) -> np.ndarray:
    """Return three round numbers or more between two, for a logarithmic axis."""
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.log10(high) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7)):
        ticks = np.outer(decades, steps).ravel()
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        if len(ticks) >= 3:
            return ticks
    return np.unique(np.round(np.geomspace(low, high, 4)))
