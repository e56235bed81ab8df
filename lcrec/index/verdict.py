"""Whether an item index is good: its figures weighed, each with what to do about it.

The limits are rules of thumb: on the warning's side of one, an index is worth another try before a
model is trained on it. What recommends well is decided by `lcrec.evaluate` alone.
"""

from collections.abc import Callable
from typing import Any

from lcrec.core.report import Finding, Grade, Verdict

Report = dict[str, Any]


def judge(report: Report) -> Verdict:
    """Weigh the figures of `lcrec.index.quality.measure_index`.

    Returns:
        The verdict, warnings first; what the figures do not tell is not judged.
    """
    found = [finding for rule in RULES if (finding := rule(report))]
    order = ("warning", "note", "good")
    findings = sorted(found, key=lambda finding: order.index(finding.grade))
    warnings = sum(finding.grade == "warning" for finding in findings)
    if report["conflicts"]["items"]:
        return Verdict("warning", "Not fit for training: items share an index.", findings)
    if warnings:
        things = "one thing" if warnings == 1 else f"{warnings} things"
        # An index that new items joined is for the model that was trained on the old one.
        use = "recommending with" if "added" in report else "training on"
        text = f"Look at {things} before {use} this index."
        return Verdict("warning", text, findings)
    if not report.keys() & {"neighbours", "explained_variance"}:
        text = "Well-formed. Whether its codes carry meaning, they do not tell alone."
        return Verdict("note", text, findings)
    use = "recommend with it" if "added" in report else "train on it"
    return Verdict("good", f"A good index: {use}.", findings)


def above_chance(value: float, chance: float, most: float = 1.0) -> float:
    """Return where `value` lies between chance, 0, and the most that is possible, 1."""
    return (value - chance) / (most - chance) if most > chance else 0.0


def _grade(value: float, *, good: float, warning: float) -> Grade:
    """Grade a value that is good from `good` on, and a warning beyond `warning`.

    Which of the two limits is the higher says whether large values or small ones are good.
    """
    sign = 1 if good > warning else -1
    if sign * value >= sign * good:
        return "good"
    return "warning" if sign * value < sign * warning else "note"


def _graded(grade: Grade, text: str, remedy: str) -> Finding:
    """Return a finding whose remedy is told where it is not good."""
    return Finding(grade, text, "" if grade == "good" else remedy)


def _unique(report: Report) -> Finding:
    conflicts = report["conflicts"]
    if not conflicts["items"]:
        return Finding("good", f"Each of the {report['items']:,} items has an index of its own.")
    pair = " and ".join(map(str, conflicts["examples"][0][:2]))
    return Finding(
        "warning",
        f"{conflicts['items']:,} of {report['items']:,} items share an index with another, such "
        f"as items {pair}: no recommendation can tell them apart, and training refuses it.",
        "Repair it with python -m lcrec.quantize --repair INDEX --output DIR.",
    )


def _shared(report: Report) -> Finding | None:
    if report["distinct_prefixes"][0] < report["items"] or report["items"] == 1:
        return None
    return Finding(
        "warning",
        "No two items share a code: what a model learns of one item helps it with no other, and "
        "the vocabulary grows with the catalogue.",
        "Take such ids as a baseline only.",
    )


def _counting(report: Report) -> Finding | None:
    parted = 1 - report["items_alone"][-2] if len(report["items_alone"]) > 1 else 0
    if not report["last_level_counts"] or not parted:
        return None
    return Finding(
        "warning" if parted > 0.4 else "note",
        f"The last code only counts the items that share all codes before it ({parted:.1%} of "
        "them): it tells them apart and says nothing else of them.",
        "More --codes or --levels part more of them by meaning.",
    )


def _explained(report: Report) -> Finding | None:
    if "explained_variance" not in report:
        return None
    share, levels = report["explained_variance"][-1], len(report["explained_variance"])
    grade = _grade(share, good=0.65, warning=0.45)
    text = f"{levels} codes explain {share:.0%} of the embeddings' variance."
    return _graded(grade, text, "More --codes or --levels, or more --epochs, explain more.")


def _added(report: Report) -> Finding | None:
    if not report.get("added", {}).get("items"):
        return None
    added = report["added"]
    old, new = added["explained_variance_old"], added["explained_variance_new"]
    grade = _grade(new, good=0.6 * old, warning=0.25 * old)
    return _graded(
        grade,
        f"{added['items']:,} items joined later: the codes explain {max(new, 0):.0%} of their "
        f"variance, {old:.0%} of the others'. {added['moved']:,} found their nearest index taken "
        "and got the next.",
        "They are unlike those that the codes were learnt from: with many more of them, make "
        "a new index and train a model on it.",
    )


def _uniqueness_cost(report: Report) -> Finding | None:
    # Where a last code does nothing but part items, that is another rule's.
    if "conflict_rate_before_assignment" not in report or report["last_level_counts"]:
        return None
    rate = report["conflict_rate_before_assignment"]
    lost = report["explained_variance"][-1] - report["explained_variance_assigned"]
    by_rate = _grade(rate, good=0.15, warning=0.4)
    by_loss = _grade(lost, good=0.02, warning=0.05)
    grade: Grade = "warning" if "warning" in (by_rate, by_loss) else "note"
    if by_rate == by_loss == "good":
        grade = "good"
    text = (
        f"Before each item got an index of its own, {rate:.1%} shared their nearest one; parting "
        f"them moved {report['items_moved']:,} items and cost {max(lost, 0):.1%} of the variance."
    )
    return _graded(grade, text, "More --codes or --levels part them.")


