"""A stage writes over its own result and over nothing else; one run at a time."""

import dataclasses
import errno
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lcrec.__main__ import main
from lcrec.core.config import Writes
from lcrec.core.errors import REMEDIES, InputError
from lcrec.core.outputs import FOLDER, SHARED_FOLDER, check_output, claim, publish
from lcrec.core.provenance import fingerprint, write_provenance

EMBED, QUANTIZE = "python -m lcrec.embed", "python -m lcrec.quantize"


def test_a_new_place_is_claimed_and_no_note_stays(tmp_path):
    with claim(tmp_path / "a" / "b", EMBED):
        assert (tmp_path / "a" / ".b.claim").exists()
    assert list((tmp_path / "a").iterdir()) == []


FORMS = {"folder": "out", ".json": "out.json"}


@pytest.mark.parametrize("form", FORMS)
def test_a_stages_own_result_is_replaced_and_no_other_stages(tmp_path, form):
    output = tmp_path / FORMS[form]
    (output.mkdir if form == "folder" else output.touch)()
    write_provenance(output, EMBED, {}, {})
    with claim(output, EMBED, form):
        pass
    with (
        pytest.raises(InputError, match=rf"--output {output} holds the result of {EMBED}"),
        claim(output, QUANTIZE, form),
    ):
        raise AssertionError
    with claim(output, QUANTIZE, form, overwrite=True):
        pass
    assert not list(tmp_path.glob(".*"))


def test_what_a_person_put_into_a_result_is_kept(tmp_path):
    (tmp_path / "index.json").touch()
    write_provenance(tmp_path, QUANTIZE, {}, {})
    check_output(tmp_path, QUANTIZE)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"also holds notes\.txt.*--overwrite"):
        check_output(tmp_path, QUANTIZE)
    check_output(tmp_path, QUANTIZE, SHARED_FOLDER)
    check_output(tmp_path, QUANTIZE, overwrite=True)


def test_hidden_files_are_nobodys_result(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").touch()
    with claim(tmp_path / "out", EMBED):
        pass


def test_neither_inputs_nor_the_current_folder_are_replaced(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").touch()
    monkeypatch.chdir(tmp_path / "data")
    for output in (tmp_path, Path(".."), tmp_path / "data" / ".." / "data"):
        with pytest.raises(InputError, match="you are in that folder"):
            check_output(output, EMBED, overwrite=True)
    with pytest.raises(InputError, match="data is read from there"):
        check_output(tmp_path, EMBED, overwrite=True, inputs=[tmp_path / "data"])
    # Nor through a link, which a run would write through to the folder.
    today = tmp_path / "today"
    today.symlink_to("data")
    for output, read in ((today, tmp_path / "data"), (tmp_path / "data", today)):
        with pytest.raises(InputError, match=f"{output}: {read} is read from there"):
            check_output(output, EMBED, overwrite=True, inputs=[read])


def test_nothing_is_written_into_a_model_that_is_read(tmp_path):
    """It is known by all that lies in its folder; a data folder is known by its own files."""
    (tmp_path / "in").mkdir()
    check_output(tmp_path / "in" / "p.jsonl", EMBED, ".jsonl", inputs=[tmp_path / "in"])
    (tmp_path / "in" / "config.json").touch()
    for output, form in ((tmp_path / "in" / "p.jsonl", ".jsonl"), (tmp_path / "in" / "x", FOLDER)):
        with pytest.raises(InputError, match=f"--output {output}: lies within the model"):
            check_output(output, EMBED, form, inputs=[tmp_path / "in"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["embed", "--encoder", "read", "--output", "read"], "read is read from there"),
        (["embed", "--encoder", "read", "--output", "read/out"], "lies within the model read"),
        (["export", "--model", "x", "--base", "read", "--output", "read"], "is read from there"),
        (
            [
                "generate",
                "--model",
                "x",
                "--all-users",
                "--deny",
                "read/sold.txt",
                "--output",
                "read",
            ],
            r"read/sold\.txt is read from there",
        ),
    ],
)
def test_whatever_flag_names_what_is_read_it_is_not_replaced(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "read").mkdir()
    (tmp_path / "read" / "config.json").touch()
    with pytest.raises(InputError, match=message):
        main([*words, "--data", "x", "--overwrite"])


def test_a_name_in_other_letters_may_be_the_same_place(tmp_path, monkeypatch):
    """As on macOS."""

    def samefile(one, other):
        return str(one).casefold() == str(other).casefold()

    monkeypatch.setattr(Path, "samefile", samefile)
    (tmp_path / "Shop").mkdir()
    (tmp_path / "Shop" / "config.json").touch()
    read = [tmp_path / "Shop", tmp_path / "Shop" / "Shop.inter.json"]
    with pytest.raises(InputError, match=r"SHOP: .*Shop/Shop.inter.json is read from there"):
        check_output(tmp_path / "SHOP", EMBED, overwrite=True, inputs=read[1:])
    with pytest.raises(InputError, match=r"shop/new: lies within the model .*Shop"):
        check_output(tmp_path / "shop" / "new", EMBED, inputs=read[:1])


def test_a_mount_point_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    with pytest.raises(InputError, match=f"a mount point is not replaced; name {tmp_path}/NAME"):
        check_output(tmp_path, EMBED)
    check_output(tmp_path, EMBED, SHARED_FOLDER)


def test_a_file_changes_together_with_what_stands_beside_it(tmp_path):
    output = tmp_path / "out.jsonl"
    for content, cost in (("old", {"seconds": 1}), ("new", None)):
        with publish(output, EMBED, ".jsonl", overwrite=False) as file:
            file.write_text(content)
            write_provenance(file, EMBED, {"content": content}, {}, cost=cost)
    assert {path.name for path in tmp_path.iterdir()} == {"out.jsonl", "out.lcrec.json"}
    before = snapshot(tmp_path)

    def fail():
        with publish(output, EMBED, ".jsonl", overwrite=False) as file:
            file.write_text("newer")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=rf"No space left on device: '{output}'"):
        fail()
    assert snapshot(tmp_path) == before


