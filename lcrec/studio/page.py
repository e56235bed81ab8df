"""The studio's page: tabs that lay out what `Workbench` answers. Needs the extra `studio`."""

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

# Read when Gradio is imported: it sends nothing about its use.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from fastapi import FastAPI
from starlette.types import ASGIApp

from lcrec.core.errors import InputError
from lcrec.core.report import PALETTE
from lcrec.prompts.tasks import TASKS
from lcrec.studio.guard import Guard
from lcrec.studio.workbench import SIDES, Options, Workbench, explain

TITLE = "lcrec studio"
FONTS = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # the reader's own

_SHADES = {
    mode: " ".join(f"--{name}: {shade[mode]};" for name, shade in PALETTE.items())
    for mode in ("light", "dark")
}
CSS = f"""
:root {{ {_SHADES["light"]} }}
.dark {{ {_SHADES["dark"]} }}
.lcrec {{ overflow-wrap: anywhere; }}
.lcrec .sides, .lcrec.sides {{ display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); }}
.lcrec h3 {{ margin: .75rem 0 .25rem; }}
.lcrec ol, .lcrec ul {{ padding-left: 1.75rem; margin: .25rem 0; }}
.lcrec ol {{ list-style: decimal; }}
.lcrec ul {{ list-style: disc; }}
.lcrec ul.tree, .lcrec ul.tree ul {{ list-style: none; padding-left: 1rem; }}
.lcrec li {{ margin: .2rem 0; }}
.lcrec small {{ color: var(--quiet); }}
.lcrec summary {{ cursor: pointer; }}
.lcrec li.target {{ border-left: .25rem solid var(--series-3); padding-left: .5rem; }}
.lcrec mark {{ background: none; color: var(--series-3); font-weight: 600; }}
.lcrec .wide {{ overflow-x: auto; }}
.lcrec table {{ border-collapse: collapse; margin: .5rem 0; overflow-wrap: normal; }}
.lcrec td.long {{ min-width: 14rem; }}
.lcrec table :is(th, td) {{ padding: .25rem .75rem .25rem 0; text-align: left; vertical-align: top;
  border: none !important; border-bottom: 1px solid var(--line) !important; }}
.lcrec table, .lcrec table tr {{ border: none !important; }}
.lcrec caption {{ text-align: left; color: var(--quiet); }}
.lcrec .problem {{ border-left: .25rem solid var(--series-2); padding-left: .75rem; }}
.lcrec figure {{ max-width: 27rem; }}
.lcrec .tokens {{ white-space: pre-wrap; font-family: ui-monospace, monospace; line-height: 1.9; }}
.lcrec .tokens span {{ border: 1px solid var(--line); border-radius: .2rem; padding: 0 .1rem; }}
.lcrec .tokens span.loss {{ border-color: var(--series-2); color: var(--series-2);
  font-weight: 600; }}
"""


