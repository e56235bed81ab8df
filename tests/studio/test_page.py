"""The page itself: every button without a browser, and every tab in a real one."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

gradio = pytest.importorskip("gradio", reason="the studio needs the extra `studio`")

TOP = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def test_every_event_of_the_untouched_page_gives_its_outputs_or_a_sentence(bench):
    from lcrec.studio.page import build_page

    page = build_page(bench)
    wired = [event for event in page.fns.values() if event.fn is not None]
    assert len(wired) >= 20
    said = []
    for event in wired:
        answer = event.fn(*[own.value for own in event.inputs])
        answer = answer if len(event.outputs) > 1 else [answer]
        assert len(answer) == len(event.outputs)
        said += re.findall(r'role="alert">([^<]*)<', str(answer[-1]))
    assert sum("no item is chosen" in text for text in said) == 2
    assert sum("the history is empty" in text for text in said) == 1


def test_the_page_has_no_font_or_script_from_elsewhere(bench):
    from starlette.testclient import TestClient

    from lcrec.studio.page import create_app

    with TestClient(create_app(bench), base_url="http://127.0.0.1") as client:
        html = client.get("/").text
    loaded = re.findall(r'<(?:script|link|img)[^>]*?(?:src|href)="(https?:)?//[^"]*"', html)
    assert [url for url in loaded if "preconnect" not in url] == []


@pytest.fixture(scope="module")
def address(checkpoint, named_shop, studio_folder):
    """The studio as a process; ended with the module."""
    words = [
        "--model", checkpoint, "--data", named_shop, "--embeddings", studio_folder / "embeddings",
        "--compare", studio_folder / "popular.jsonl", "--port", "0",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "lcrec.studio", *map(str, words)], cwd=TOP, text=True,
        env={**os.environ, "LCREC_TOKEN": "secret"}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    printed = ""
    for line in process.stdout:
        printed += line
        if found := re.search(r"Open (http://\S+) in a browser", line):
            break
    else:
        raise AssertionError(printed)
    time.sleep(1)
    yield found[1]
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert "Traceback" not in printed + rest


@pytest.fixture
def browser_page(address, request):
    """A page of a real browser, and what its console complains of and what it loads."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium here; Debian's will do: apt-get install chromium")
    complaints, elsewhere = [], []
    with playwright.sync_playwright() as made:
        browser = made.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(
            viewport=request.param, http_credentials={"username": "me", "password": "secret"}
        )
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        ours = (address, "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(ours) else elsewhere.append(r.url))
        page.goto(address)
        page.get_by_role("tab", name="Try").wait_for()
        yield page
        browser.close()
    assert complaints == []
    assert elsewhere == []


def open_tab(page, name):
    tab = page.get_by_role("tab", name=name)
    if tab.is_visible():
        tab.click()
        return
    page.locator(".overflow-menu > button").first.click()
    page.locator(".overflow-dropdown button", has_text=name).click()


SCREENS = [{"width": 1280, "height": 900}, {"width": 390, "height": 844}]


@pytest.mark.slow
@pytest.mark.parametrize("browser_page", SCREENS, indirect=True, ids=["wide", "phone"])
def test_every_tab_answers_in_a_real_browser(browser_page, tmp_path):
    page = browser_page

    def button(name):
        return page.get_by_role("button", name=name, exact=True).locator("visible=true").first

    button("Recommend").click()
    page.get_by_role("alert").get_by_text("the history is empty").wait_for()
    button("Any user").click()
    page.wait_for_function(
        "[...document.querySelectorAll('textarea')].some(box => box.value.includes('SKU-'))"
    )
    button("Recommend").click()
    page.get_by_text("Counted neighbours").wait_for()
    assert page.get_by_text("the history is empty").count() == 0
    page.locator("summary", has_text="why").first.click()
    page.get_by_text("Nearest in the history").first.wait_for()

    open_tab(page, "Ask")
    page.get_by_label("What is looked for").fill("a lamp")
    button("Ask").click()
    page.get_by_text("not trained on itemsearch").wait_for()

    open_tab(page, "Index")
    page.get_by_label("A branch, or any prefix of codes").fill("<a_9>")
    page.keyboard.press("Enter")
    page.get_by_text("no item has the prefix <a_9>").wait_for()
    page.get_by_label("A branch, or any prefix of codes").fill("<a_0>")
    page.keyboard.press("Enter")
    page.locator("ul.tree summary").first.wait_for()
    page.get_by_role("combobox", name="An item's id").fill("SKU-003")
    page.keyboard.press("Enter")
    button("Show its neighbours").click()
    page.get_by_text("Nearest by embedding").wait_for()

    open_tab(page, "Compare")
    button("Compare").click()
    page.get_by_text("a perfect choice between the two").wait_for()

    open_tab(page, "Prompts")
    button("Check and show").click()
    page.get_by_text("carry loss (marked)").wait_for()
    page.get_by_label("Question").fill("{{ histry }}")
    button("Check and show").click()
    page.get_by_text("did you mean 'history'").wait_for()
    button("Save").click()
    page.get_by_text("start the studio with --prompts DIR").wait_for()
    # Nothing is wider than the screen.
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.screenshot(path=tmp_path / "page.png")


@pytest.mark.slow
@pytest.mark.parametrize("browser_page", SCREENS[:1], indirect=True, ids=["wide"])
def test_clicking_about_for_a_while_upsets_nothing(browser_page):
    import random

    page, draw = browser_page, random.Random(0)
    end = time.monotonic() + 60
    clicks = 0
    while time.monotonic() < end:
        open_tab(page, draw.choice(["Try", "Ask", "Index", "Compare", "Prompts"]))
        shown = page.get_by_role("button").locator("visible=true").all()
        draw.choice(shown).click(timeout=10_000)
        page.keyboard.press("Escape")
        clicks += 1
    assert clicks > 10
