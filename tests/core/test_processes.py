"""The cores that processes use, and how these part when the work is done."""

import ast
import re
from pathlib import Path

import pytest

from lcrec.core.processes import usable_cores

TOP = Path(__file__).parents[2]


def test_cores_are_those_a_process_may_use(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(6), raising=False)
    assert usable_cores() == 6
    monkeypatch.delattr("os.sched_getaffinity")  # as on macOS
    assert usable_cores() == 64


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system lists no threads")
def test_no_thread_outlives_the_work(run_command):
    # One that does aborts its process now and then, while the interpreter is taken down.
    out = run_command(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2),
        "tests/processes_worker.py",
        PYTHONPATH=str(TOP),
    )
    found = sorted(re.findall(r"process (\d): (\d+) then (\d+)", out))
    assert [(rank, after) for rank, _, after in found] == [("0", "0"), ("1", "0")]
    assert all(int(during) for _, during, _ in found)


def test_a_group_is_made_in_one_place():
    made_in = set()
    for path in [*(TOP / "lcrec").rglob("*.py"), *(TOP / "recipes").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            # Without arguments it only asks which process this is.
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "PartialState":
                made_in |= {path.stem} if node.args or node.keywords else set()
    # A caller of the library may train an RQ-VAE on processes of its own.
    assert made_in == {"processes", "rqvae_training"}