def test_no_two_files_share_a_record(tmp_path):
    """Metrics in X.json beside the predictions X.jsonl would take their provenance away."""
    predictions = tmp_path / "out.jsonl"
    predictions.touch()
    write_provenance(predictions, EMBED, {}, {})
    message = r"out\.json: its record out\.lcrec\.json would be taken for that of out\.jsonl too"
    with pytest.raises(InputError, match=message):
        check_output(tmp_path / "out.json", QUANTIZE, ".json", overwrite=True)
    check_output(predictions, EMBED, ".jsonl")


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_what_the_system_forbids_is_told_before_any_work(tmp_path, monkeypatch, number):
    def fail(self, content):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(InputError, match=f"--output .*{os.strerror(number)} .*{REMEDIES[number]}"):
        check_output(tmp_path / "a" / "b", EMBED)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_runs_leftovers_are_cleared(tmp_path):
    output = tmp_path / "out"
    write_provenance(output, EMBED, {}, {})
    old = fingerprint(output)
    me = os.getpid()  # a number that is in use again
    for place in (tmp_path / f".out.{me}.partial", output / f".prompts.{me}.partial" / "half"):
        place.parent.mkdir(exist_ok=True)
        place.touch()
    assert fingerprint(output) == old
    with claim(output, EMBED):
        assert [path.name for path in output.iterdir()] == ["lcrec.json"]
        assert sorted(path.name for path in tmp_path.iterdir()) == [".out.claim", "out"]


