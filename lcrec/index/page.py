"""An index folder, with the figures of the index as a page for a person.

Reads what `lcrec.index.quality.measure_index` returns; writes `report.json`, all of it with the
verdict, and `report.html`, the page. The page needs the figures alone.
"""

from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Wedge

from lcrec.core.artifacts import (
    COLLABORATIVE,
    REPORT,
    REPORT_PAGE,
    RQVAE_WEIGHTS,
    atomic_path,
    write_array,
    write_json,
)
from lcrec.core.provenance import write_provenance
from lcrec.core.report import (
    FIGURE_SIZE,
    INK,
    QUIET,
    SERIES,
    Block,
    Heading,
    Paragraph,
    Picture,
    Table,
    Verdict,
    draw_svg,
    render_page,
)
from lcrec.index.item_index import STAGE, ItemIndex
from lcrec.index.quality import LEAST_SHARING
from lcrec.index.verdict import judge

Report = dict[str, Any]
MISSING = "–"


def write_index_report(folder: Path, report: Report, name: str) -> Verdict:
    """Write `report.json` and `report.html` into `folder`, and return the verdict.

    Args:
        folder: made where it is missing.
        report: the figures of `measure_index`, and any facts besides: all go into `report.json`.
        name: tells the index from others, in the page's title.
    """
    verdict = judge(report)
    page = index_page(report, verdict, name)
    with atomic_path(folder / REPORT_PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    write_json(folder / REPORT, {"verdict": asdict(verdict), **report}, indent=2)
    return verdict


def write_index(
    output: Path,
    index: ItemIndex,
    report: Report,
    name: str,
    config: dict[str, Any],
    inputs: dict[str, Path],
    *,
    save_weights: Callable[[Path], object] | None,
    appended: np.ndarray | None,
) -> Verdict:
    """Write a whole index folder, replacing the one that was there, and return its verdict.

    Args:
        output: the folder.
        report, name: as for `write_index_report`.
        config, inputs: for the record.
        save_weights: writes the RQ-VAE's weights to the path it is given; None where there are
            none.
        appended: what the RQ-VAE reads beside the embeddings, float32 [items, width].
    """
    with atomic_path(output) as folder:
        folder.mkdir()
        if save_weights is not None:
            save_weights(folder / RQVAE_WEIGHTS)
        if appended is not None and appended.size:
            write_array(folder / COLLABORATIVE, appended)
        verdict = write_index_report(folder, report, name)
        index.save(folder)
        write_provenance(folder, STAGE, config, inputs, level_sizes=index.level_sizes)
    return verdict


def print_verdict(verdict: Verdict) -> None:
    """Print the verdict and its findings, a line or two each."""
    print(verdict.text)
    for finding in verdict.findings:
        print(f"  {finding.grade:<8} {finding.text}")
        if finding.remedy:
            print(f"  {'':<8} {finding.remedy}")


def index_page(report: Report, verdict: Verdict, name: str) -> str:
    """Return the page, a whole HTML document; `name` tells the index from others."""
    sizes = report["level_sizes"]
    shape = " × ".join(f"{size:,}" for size in sizes)
    words = "one code" if len(sizes) == 1 else f"{len(sizes)} codes"
    blocks: list[Block] = [
        Paragraph(
            f"{report['items']:,} items, each spelled by {words} ({shape}): "
            f"{sum(sizes):,} item tokens in the vocabulary."
        ),
        *_repaired(report),
        verdict,
        *(picture(report) for shown, picture in PICTURES if shown(report)),
        Heading("Level by level"),
        _tree_table(report),
    ]
    if "neighbours" in report or "labels" in report or "explained_variance" in report:
        blocks += [Heading("What the codes say of the items"), _meaning_table(report)]
    if "conflict_rate_before_assignment" in report:
        blocks += [Heading("What uniqueness cost"), _uniqueness_table(report)]
    if report.get("branches"):
        blocks += [Heading("Example branches"), _branch_table(report)]
    if report["left_out"]:
        blocks.append(Heading("What is not known"))
        blocks += [
            Paragraph(f"{LEFT_OUT[name]}: {reason}.") for name, reason in report["left_out"].items()
        ]
    blocks += [Heading("How to read it"), *map(Paragraph, GUIDE)]
    if "collaborative_neighbours" in report:
        blocks.append(Paragraph(BOUGHT_ALIKE))
    return render_page(f"Item index: {name}", blocks)


def _repaired(report: Report) -> list[Block]:
    if "repaired" not in report:
        return []
    facts = report["repaired"]
    text = (
        f"Repaired: {facts['items_in_conflict']:,} items shared an index with another, in "
        f"{len(facts['groups']):,} group(s). Moved: {len(facts['moved']):,}, by "
        f"{facts['rule']}."
    )
    if facts["paths_filled_up"]:
        text += f" {facts['paths_filled_up']:,} shorter paths were filled up to one depth."
    return [Paragraph(text)]


LEFT_OUT = {
    "explained_variance": "Explained variance and what uniqueness cost",
    "neighbours": "How many neighbours share a prefix",
    "labels": "How pure the prefixes are",
    "branches": "Example branches",
}
GUIDE = (
    "The codes of an index form a tree. A prefix is a number of leading codes; the items that "
    "share it are a branch. A language model reads and writes an item code by code, so items that "
    "share a prefix share what is learnt about it: they should be alike.",
    "Explained variance: the share of the embeddings' variance that the codes give back, after "
    "each level. Assigned: the same once every item has an index of its own. Distortion: the "
    "squared distance from what was quantised, an RQ-VAE's latent, to what the codes stand for, as "
    "a share of its variance. Between prefixes: what the mean of an item's branch tells of its "
    "embedding, less what as many branches of random items would tell.",
    "Perplexity: how many codes, used evenly, would be used as unevenly as these; the nearer to "
    "the number of codes, the better they share the work. Items left: how many items stand under "
    "the prefix of an average item, itself included; 1 means settled.",
    "Neighbours kept: of an item's nearest items by cosine of the embeddings, the share under its "
    "prefix. By chance: in the same tree with its items shuffled. At most: what the sizes of the "
    "branches allow, since a small branch cannot hold all neighbours.",
    "Purity: of the items that share a prefix with another, the share whose label is the most "
    "common one under it. By chance: with the labels shuffled.",
    "The verdict follows rules of thumb. Which of two good indices recommends better, only a "
    "model trained on each can tell.",
)

BOUGHT_ALIKE = (
    "Bought alike kept: as neighbours kept, with the items nearest by what purchases say of them; "
    "of the items that the train sequences hold."
)


def _depths(report: Report) -> range:
    return range(1, len(report["level_sizes"]) + 1)


def _mark_depths(axes: Axes, report: Report, *, label: str, start: int = 1) -> None:
    axes.set_xticks(range(start, len(report["level_sizes"]) + 1))
    axes.set_xlabel(label)


def _as_percent(axes: Axes) -> None:
    axes.set_ylim(0, 1.04)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _plot_known(axes: Axes, values: list[float | None], label: str) -> None:
    """Plot what is known per depth."""
    known = [(depth, value) for depth, value in enumerate(values, 1) if value is not None]
    axes.plot(*zip(*known, strict=True), label=label)


def _variance_picture(report: Report) -> Picture:
    shares, assigned = report["explained_variance"], report["explained_variance_assigned"]

    def draw(axes: Axes) -> None:
        axes.set_title("Explained variance")
        axes.plot(range(1, len(shares) + 1), shares, label="nearest codes")
        axes.plot([len(shares)], [assigned], linestyle="", label="codes assigned")
        axes.set_ylabel("share of variance")
        _as_percent(axes)
        _mark_depths(axes, report, label="level")
        axes.legend(loc="lower right")

    text = f"After the last level {shares[-1]:.1%}, with every item parted {assigned:.1%}."
    return Picture(draw_svg(draw, f"Explained variance per level. {text}"), text)


def _use_picture(report: Report) -> Picture:
    def draw(axes: Axes) -> None:
        axes.set_title("Use of the codes")
        depths = _depths(report)
        for depth, size in zip(depths, report["level_sizes"], strict=True):
            label = "there are" if depth == 1 else ""
            axes.hlines(size, depth - 0.42, depth + 0.42, color=QUIET, label=label)
        for offset, name, label in (
            (-0.19, "codes_used", "in use"),
            (0.19, "perplexity", "perplexity"),
        ):
            axes.bar([depth + offset for depth in depths], report[name], width=0.36, label=label)
        axes.set_ylabel("codes")
        axes.set_ylim(0, max(report["level_sizes"]) * 1.3)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        _mark_depths(axes, report, label="level")
        axes.legend(loc="upper center", ncols=3, handlelength=1.2)

    text = "Per level: codes there are, codes in use, and their perplexity (even use reaches all)."
    return Picture(draw_svg(draw, text), text)


def _tree_picture(report: Report) -> Picture:
    left = [report["items"], *report["items_left"]]

    def draw(axes: Axes) -> None:
        axes.set_title("How the tree narrows")
        axes.plot(range(len(left)), left)
        for depth, count in enumerate(left):
            axes.annotate(
                f"{count:,.0f}" if count >= 10 else f"{count:.2g}", (depth, count), (4, 4),
                textcoords="offset points",
            )  # fmt: skip
        axes.set_yscale("log")
        axes.set_ylim(0.8, report["items"] * 2.5)
        axes.set_ylabel("items left under the prefix")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.minorticks_off()
        _mark_depths(axes, report, label="codes read", start=0)
        axes.margins(x=0.1)

    text = "How many items an average item's prefix still leaves open, after each code."
    return Picture(draw_svg(draw, f"{text} {', '.join(f'{count:,.1f}' for count in left)}."), text)


def _has_room(report: Report, depth: int = 0) -> bool:
    """Tell whether enough neighbours fit under the prefixes to report their share."""
    if "neighbours" not in report:
        return False
    facts = report["neighbours"]
    return facts["most"][depth] * facts["count"] * facts["queries"] >= LEAST_SHARING


def _neighbour_picture(report: Report) -> Picture:
    facts = report["neighbours"]

    def draw(axes: Axes) -> None:
        axes.set_title("Neighbours under the same prefix")
        for name, label in (("kept", "this index"), ("chance", "random index")):
            shares = [
                facts[name][depth] / most if _has_room(report, depth) else None
                for depth, most in enumerate(facts["most"])
            ]
            _plot_known(axes, shares, label)
        axes.set_ylabel("share of the capacity for them")
        _as_percent(axes)
        _mark_depths(axes, report, label="depth of the prefix (codes)")
        axes.legend(loc="center right")

    text = (
        f"How much of the capacity under an item's prefix its {facts['count']} nearest items use, "
        f"asked of {facts['queries']:,} items; a random index has the same tree."
    )
    return Picture(draw_svg(draw, text), text)


def _label_picture(report: Report) -> Picture:
    facts = report["labels"]

    def draw(axes: Axes) -> None:
        axes.set_title(f"Purity by {facts['field']}")
        for name, label in (("purity", "this index"), ("chance", "random index")):
            _plot_known(axes, facts[name], label)
        axes.set_ylabel("share of the most common label")
        _as_percent(axes)
        _mark_depths(axes, report, label="depth of the prefix (codes)")
        axes.legend(loc="lower right")

    text = (
        f"Share of items whose label is the most common one under their prefix, items alone left "
        f"out; {facts['distinct']:,} labels of {facts['items']:,} items."
    )
    return Picture(draw_svg(draw, text), text)


def _has_purity(report: Report) -> bool:
    return "labels" in report and report["labels"]["purity"][0] is not None


PICTURES: tuple[tuple[Callable[[Report], bool], Callable[[Report], Picture]], ...] = (
    (_has_room, _neighbour_picture),
    (lambda report: "explained_variance" in report, _variance_picture),
    (lambda report: True, _tree_picture),
    (lambda report: True, _use_picture),
    (_has_purity, _label_picture),
)


def _tree_table(report: Report) -> Table:
    columns = {
        "level": [f"{depth}" for depth in _depths(report)],
        "codes": [f"{size:,}" for size in report["level_sizes"]],
        "in use": [f"{used:,}" for used in report["codes_used"]],
        "perplexity": [f"{value:,.1f}" for value in report["perplexity"]],
        "prefixes": [f"{count:,}" for count in report["distinct_prefixes"]],
        "children each": [f"{mean:,.2f}" for mean in report["children_mean"]],
        "largest branch": [f"{share:.2%}" for share in report["largest_branch"]],
        "items left": [f"{count:,.2f}" for count in report["items_left"]],
        "items alone": [f"{share:.1%}" for share in report["items_alone"]],
    }
    caption = "Codes of each level, and the branches they make with the codes before them."
    return Table(caption, list(columns), list(zip(*columns.values(), strict=True)))


def _meaning_table(report: Report) -> Table:
    columns = {"depth": [f"{depth}" for depth in _depths(report)]}

    def add(name: str, values: list[float | None]) -> None:
        columns[name] = [MISSING if value is None else f"{value:.1%}" for value in values]

    if "explained_variance" in report:
        beyond = len(report["level_sizes"]) - len(report["explained_variance"])
        add("explained variance", [*report["explained_variance"], *[None] * beyond])
    if "variance_between_prefixes" in report:
        add("between prefixes", report["variance_between_prefixes"])
    if "neighbours" in report:
        add("neighbours kept", report["neighbours"]["kept"])
        add("kept by chance", report["neighbours"]["chance"])
        add("kept at most", report["neighbours"]["most"])
    if "collaborative_neighbours" in report:
        add("bought alike kept", report["collaborative_neighbours"]["kept"])
        add("by chance", report["collaborative_neighbours"]["chance"])
    if "labels" in report:
        add("purity", report["labels"]["purity"])
        add("purity by chance", report["labels"]["chance"])
    return Table(
        "By depth of the prefix.", list(columns), list(zip(*columns.values(), strict=True))
    )


def _uniqueness_table(report: Report) -> Table:
    shared, items = report["conflict_rate_before_assignment"], report["items"]
    rows = [
        (
            "items that share an index",
            f"{shared:.1%}",
            f"{report['conflicts']['items'] / items:.1%}",
        ),
        (
            "explained variance",
            f"{report['explained_variance'][-1]:.2%}",
            f"{report['explained_variance_assigned']:.2%}",
        ),
        (
            "distortion in the latent",
            f"{report['distortion_nearest']:.2%}",
            f"{report['distortion_assigned']:.2%}",
        ),
    ]
    caption = f"Of {items:,} items, {report['items_moved']:,} do not have their nearest codes."
    return Table(caption, ["", "nearest codes", "codes assigned"], rows)


def _branch_table(report: Report) -> Table:
    rows = [
        (branch["prefix"], f"{branch['items']:,}", " · ".join(branch["titles"]))
        for branch in report["branches"]
    ]
    caption = "Three branches, each followed to where its items part; some of their titles."
    return Table(caption, ["prefix", "items", "titles"], rows, text_columns=3)


RINGS = 3
LEAST_WEDGE = 1 / 500  # of the circle: a narrower wedge would not be seen


def draw_sunburst(codes: np.ndarray) -> Picture:
    """Return the tree as rings of wedges, a ring per level: a wedge is as wide as its items are.

    The first levels only, and no wedge below a 500th of the circle.

    Args:
        codes: int [items, levels].
    """
    ordered = codes[np.lexsort(codes.T[::-1])]
    # The colour is that of the first code.
    family = np.unique(ordered[:, 0], return_inverse=True)[1]
    items, rings = len(codes), min(RINGS, codes.shape[1])

    def draw(axes: Axes) -> None:
        axes.set_axis_off()
        axes.set_aspect("equal")
        axes.set_xlim(-1, 1)
        axes.set_ylim(-1, 1)
        for ring in range(rings):
            changes = (ordered[1:, : ring + 1] != ordered[:-1, : ring + 1]).any(axis=1)
            starts = np.concatenate([[0], np.flatnonzero(changes) + 1, [items]])
            outer = (ring + 2) / (rings + 1)
            for number, (start, end) in enumerate(pairwise(starts.tolist())):
                if end - start < LEAST_WEDGE * items:
                    continue
                colour = SERIES[int(family[start]) % len(SERIES)]
                angles = 90 - 360 * end / items, 90 - 360 * start / items
                shade = (0.85, 0.55, 0.3)[ring] * (0.8 + 0.2 * (number % 2))
                axes.add_patch(
                    Wedge(
                        (0, 0), outer, *angles, width=1 / (rings + 1), facecolor=colour,
                        edgecolor=INK, linewidth=0.3, alpha=shade,
                    )
                )  # fmt: skip

    counts = [len(np.unique(codes[:, : depth + 1], axis=0)) for depth in range(rings)]
    text = (
        f"{items:,} items; from the middle outwards the prefixes of 1 to {rings} codes: "
        f"{', '.join(f'{count:,}' for count in counts)}."
    )
    return Picture(draw_svg(draw, f"The tree as a sunburst. {text}", height=FIGURE_SIZE[0]), text)
