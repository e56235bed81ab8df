"""The page of an index, for every kind of index there is, and the files it comes in."""

import re

import numpy as np
import pytest

from lcrec.core.artifacts import read_json
from lcrec.data.folder import Items
from lcrec.index.page import index_page, print_verdict, write_index_report
from lcrec.index.quality import measure_index
from lcrec.index.verdict import judge

RNG = np.random.default_rng(0)
KINDS = np.repeat(np.arange(6), 20)
EMBEDDINGS = np.eye(6, 8)[KINDS] + RNG.normal(scale=0.1, size=(120, 8))
TREE = np.column_stack([KINDS, np.tile(np.arange(20) // 2, 6), np.tile([0, 1], 60)])
HOSTILE = "<script>alert(1)</script> & $x$"
ITEMS = Items(
    [{"title": HOSTILE, "categories": f"Shop, <b>Kind {kind}</b>"} for kind in KINDS.tolist()]
)
FIT = {
    "explained_variance": [0.5, 0.6, 0.7], "explained_variance_assigned": 0.65,
    "conflict_rate_before_assignment": 0.1, "items_moved": 3, "distortion_nearest": 0.2,
    "distortion_assigned": 0.21,
}  # fmt: skip
CONFLICTS = TREE[[0, *range(119)]]
PICTURES = {
    "Neighbours under the same prefix", "Explained variance", "How the tree narrows",
    "Use of the codes", "Purity by categories",
}  # fmt: skip


def sizes(codes):
    return tuple((codes.max(axis=0) + 1).tolist())


def pictures(page):
    return {title for title in PICTURES if f">{title}<" in page}


@pytest.mark.parametrize(
    ("codes", "more", "shown"),
    [
        (TREE, {"embeddings": EMBEDDINGS, "items": ITEMS, "fit": FIT}, PICTURES),
        (TREE, {"embeddings": EMBEDDINGS}, {"Neighbours under the same prefix"}),
        (TREE, {"items": ITEMS}, {"Purity by categories"}),
        (TREE, {}, set()),
        (CONFLICTS, {"embeddings": EMBEDDINGS}, {"Neighbours under the same prefix"}),
        (np.arange(120)[:, None], {"embeddings": EMBEDDINGS, "items": ITEMS}, set()),
        (TREE[:1], {"embeddings": EMBEDDINGS[:1]}, set()),
        (
            np.column_stack([TREE, np.zeros(120, dtype=int)]),
            {"fit": FIT},
            {"Explained variance"},
        ),
        (RNG.permutation(4**5)[:120, None] // 4 ** np.arange(5) % 4, {"items": ITEMS},
         {"Purity by categories"}),
    ],
    ids=[
        "all", "embeddings", "items", "codes", "conflicts", "vanilla", "one", "tiger", "random"
    ],
)  # fmt: skip
def test_every_kind_of_index_has_a_page(codes, more, shown):
    report = measure_index(codes, sizes(codes), **more)
    page = index_page(report, judge(report), "Shop")
    assert pictures(page) == shown | {"How the tree narrows", "Use of the codes"}
    assert f"{len(codes):,} items, each spelled by" in page
    assert ("What is not known" in page) == bool(report["left_out"])
    assert ("What uniqueness cost" in page) == ("fit" in more)
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL).lower()
    assert "<script" not in page
    assert page.count("<b>Kind") == 0


def test_the_page_shows_the_figures():
    report = measure_index(TREE, (8, 10, 2), embeddings=EMBEDDINGS, items=ITEMS, fit=FIT)
    page = index_page(report, judge(report), "Shop")
    assert page.count("Item index: Shop") == 2  # the title, and the heading
    assert "120 items, each spelled by 3 codes (8 × 10 × 2): 20 item tokens" in page
    assert "Level 1 uses 6 of its 8 codes." in page
    for value in ("50.0%", "60.0%", "70.0%", "&lt;a_0&gt;&lt;b_0&gt;", "20.00", "65.00%", "21.00%"):
        assert value in page, value
    assert page.count(HOSTILE.split()[0]) == 0
    assert "&lt;script&gt;alert(1)" in page
    columns = re.findall(r"<th[^>]*>([^<]*)</th>", page)
    assert columns[columns.index("depth") :] == [
        "depth", "explained variance", "between prefixes", "neighbours kept", "kept by chance",
        "kept at most", "purity", "purity by chance", "", "nearest codes", "codes assigned",
        "prefix", "items", "titles",
    ]  # fmt: skip


def test_the_files_hold_the_same(tmp_path, capsys):
    report = measure_index(TREE, (6, 10, 2), embeddings=EMBEDDINGS, fit=FIT)
    verdict = write_index_report(tmp_path / "new" / "report", {**report, "kind": "rq-vae"}, "Shop")
    folder = tmp_path / "new" / "report"
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]
    written = read_json(folder / "report.json")
    assert written.pop("verdict")["text"] == verdict.text
    assert written.pop("kind") == "rq-vae"
    assert written == report
    assert verdict.text in (folder / "report.html").read_text(encoding="utf-8")
    print_verdict(verdict)
    out = capsys.readouterr().out
    assert out.startswith(verdict.text)
    assert all(finding.text in out and finding.remedy in out for finding in verdict.findings)
