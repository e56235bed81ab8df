"""The one page behind every report: self-contained HTML with pictures as inline SVG.

`render_page` fills `page.html`, beside this file, with a title and blocks of text, tables and
figures. The page loads nothing from elsewhere, needs no script, fits a phone, and follows the
reader's light or dark setting: the pictures too, since each colour in them is a variable of the
page. All text is escaped.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import jinja2
import matplotlib
from cycler import cycler
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Light and dark shade of each colour of the page. The series are told apart by people who see
# colours differently too (after Okabe and Ito, Color Universal Design), and have a contrast of at
# least 4.5 to 1 with their paper: they serve as text colours as well.
PALETTE = {
    "paper": {"light": "#ffffff", "dark": "#15181c"},
    "ink": {"light": "#1b1f24", "dark": "#e4e7ea"},
    "quiet": {"light": "#59626c", "dark": "#a4adb7"},
    "line": {"light": "#d3d8de", "dark": "#3b434c"},
    "series-1": {"light": "#0068a8", "dark": "#5cb3f0"},
    "series-2": {"light": "#b84500", "dark": "#ff9a57"},
    "series-3": {"light": "#007552", "dark": "#3cc99b"},
}
INK, LINE = PALETTE["ink"]["light"], PALETTE["line"]["light"]
QUIET = PALETTE["quiet"]["light"]
SERIES = [PALETTE[f"series-{number}"]["light"] for number in (1, 2, 3)]
VARIABLES = {shade["light"]: f"var(--{name})" for name, shade in PALETTE.items()}

# Inches: as wide as a phone, so that the letters keep their size there.
FIGURE_SIZE = (4.0, 2.8)
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's own font
    "text.parse_math": False,  # a dollar sign is a dollar sign
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.prop_cycle": cycler(color=SERIES, linestyle=["-", "--", ":"], marker=["o", "s", "^"]),
    "axes.facecolor": "none",
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}

Grade = Literal["good", "note", "warning"]


@dataclass(frozen=True)
class Heading:
    """A heading of the second rank; the page's title is the first."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Table:
    """A table; the first `text_columns` stand left, the numbers after them right."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1


@dataclass(frozen=True)
class Picture:
    """A picture made by `draw_svg`, and what it shows."""

    kind: ClassVar[str] = "figure"
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Finding:
    """One thing found out: how it is graded, what it is, and what to do about it, if anything."""

    grade: Grade
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a reader should know at a glance, and the findings it rests on."""

    kind: ClassVar[str] = "verdict"
    grade: Grade
    text: str
    findings: Sequence[Finding]


Block = Heading | Paragraph | Table | Picture | Verdict

TEMPLATE = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
).from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))


def render_page(title: str, blocks: Sequence[Block]) -> str:
    """Return a whole HTML page.

    Figures in succession stand side by side where they fit.
    """
    return TEMPLATE.render(title=title, blocks=blocks, palette=PALETTE)


def draw_svg(
    draw: Callable[[Axes], None], description: str, *, height: float = FIGURE_SIZE[1]
) -> Markup:
    """Return a picture as inline SVG, the same bytes for the same picture.

    Args:
        draw: draws on the axes it is given, in the colours `SERIES` and `QUIET` or those that
            matplotlib takes by itself; successive lines differ in colour, dash and marker.
        description: says in words what is to be seen, for those who cannot see it.
        height: in inches; the width is that of the page's pictures.

    Raises:
        ValueError: the picture has a colour that is not of the page.
    """
    file = io.StringIO()
    # The salt keeps the names inside one picture from meeting those of another on the page.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": description}):
        figure = Figure(figsize=(FIGURE_SIZE[0], height), layout="constrained")
        draw(figure.add_subplot())
        nothing = dict.fromkeys(["Creator", "Date", "Format", "Type"])
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    box, start = re.search(r'viewBox="[^"]*"', svg), svg.find("<defs>")
    if box is None or start < 0:
        raise ValueError("matplotlib wrote another form of SVG than the one known here")
    content = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg[start:])  # figure_1 is in every picture
    for shade, variable in VARIABLES.items():
        content = content.replace(f": {shade}", f": {variable}")  # in a style; not in an attribute
    if left := re.search(r'(?<=[: "])#[0-9a-f]{6}\b', content):
        raise ValueError(f"{left[0]} is no colour of the page here; use SERIES or QUIET, no hatch")
    opening = Markup(
        '<svg xmlns:xlink="http://www.w3.org/1999/xlink" {} role="img" aria-label="{}">'
    )
    return opening.format(Markup(box[0]), description) + Markup("\n" + content)
