"""The notebook: twelve steps whose outputs are kept, and which run."""

import base64
import re
import time
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbformat (extra dev)")
TOUR = Path(__file__).parents[1] / "recipes" / "tour.ipynb"


def steps(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_tour_keeps_what_its_twelve_steps_print_and_draw():
    cells = steps(nbformat.read(TOUR, as_version=4))
    assert [int(re.match(r"# (\d+)\. ", cell.source)[1]) for cell in cells] == [*range(1, 13)]
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(cell.outputs and cell.execution_count for cell in cells)
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 2
    assert all(base64.b64decode(picture)[1:4] == b"PNG" for picture in pictures)
    assert (
        sum("<svg" in o.data["text/html"] for o in outputs if "text/html" in o.get("data", {})) == 2
    )
    # Nothing of the machine that it ran on.
    assert not re.search(r"/(tmp|home|root|work)/", TOUR.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_tour_runs_and_the_model_beats_counting():
    client = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel (extra dev)")
    pytest.importorskip("ipykernel", reason="needs ipykernel (extra dev)")
    notebook = nbformat.read(TOUR, as_version=4)
    for cell in steps(notebook):
        cell.outputs = []
    started = time.monotonic()
    client.NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
    print(f"{time.monotonic() - started:.0f} s")
    said = "".join(output.get("text", "") for output in steps(notebook)[-1].outputs)
    shares = dict(re.findall(r"'([\w-]+)': ([\d.]+)", said))
    assert float(shares["LC-Rec"]) > float(shares["cooccurrence"])
