"""The curves of a fine-tune as a page: losses, rankings of the held-out users, learning rate.

Reads what the trainer logged; returns HTML. The same run gives the same bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from lcrec.core.report import (
    QUIET,
    Block,
    Heading,
    Paragraph,
    Picture,
    Table,
    draw_svg,
    render_page,
)

Points = list[tuple[float, float]]  # (epoch, value)
METRICS = ("hr@10", "ndcg@10")


def training_page(
    name: str, history: Sequence[Mapping[str, Any]], simple: Mapping[str, tuple[float, float]]
) -> str:
    """Return the page, a whole HTML document.

    Args:
        name: of the run.
        history: what was logged, oldest first: `loss`, `loss_<task>`, `learning_rate`, `eval_loss`,
            `eval_hr@10` and `eval_ndcg@10`, each with `epoch` and `step`; all else is passed over.
        simple: HR@10 and NDCG@10 of simpler methods on the same users, by name.
    """
    tasks = list(dict.fromkeys(key for row in history for key in row if key.startswith("loss_")))
    losses = {"training": _points(history, "loss"), "validation": _points(history, "eval_loss")}
    blocks: list[Block] = [
        Paragraph(
            "The loss is the mean over answer tokens since the point before. Validation ranks the "
            "whole catalogue for users held out; the best NDCG@10 decides which weights are kept."
        ),
        Heading("Rankings of the held-out users"),
    ]
    for place, metric in enumerate(METRICS):
        levels = {method: figures[place] for method, figures in simple.items()}
        lines = {"the model": _points(history, f"eval_{metric}")}
        blocks.append(_picture(metric.upper(), lines, levels))
    blocks += [Heading("Losses"), _picture("Loss of all tasks", losses)]
    blocks += [
        _picture(f"Loss of {key.removeprefix('loss_')}", {"training": _points(history, key)})
        for key in tasks
    ]
    rate = {"learning rate": _points(history, "learning_rate")}
    blocks += [Heading("Learning rate"), _picture("Learning rate", rate), _validations(history)]
    return render_page(f"Training of {name}", blocks)


def _points(history: Sequence[Mapping[str, Any]], key: str) -> Points:
    return [(row["epoch"], row[key]) for row in history if key in row]


def _picture(
    title: str, lines: Mapping[str, Points], levels: Mapping[str, float] | None = None
) -> Picture:
    """Return lines over the epochs, with flat levels to compare with."""
    levels = levels or {}
    known = {label: points for label, points in lines.items() if points}

    def draw(axes: Axes) -> None:
        axes.set_title(title)
        for label, points in known.items():
            marker = "" if len(points) > 30 else None
            axes.plot(*zip(*points, strict=True), label=label, markersize=3, marker=marker)
        for dash, (label, level) in zip((":", "-.", "--"), levels.items(), strict=False):
            axes.axhline(level, color=QUIET, linestyle=dash, linewidth=1, label=label)
        axes.set_xlabel("epoch")
        if title != "Learning rate":
            axes.set_ylim(bottom=0)
        if len(known) + len(levels) > 1:
            axes.legend(fontsize="small")

    said = [f"{label} {points[-1][1]:.4g} at the end" for label, points in known.items()]
    said += [f"{label} {level:.4f}" for label, level in levels.items()]
    text = f"{title}: {', '.join(said)}." if said else f"{title}: never logged."
    return Picture(draw_svg(draw, text), text)


def _validations(history: Sequence[Mapping[str, Any]]) -> Table:
    found = [row for row in history if "eval_ndcg@10" in row]
    best = max(found, key=lambda row: row["eval_ndcg@10"], default=None)  # the first of equals
    rows = [
        (
            f"{row['step']:,}" + (" (best)" if row is best else ""),
            f"{row['epoch']:.2f}",
            f"{row['eval_loss']:.4f}",
            *(f"{row[f'eval_{metric}']:.4f}" for metric in METRICS),
        )
        for row in found
    ]
    columns = ["update", "epoch", "loss", *map(str.upper, METRICS)]
    return Table("Every validation.", columns, rows)
