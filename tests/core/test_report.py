"""The one page: self-contained, escaped, readable in light and dark, its pictures too."""

import re
import shutil
from html.parser import HTMLParser

import matplotlib
import pytest

from lcrec.core import report

HOSTILE = "<script>alert('x')</script> & \"$5 < $6\""
VOID = {"meta", "br", "hr", "img", "link"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and fails on a tag that is not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "svg"} & set(self.open):
            self.text += data


def toy_picture(description="a line"):
    def draw(axes):
        axes.plot([1, 2], [3, 4], label=HOSTILE)
        axes.plot([1, 2], [4, 3], label="other")
        axes.bar([1], [2], color=report.SERIES[2])
        axes.hlines(1, 0, 2, color=report.QUIET)
        axes.legend()

    return report.draw_svg(draw, description)


def toy_page():
    return report.render_page(
        f"Title {HOSTILE}",
        [
            report.Paragraph(f"Paragraph {HOSTILE}"),
            report.Verdict(
                "warning",
                "Verdict",
                [report.Finding("good", HOSTILE), report.Finding("note", "b", "do c")],
            ),
            report.Picture(toy_picture(HOSTILE), f"Caption {HOSTILE}"),
            report.Heading("Heading"),
            report.Table("Table", ["name", "count"], [("row", "12"), (HOSTILE, "3")]),
        ],
    )


def test_a_page_is_whole_and_loads_nothing():
    page = Page(toy_page())
    names = {name for name, _ in page.attributes}
    assert not names & {"src", "srcset", "data", "action", "onclick", "onload"}
    links = [value for name, value in page.attributes if name in ("href", "xlink:href")]
    assert links
    assert all(re.fullmatch(r"#\w+", link) for link in links)
    assert not {"link", "img", "iframe", "object", "script"} & set(page.tags)
    text = toy_page()
    assert "@import" not in text
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {f"#{name}" for name in ids(text)}
    assert "default-src 'none'" in text
    page = Page(toy_page())
    assert page.tags.count("script") == 0
    assert page.text.count(HOSTILE) == 6  # twice the title, and once in each block but the heading
    assert page.tags[:2] == ["html", "head"]
    for tag, count in {"h1": 1, "h2": 1, "svg": 1, "figcaption": 1, "tr": 3, "td": 4}.items():
        assert page.tags.count(tag) == count, tag
    assert "do c" in page.text


def ids(text):
    return re.findall(r'\bid="([^"]*)"', text)


def test_pictures_share_nothing_and_are_the_same_each_time():
    text = report.render_page(
        "Two", [report.Picture(toy_picture(name), name) for name in ("one", "two")]
    )
    assert len(ids(text)) == len(set(ids(text))) > 2
    assert toy_picture() == toy_picture()
    before = dict(matplotlib.rcParams)
    toy_picture()
    assert dict(matplotlib.rcParams) == before


def test_a_picture_follows_light_and_dark_and_its_text_stays_text():
    svg = toy_picture()
    assert not re.search(r'[: "]#[0-9a-f]{6}\b', svg)
    assert {"var(--series-1)", "var(--series-2)", "var(--series-3)"} <= set(
        re.findall(r"var\([\w-]+\)", svg)
    )
    assert not re.search(r'\b(fill|stroke)="', svg)  # a variable works in a style only
    text = toy_page()
    for name, shade in report.PALETTE.items():
        assert f"--{name}: {shade['light']};" in text
        assert f"--{name}: {shade['dark']};" in text
    svg = toy_picture()
    assert ">other<" in svg
    assert "alert('x')&lt;/script&gt; &amp;" in svg.replace("&#x27;", "'")
    assert 'role="img" aria-label="a line"' in svg


def test_successive_lines_differ_in_more_than_colour():
    def draw(axes):
        for height in range(3):
            axes.plot([0, 1], [height, height])
        seen.extend((line.get_linestyle(), line.get_marker()) for line in axes.lines)

    seen = []
    report.draw_svg(draw, "three")
    assert len({style for style, _ in seen}) == len({marker for _, marker in seen}) == 3


@pytest.mark.parametrize(
    "draw",
    [lambda axes: axes.plot([0, 1], color="red"), lambda axes: axes.bar([0], [1], hatch="/")],
    ids=["a colour of its own", "hatches"],
)
def test_a_colour_that_is_not_of_the_page_is_refused(draw):
    with pytest.raises(ValueError, match="use SERIES or QUIET"):
        report.draw_svg(draw, "wrong")


def contrast(one, other):
    """Return the contrast of two colours (WCAG 2.2, relative luminance)."""

    def luminance(colour):
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "quiet", "series-1", "series-2", "series-3"])
def test_every_colour_can_be_read(mode, name):
    assert contrast(report.PALETTE[name][mode], report.PALETTE["paper"][mode]) >= 4.5


@pytest.mark.slow
def test_nothing_is_cut_off_on_a_phone(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if (chromium := shutil.which("chromium") or shutil.which("google-chrome")) is None:
        pytest.skip("no Chromium here; Debian's will do: apt-get install chromium")
    names = [f"column {number}" for number in range(12)]
    wide = report.Table("A caption of many words " * 8, names, [names])
    file = tmp_path / "page.html"
    blocks = [report.Heading("Tables"), wide, report.Picture(toy_picture(), "A caption " * 20)]
    file.write_text(report.render_page("A page", blocks))
    with playwright.sync_playwright() as made:
        browser = made.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto(file.as_uri())
        beyond = page.evaluate(
            "[...document.querySelectorAll('h1, h2, p, figcaption, caption, svg, svg text')]"
            ".filter(part => part.getBoundingClientRect().right > innerWidth)"
            ".map(part => part.textContent)"
        )
        table = page.evaluate("document.querySelector('table').getBoundingClientRect().width")
        browser.close()
    assert beyond == []
    assert table > 390  # the table is, and scrolls