def test_a_failed_run_that_wrote_nothing_leaves_nothing(tmp_path):
    def fail():
        with claim(tmp_path / "a" / "out", EMBED):
            (tmp_path / "a" / "out").mkdir()
            raise InputError("wrong")

    with pytest.raises(InputError, match="wrong"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_a_failed_run_left_is_its_stages_own(tmp_path):
    output = tmp_path / "out"

    def fail():
        with claim(output, EMBED):
            output.mkdir()
            (output / "half").touch()
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    with pytest.raises(InputError, match="half has no"), claim(output, QUANTIZE):
        raise AssertionError
    with claim(output, EMBED):
        pass


HOLDER = """
import sys, time
from pathlib import Path
from lcrec.core.outputs import claim
with claim(Path(sys.argv[1]), "python -m lcrec.embed"):
    Path(sys.argv[1]).mkdir(exist_ok=True)
    (Path(sys.argv[1]) / "half").touch()
    print("claimed", flush=True)
    time.sleep(60)
"""


def test_one_run_at_a_time_until_it_is_killed(tmp_path):
    output = tmp_path / "out"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(output)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "claimed\n"
        refused = rf"another run \(process {holder.pid}\) is writing there"
        with pytest.raises(InputError, match=refused), claim(output, EMBED):
            raise AssertionError
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert (tmp_path / ".out.claim").read_text() == f"embeddings {holder.pid}\n"
    with claim(output, EMBED):  # the kill freed it, and what it left is the stage's own
        time.sleep(0)
    assert not (tmp_path / ".out.claim").exists()


# The words of each command that writes, up to its flags, by the name of its settings.
COMMANDS = {
    "AddInteractionsConfig": "add_interactions", "AddItemsConfig": "add_items",
    "BaselineConfig": "baselines popularity",
    "ColdConfig": "baselines cold", "CompareConfig": "baselines compare",
    "ConvergenceConfig": "baselines convergence", "DatasetConfig": "dataset",
    "DiagnoseConfig": "baselines diagnose", "EmbedConfig": "embed", "EvaluateConfig": "evaluate",
    "ExportConfig": "export", "FinetuneConfig": "finetune", "FuseConfig": "baselines fuse",
    "GenerateConfig": "generate",
    "IndexReportConfig": "index_report", "IntentionConfig": "baselines intention",
    "IntentsConfig": "intents", "LanguageConfig": "evaluate language",
    "MergeConfig": "modeling merge", "PairsConfig": "evaluate pairs", "PrepareConfig": "prepare",
    "ProbeConfig": "baselines probe", "QuantizeConfig": "quantize",
    "ReinforceConfig": "reinforce", "SearchConfig": "evaluate search",
    "SyntheticConfig": "synthetic --items 1",
    "TinyLMConfig": "tinylm", "TransferConfig": "baselines transfer",
    "TuneConfig": "baselines tune itemknn",
}  # fmt: skip
# Where other settings decide the form, or whether it is an output at all, the stage itself asks.
ASKING = {"GenerateConfig": ".jsonl", "IndexReportConfig": "folder"}


def settings_that_write(base=Writes):
    """Return the settings of all commands that write: those that no others are made from."""
    top = Path(__file__).parents[2]
    for path in sorted((top / "lcrec").rglob("*.py")) if base is Writes else ():
        if re.search(r"^class \w+\(.*(Writes|Config)\b", path.read_text(encoding="utf-8"), re.M):
            importlib.import_module(".".join(path.relative_to(top).with_suffix("").parts))
    below = base.__subclasses__()
    return [kind for each in below for kind in settings_that_write(each)] or [base]


def commands_up_to_outputs():
    """Return, for each output of each command, all words up to its path, and its form.

    What else the command requires is called x, which is nowhere.
    """
    found = [(["generate", *["--model", "x", "--data", "x", "--all-users", "--output"]], "folder")]
    for kind in settings_that_write():
        fields = dataclasses.fields(kind)
        for output in fields:
            if output.name not in ("output", "save"):
                continue
            words = COMMANDS[kind.__name__].split()
            for field in fields:
                default = (field.default, field.default_factory)
                if field is not output and default == (dataclasses.MISSING,) * 2:
                    flag = f"--{field.name.replace('_', '-')}"
                    value = f"x{field.metadata['writes'] or ''}"
                    words += [value] if field.metadata["words"] else [flag, value]
            form = output.metadata["writes"] or ASKING[kind.__name__]
            found.append(([*words, f"--{output.name}"], form))
    return found


def test_the_settings_of_all_commands_that_write_are_known():
    assert {kind.__name__ for kind in settings_that_write()} == COMMANDS.keys()


def snapshot(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("words", "form"), commands_up_to_outputs(), ids=lambda given: "-".join(given[:3])
)
def test_every_stage_asks_before_any_work_whether_it_may_write(words, form, tmp_path, monkeypatch):
    """In one line, with the flag and nothing changed; inputs, which are not there, come later."""
    monkeypatch.chdir(tmp_path)
    is_folder = "folder" in form
    name = "out" if is_folder else f"out{form}"

    def refused(output, *more):
        before = snapshot(tmp_path)
        with pytest.raises(InputError, match=re.escape(f"{words[-1]} {output}")) as refusal:
            main([*words, output, *more])
        assert "\n" not in str(refusal.value)
        assert snapshot(tmp_path) == before

    mine = tmp_path / "mine" / name
    (mine / "notes.txt" if is_folder else mine).parent.mkdir(parents=True)
    (mine / "notes.txt" if is_folder else mine).write_text("mine")
    refused(f"mine/{name}")
    other = tmp_path / "other" / name
    (other if is_folder else other.parent).mkdir(parents=True)
    if not is_folder:
        other.touch()
    write_provenance(other, "python -m lcrec.play", {}, {})
    refused(f"other/{name}")
    wrong = tmp_path / "wrong" / name
    wrong.parent.mkdir()
    (wrong.touch if is_folder else wrong.mkdir)()
    refused(f"wrong/{name}")
    refused(f"wrong/{name}", "--overwrite")
    (tmp_path / "file").touch()
    refused(f"file/{name}")
    refused(f"{'x' * 250}{name}")
    refused("out.json" if is_folder else "out.txt")
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        write = Path.write_bytes

        def write_bytes(path, content):
            if f".{name}." in path.name:
                raise full
            return write(path, content)

        patch.setattr(Path, "write_bytes", write_bytes)
        refused(f"full/{name}")
    with pytest.raises(InputError) as passed:  # allowed, so that an input is missed
        main([*words, f"mine/{name}", "--overwrite"])
    assert f"{words[-1]} mine/{name}" not in str(passed.value)