def _use(report: Report) -> Finding | None:
    items, sizes = report["items"], report["level_sizes"]
    # A level that counts uses few codes by its nature.
    levels = max(1, len(sizes) - report["last_level_counts"])
    used = report["codes_used"][:levels]
    shares = [count / min(size, items) for count, size in zip(used, sizes, strict=False)]
    worst = min(range(levels), key=shares.__getitem__)
    grade = _grade(shares[worst], good=0.9, warning=0.5)
    if grade == "good":
        text = "All codes of all levels are in use."
        if shares[worst] < 1:
            text = f"Each level uses at least {used[worst]:,} of {sizes[worst]:,} codes."
        return Finding("good", text)
    return Finding(
        grade,
        f"Level {worst + 1} uses {used[worst]:,} of its {sizes[worst]:,} codes.",
        "Fewer --codes, or more --epochs, leave fewer idle.",
    )


def _balance(report: Report) -> Finding | None:
    if report["distinct_prefixes"][0] == report["items"]:
        return None
    perplexity, used = report["perplexity"][0], report["codes_used"][0]
    largest = report["largest_branch"][0]
    # As a share of the codes in use; codes that lie idle are another rule's.
    even = perplexity / used
    grade = _grade(even, good=0.5, warning=0.25)
    if largest > 0.25 and used > 4:
        grade = "warning"
    text = (
        f"Items spread over the first codes as evenly as over {perplexity:,.0f} of the {used:,} "
        f"in use; the largest branch holds {largest:.1%} of them."
    )
    return _graded(grade, text, "Identical or empty item texts crowd together: look there.")


def _even_levels(report: Report) -> Finding | None:
    # The first level has a rule of its own; one that counts is uneven by its nature.
    levels = range(1, len(report["level_sizes"]) - report["last_level_counts"])
    shares = {
        level: report["perplexity"][level] / min(report["level_sizes"][level], report["items"])
        for level in levels
    }
    if not shares or min(shares.values()) >= 0.1:
        return None
    worst = min(shares, key=shares.__getitem__)
    return Finding(
        "note",
        f"Level {worst + 1} spreads items as evenly as over {report['perplexity'][worst]:,.0f} of "
        f"its {report['level_sizes'][worst]:,} codes: of many items it says the same.",
        "With 0.003 for that level, --sinkhorn-epsilon (one number per level) evens it out.",
    )


def _length(report: Report) -> Finding | None:
    alone = report["items_alone"]
    settled = next((depth for depth, share in enumerate(alone, 1) if share >= 0.95), len(alone))
    if settled > len(alone) - 2 or report["last_level_counts"]:
        return None
    return Finding(
        "note",
        f"After {settled} of {len(alone)} codes {alone[settled - 1]:.0%} of items are settled: the "
        "rest is spelled for little.",
        f"--levels {settled + 1} makes answers shorter and recommending faster.",
    )


def _neighbours(report: Report) -> Finding | None:
    if "neighbours" not in report:
        return None
    facts = report["neighbours"]
    kept, chance, most = (facts[name][0] for name in ("kept", "chance", "most"))
    grade = _grade(above_chance(kept, chance, most), good=0.4, warning=0.15)
    return _graded(
        grade,
        f"{kept:.1%} of an item's {facts['count']} nearest neighbours share its first code (by "
        f"chance {chance:.1%}, at most {most:.0%}).",
        "Codes should follow meaning: do the embeddings fit the index?",
    )


def _collaborative(report: Report) -> Finding | None:
    if "collaborative_neighbours" not in report:
        return None
    facts = report["collaborative_neighbours"]
    kept, chance, most = (facts[name][0] for name in ("kept", "chance", "most"))
    grade: Grade = "good" if above_chance(kept, chance, most) >= 0.2 else "note"
    return _graded(
        grade,
        f"{kept:.1%} of the {facts['count']} items nearest to an item by purchases share its first "
        f"code (by chance {chance:.1%}, at most {most:.0%}).",
        "An index that learns from purchases (lcrec quantize --collaborative) brings together "
        "what is bought together.",
    )


def _labels(report: Report) -> Finding | None:
    facts = report.get("labels")
    if facts is None or facts["purity"][0] is None:
        return None
    pure, chance = facts["purity"][0], facts["chance"][0]
    grade = _grade(above_chance(pure, chance), good=0.25, warning=0.08)
    field = {"categories": "category"}.get(facts["field"], facts["field"])
    if grade == "warning" and field != "category":
        grade = "note"  # things of one brand may be of any kind
    text = (
        f"{pure:.0%} of items are of the most common {field} under their first code (by chance "
        f"{chance:.0%})."
    )
    return _graded(grade, text, f"Embeddings that know the {field} bring its items together.")


RULES: tuple[Callable[[Report], Finding | None], ...] = (
    _unique,
    _shared,
    _neighbours,
    _collaborative,
    _explained,
    _added,
    _labels,
    _uniqueness_cost,
    _use,
    _balance,
    _even_levels,
    _length,
    _counting,
)