def build_page(bench: Workbench) -> gr.Blocks:
    """Return the page over a workbench."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}")
        with gr.Tab("Try"):
            _try_tab(bench)
        with gr.Tab("Ask"):
            _ask_tab(bench)
        with gr.Tab("Index"):
            _index_tab(bench)
        with gr.Tab("Compare"):
            _compare_tab(bench)
        with gr.Tab("Prompts"):
            _prompts_tab(bench)
    return page


def create_app(
    bench: Workbench, *, token: str | None = None, hosts: Collection[str] | None = None
) -> ASGIApp:
    """Return the page as an ASGI application.

    Args:
        bench: what answers.
        token, hosts: as for `Guard`.
    """
    theme = gr.themes.Default(font=FONTS[0], font_mono=FONTS[1])
    page = build_page(bench)
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None), page, path="", theme=theme, css=CSS, footer_links=[],
        run_history=False, show_error=False, ssr_mode=False, enable_monitoring=False, pwa=False,
        mcp_server=False,
    )  # fmt: skip
    return Guard(app, token=token, hosts=hosts)


def _on(
    event: Any,
    answer: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    problem: gr.HTML,
) -> Any:
    """Let an event fill `outputs`, or say in `problem` what is wrong with its inputs."""

    def run(*given: Any) -> list[Any]:
        try:
            found = answer(*given)
        except InputError as error:
            return [*(gr.skip() for _ in outputs), explain(str(error))]
        return [*(found if len(outputs) > 1 else [found]), ""]

    return event(run, list(inputs), [*outputs, problem])


@dataclass(frozen=True)
class _History:
    """The inputs that make a history, and the item that was hidden of its user."""

    lines: gr.Textbox
    target: gr.State


def _history_inputs(bench: Workbench, problem: gr.HTML) -> _History:
    target = gr.State("")
    with gr.Row(equal_height=True):
        user = gr.Textbox("", label="User", max_lines=1, min_width=120)
        hide = gr.Checkbox(True, label="hide the test item", min_width=120)
    with gr.Row():
        load, some = gr.Button("Load the user"), gr.Button("Any user")
    found = _title_search(bench, "Found", problem)
    add = gr.Button("Add to the history")
    history = gr.Textbox("", label="History: an item's id a line, latest last", lines=5)

    def pick(name: str, hidden: bool) -> tuple[str, str]:
        return bench.pick_user(name, hide_test=hidden)

    _on(load.click, pick, [user, hide], [history, target], problem)
    drawn = some.click(bench.random_user, None, user)
    _on(drawn.then, pick, [user, hide], [history, target], problem)
    _on(add.click, bench.add_item, [history, found], [history], problem)
    return _History(history, target)


def _title_search(bench: Workbench, label: str, problem: gr.HTML) -> gr.Dropdown:
    with gr.Row(equal_height=True):
        words = gr.Textbox("", label="Search titles (Enter)", max_lines=1, min_width=120)
        found = gr.Dropdown([], value=None, label=label, min_width=160, allow_custom_value=True)

    def find(words: str) -> Any:
        choices = bench.find_items(words)
        return gr.Dropdown(choices, value=choices[0][1])

    _on(words.submit, find, [words], [found], problem)
    return found


def _options(bench: Workbench) -> list[Any]:
    """Lay out what can be set beside a history, in the order of `Options`."""
    most = min(50, len(bench.data.items))
    k = gr.Slider(1, most, min(10, most), step=1, label="How many items")
    with gr.Accordion("Filters", open=False):
        brand = gr.Textbox("", label="Brands, by commas", max_lines=1)
        categories = gr.Textbox("", label="Categories, by commas", max_lines=1)
        deny = gr.Textbox("", label="Never recommend: an item's id a line", lines=2)
    exclude = gr.Checkbox(True, label="leave out the history")
    return [k, brand, categories, deny, exclude]


def _try_tab(bench: Workbench) -> None:
    problem, answer = gr.HTML(render=False), gr.HTML(render=False)
    with gr.Row():
        with gr.Column(min_width=300):
            history = _history_inputs(bench, problem)
            options = _options(bench)
            run = gr.Button("Recommend", variant="primary")
            problem.render()
        with gr.Column(min_width=300, scale=2):
            answer.render()

    def recommend(lines: str, taken: str, *given: Any) -> str:
        return bench.recommend(lines, Options(*given), taken)

    _on(run.click, recommend, [history.lines, history.target, *options], [answer], problem)


def _ask_tab(bench: Workbench) -> None:
    problem, answer = gr.HTML(render=False), gr.HTML(render=False)
    with gr.Row():
        with gr.Column(min_width=300):
            query = gr.Textbox("", label="What is looked for", lines=2)
            with gr.Accordion("History", open=False):
                history = _history_inputs(bench, problem)
            options = _options(bench)
            run = gr.Button("Ask", variant="primary")
            problem.render()
        with gr.Column(min_width=300, scale=2):
            answer.render()

    def ask(words: str, lines: str, *given: Any) -> str:
        return bench.ask(words, lines, Options(*given))

    _on(run.click, ask, [query, history.lines, *options], [answer], problem)


def _index_tab(bench: Workbench) -> None:
    problem = gr.HTML(render=False)
    with gr.Row():
        with gr.Column(min_width=300):
            gr.HTML(bench.overview())
        with gr.Column(min_width=300):
            prefix = gr.Dropdown(
                bench.branches(), value=None, label="A branch, or any prefix of codes",
                allow_custom_value=True,
            )  # fmt: skip
            item = _title_search(bench, "An item's id", problem)
            look = gr.Button("Show its neighbours")
            problem.render()
            beside, branch = gr.HTML(), gr.HTML()
    _on(prefix.input, bench.unfold, [prefix], [branch], problem)
    _on(look.click, bench.neighbours, [item], [beside], problem)


def _compare_tab(bench: Workbench) -> None:
    names = list(bench.compared)
    with gr.Row(equal_height=True):
        a = gr.Dropdown(names, value=names[0], label="A", min_width=200)
        b = gr.Dropdown(names, value=names[-1], label="B", min_width=200)
        k = gr.Slider(1, 20, 10, step=1, label="Items of each that count", min_width=200)
        side = gr.Dropdown(list(SIDES), value=next(iter(SIDES)), label="Users", min_width=200)
    run = gr.Button("Compare", variant="primary")
    problem, answer = gr.HTML(), gr.HTML()
    _on(run.click, bench.compare, [a, b, k, side], [answer], problem)


def _prompts_tab(bench: Workbench) -> None:
    tasks = [name for name in TASKS if bench.templates(name)]
    first = bench.templates(tasks[0])
    texts = bench.template(first[0])
    with gr.Row():
        with gr.Column(min_width=300):
            with gr.Row(equal_height=True):
                task = gr.Dropdown(tasks, value=tasks[0], label="Task", min_width=120)
                template = gr.Dropdown(first, value=first[0], label="Template", min_width=160)
            question = gr.Textbox(texts[0], label="Question", lines=6)
            answer = gr.Textbox(texts[1], label="Answer", lines=2)
            user = gr.Textbox(bench.random_user(), label="User (seqrec)", max_lines=1)
            with gr.Row():
                check = gr.Button("Check and show", variant="primary")
                rank = gr.Button("Rank with it (seqrec)")
            with gr.Row(equal_height=True):
                own = gr.Textbox("", label="Id to save it under", max_lines=1, min_width=120)
                name = gr.Textbox("studio", label="Name of the file", max_lines=1, min_width=120)
            save = gr.Button("Save")
            problem, saved = gr.HTML(), gr.HTML()
        with gr.Column(min_width=300):
            shown, ranked = gr.HTML(), gr.HTML()

    def choose(name: str) -> list[Any]:
        ids = bench.templates(name)
        return [gr.Dropdown(ids, value=ids[0]), *bench.template(ids[0])]

    _on(task.input, choose, [task], [template, question, answer], problem)
    _on(template.input, bench.template, [template], [question, answer], problem)
    _on(check.click, bench.show_prompt, [task, question, answer, user], [shown], problem)
    _on(rank.click, bench.rank_with, [question, answer, user], [ranked], problem)
    _on(save.click, bench.save, [task, own, question, answer, name], [saved], problem)
