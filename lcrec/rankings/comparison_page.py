"""Shows a `Comparison` to a person: tables in Markdown, and a page."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from lcrec.core.report import (
    SERIES,
    Block,
    Heading,
    Paragraph,
    Picture,
    Table,
    draw_svg,
    render_page,
)
from lcrec.rankings.comparison import Comparison, Test

MISSING = "–"
NAME = 30  # characters of a name in a picture
GROUPS = {
    "cold": "cold: the rarer 60 % of items",
    "mid": "mid: the next 20 %",
    "hot": "hot: the most bought",
    "new": "new: not in train at all",
    "known": "known: in train",
}


def comparison_markdown(figures: Comparison) -> str:
    """Return the tables as Markdown."""
    parts = [f"# {_title(figures)}", *_facts(figures)]
    tables = [_main_table(figures, "**{}**"), _test_table(figures), _group_table(figures)]
    tables += [_pair_table(figures)] if figures.pairs else []
    tables += [_cost_table(figures), *_left_out(figures)]
    for table in tables:
        rule = ["---"] * table.text_columns
        rule += ["---:"] * (len(table.columns) - table.text_columns)
        lines = [_line(row) for row in (table.columns, rule, *table.rows)]
        parts.append("\n".join([f"{table.caption}\n", *lines]))
    return "\n\n".join(parts) + "\n"


def comparison_page(figures: Comparison) -> str:
    """Return the page."""
    first, companion = figures.first
    blocks: list[Block] = [Paragraph(text) for text in _facts(figures)]
    blocks.append(_main_table(figures, "{} ★"))
    for metric in (first, companion):
        blocks.append(Picture(*_bars(figures, metric)))
    blocks += [
        Heading("Is the difference more than chance?"),
        Paragraph(
            f"Every method is laid beside {figures.reference}, user by user. The interval is of "
            f"the mean difference over {figures.test_samples:,} draws of the users; p is the "
            "share of draws that contradict the sign, twice. With many methods some seem to differ "
            "by chance: the last column is p after Holm's correction. What another seed changes is "
            "not in it; the table above shows that."
        ),
        _test_table(figures),
        Heading("For which items?"),
        Paragraph(
            "Only users whose target is in the group, ranking the whole catalogue. "
            + _cold_note(figures)
        ),
        _group_table(figures),
        Picture(*_group_picture(figures)),
    ]
    if figures.pairs:
        blocks += [
            Heading("What two find together"),
            Paragraph(
                "Of the first 10 items of each, with the first seed. Overlap: the items that both "
                "list, of those that either lists. Oracle: Recall@10 of whoever knew which of the "
                "two lists to believe; its lists have up to 20 items, so it is an upper bound, "
                "not a method. Methods stand in the order of the first table."
            ),
            _matrix(figures, "overlap", "Overlap of the lists"),
            _matrix(figures, "oracle", "Oracle Recall@10; on the diagonal the method's own"),
            _pair_table(figures),
        ]
    blocks += [Heading("What it cost"), _cost_table(figures)]
    if left_out := _left_out(figures):
        blocks += [Heading("Left out"), *left_out]
    return render_page(_title(figures), blocks)


def _title(figures: Comparison) -> str:
    return f"{len(figures.methods)} methods on {figures.conditions.data}"


def _facts(figures: Comparison) -> list[str]:
    """Return what a reader must know to read the tables, a paragraph each."""
    splits = {
        "leave-one-out": "leave-one-out (the last item of every user is the target)",
        "time": "split by time (every later interaction is a target, after all before it)",
        "sets": "some of every user's items, whatever their time, as targets",
    }
    conditions = figures.conditions
    masks = conditions.exclude_history or conditions.protocol == "sets"
    masking = (
        "What a user already has is never ranked, but for a target."
        if masks
        else "What a user already has may be ranked again."
    )
    # The mask spares a target: among what its user has it then stands alone.
    given = (
        f" {conditions.repeats:.1%} of the users have their target already; it alone of what they "
        "have is left in the lists, and so easily found."
        if masks and conditions.repeats
        else ""
    )
    short = [name for name, one in figures.methods.items() if one.length < 20]
    note = f" The lists of {', '.join(short)} end before 20 items." if short else ""
    seeds = max(len(one.seeds) for one in figures.methods.values())
    spread = (
        " After ± the standard deviation over the seeds; a method without it drew nothing at "
        "random, or ran once."
        if seeds > 1
        else ""
    )
    settings = "the best known" if conditions.tuned else "their papers' or RecBole's"
    late = [
        name
        for name, one in figures.methods.items()
        if any(run and run["out_of_time"] for run in one.training or [])
    ]
    cut = f" Training was cut short of {', '.join(late)} (--max-minutes)." if late else ""
    of = f"{figures.cases:,} cases, " if conditions.protocol == "time" else ""
    return [
        f"{figures.users:,} users, {of}{conditions.items:,} items, "
        f"{splits[conditions.protocol]}, ranking of the whole catalogue. "
        f"{masking}{given} Settings of the methods: {settings}.",
        f"Means over the users.{spread} The best of a column is marked.{note}{cut}",
    ]


def _main_table(figures: Comparison, mark: str) -> Table:
    methods, metrics = figures.methods, figures.metrics
    best = {metric: max(one.overall[metric].mean for one in methods.values()) for metric in metrics}
    rows = []
    for name, one in methods.items():
        cells = []
        for metric in metrics:
            value = one.overall[metric]
            text = _number(value.mean)
            if len(value.by_seed) > 1:
                text += f" ± {_number(float(np.std(value.by_seed, ddof=1)))}"
            cells.append(mark.format(text) if value.mean == best[metric] else text)
        rows.append([name, str(len(one.seeds)), *cells])
    return Table("All methods, best first.", ["method", "runs", *metrics], rows)


def _test_table(figures: Comparison) -> Table:
    rows = []
    for name, one in figures.methods.items():
        for metric in figures.first:
            value = one.overall[metric]
            test = None if one.against is None else one.against[metric]
            rows.append(
                [
                    name,
                    metric,
                    _number(value.mean),
                    f"{_number(value.low)} to {_number(value.high)}",
                    *([MISSING] * 4 if test is None else _test_cells(test)),
                ]
            )
    level = f"{figures.level:.0%}".replace("%", " %")
    return Table(
        f"Mean over seeds and users; {level} bootstrap intervals over users; against "
        f"{figures.reference}, paired.",
        ["method", "metric", "mean", "interval", "difference", "its interval", "p", "p (Holm)"],
        rows,
        text_columns=2,
    )


def _test_cells(test: Test) -> list[str]:
    interval = f"{test.low:+.4f} to {test.high:+.4f}"
    chances = [f"{p:.3f}" if p >= 0.001 else "< .001" for p in (test.p, test.p_holm)]
    return [f"{test.difference:+.4f}", interval, *chances]


def _group_table(figures: Comparison) -> Table:
    first, companion = figures.first
    columns = [f"{group}, {metric}" for group in figures.groups for metric in (first, companion)]
    rows = [
        [
            name,
            *(
                _number(one.groups[group][metric])
                for group in figures.groups
                for metric in (first, companion)
            ),
        ]
        for name, one in figures.methods.items()
    ]
    sizes = "; ".join(
        f"{GROUPS[group]} ({size.items:,} items, {size.users:,} users)"
        for group, size in figures.groups.items()
    )
    return Table(f"By how often train has the target. {sizes}.", ["method", *columns], rows)


def _cold_note(figures: Comparison) -> str:
    users = figures.groups["new"].users
    if users:
        return f"{users:,} users have a target that train does not have."
    return "No user's target is missing from train, so there is nothing to say of new items."


def _matrix(figures: Comparison, key: str, caption: str) -> Table:
    """Return a square table; methods are numbered, so that many fit."""
    names = list(figures.methods)
    metric = figures.first[1]
    cells: dict[tuple[str, str], float] = {}
    for pair in figures.pairs:
        value = pair.overlap if key == "overlap" else pair.all["oracle"]
        cells[pair.a, pair.b] = cells[pair.b, pair.a] = value
    for name in names:
        own = figures.methods[name].overall[metric].by_seed[0]
        cells[name, name] = 1.0 if key == "overlap" else own
    rows = [
        [f"{number} {name}", *(_number(cells[name, other], 3) for other in names)]
        for number, name in enumerate(names, start=1)
    ]
    return Table(f"{caption}.", ["method", *map(str, range(1, len(names) + 1))], rows)


def _pair_table(figures: Comparison) -> Table:
    pairs = sorted(figures.pairs, key=lambda pair: -pair.all["oracle"])[:10]
    rows = [
        [
            pair.a,
            pair.b,
            _number(pair.overlap),
            *(f"{pair.hits[side]:,}" for side in ("both", "a_only", "b_only")),
            _number(pair.all["oracle"]),
            f"{pair.all['gain']:+.4f}",
        ]
        for pair in pairs
    ]
    columns = ["first", "second", "overlap", "hits of both", "of the first alone"]
    columns += ["of the second alone", "oracle", "more than the better"]
    return Table("The pairs with the highest oracle Recall@10, lists cut at 10.", columns, rows, 2)


def _cost_table(figures: Comparison) -> Table:
    rows = [
        [
            name,
            MISSING if one.seconds is None else f"{one.seconds:,.0f}",
            MISSING if one.peak_mb is None else f"{one.peak_mb:,}",
            ", ".join(map(_epochs, one.training or [None])),
        ]
        for name, one in figures.methods.items()
    ]
    return Table(
        "Seconds per run, fitting and ranking; the most memory of its process; the epochs of each "
        "run, and which was the best. + marks a run that --max-minutes cut short.",
        ["method", "seconds", "MB", "epochs (best)"],
        rows,
    )


def _epochs(training: dict[str, Any] | None) -> str:
    if training is None:
        return MISSING
    late = "+" if training["out_of_time"] else ""
    return f"{training['epochs']}{late} ({training['best_epoch']})"


def _left_out(figures: Comparison) -> list[Table]:
    rows = [[name, reason] for name, reason in figures.left_out.items()]
    return [Table("Left out.", ["method", "why"], rows, 2)] if rows else []


def _bars(figures: Comparison, metric: str) -> tuple[Any, str]:
    methods = figures.methods
    values = [one.overall[metric] for one in methods.values()]
    means = np.array([value.mean for value in values])
    reach = [
        [value.mean - value.low for value in values],
        [value.high - value.mean for value in values],
    ]

    def draw(axes: Axes) -> None:
        _name_rows(axes, list(methods))
        places = np.arange(len(means))
        axes.barh(places, means, height=0.7, color=SERIES[0], alpha=0.45)
        axes.errorbar(
            means, places, xerr=np.clip(reach, 0, None), fmt="none", ecolor=SERIES[0], capsize=2
        )
        axes.set_xlim(left=0)
        axes.set_title(metric)

    listed = ", ".join(f"{name} {_number(mean)}" for name, mean in zip(methods, means, strict=True))
    svg = draw_svg(draw, f"Bars of {metric}: {listed}", height=_height(len(methods)))
    return svg, f"{metric} of every method, with its bootstrap interval over users."


def _group_picture(figures: Comparison) -> tuple[Any, str]:
    methods, metric = figures.methods, figures.first[0]

    def draw(axes: Axes) -> None:
        _name_rows(axes, list(methods))
        places = np.arange(len(methods))
        for group, marker, colour in zip(("cold", "mid", "hot"), "o^s", SERIES, strict=True):
            values = [one.groups[group][metric] for one in methods.values()]
            known = [value if value is not None else np.nan for value in values]
            axes.plot(known, places, marker, color=colour, label=group, linestyle="none")
        axes.set_xlim(left=0)
        # Long names leave little width: from the right, the title may stand above them.
        axes.set_title(f"{metric} by popularity", loc="right")
        axes.legend(loc="lower right")

    svg = draw_svg(
        draw,
        f"{metric} of every method where the target is rare, middling or popular; the numbers "
        "stand in the table above",
        height=_height(len(methods)),
    )
    return svg, f"{metric} where the target is rare, middling or popular in train."


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    # A method with many flags would leave no space to draw in; the tables have it whole.
    short = [textwrap.shorten(name, NAME, placeholder=" …") for name in names]
    axes.set_yticks(np.arange(len(names)), short)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")


def _height(rows: int) -> float:
    """Return the height of a picture with so many rows, in inches."""
    return 0.9 + 0.22 * rows


def _number(value: float | None, digits: int = 4) -> str:
    return MISSING if value is None else f"{value:.{digits}f}".removeprefix("0")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
