"""Files: written whole or not at all, read strictly, and known by where they came from."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcrec.core import artifacts, provenance
from lcrec.core.artifacts import (
    PROVENANCE,
    atomic_path,
    find_data,
    read_array,
    read_json,
    read_jsonl,
    write_array,
    write_json,
    write_jsonl,
)
from lcrec.core.errors import InputError
from lcrec.core.provenance import (
    fingerprint,
    is_current,
    is_kind,
    provenance_path,
    read_provenance,
    require_same_input,
    sha256,
    write_provenance,
)

STAGE = "python -m lcrec.toy"
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    write_json(path, {"title": "Gitarre ♫"})
    assert names(path.parent) == ["a.json"]
    assert path.read_text(encoding="utf-8") == '{"title": "Gitarre ♫"}\n'
    path = tmp_path / "a.json"
    write_json(path, "old")
    with pytest.raises(TypeError):
        write_json(path, {"half": 1, "broken": object()})
    assert read_json(path) == "old"
    assert names(tmp_path) == ["a.json", "new"]


def test_an_exception_in_the_rows_leaves_the_old_file(tmp_path):
    def rows():
        yield {"row": 1}
        raise RuntimeError("the decoder fell over")

    path = tmp_path / "a.jsonl"
    write_jsonl(path, [0])
    with pytest.raises(RuntimeError, match="fell over"):
        write_jsonl(path, rows())
    assert read_jsonl(path) == [0]
    assert names(tmp_path) == ["a.jsonl"]


def test_an_exception_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "model"
    with atomic_path(folder) as temporary:
        write_json(temporary / "config.json", "old")

    def rewrite():
        with atomic_path(folder) as temporary:
            write_json(temporary / "config.json", "new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewrite()
    assert names(tmp_path) == ["model"]
    assert names(folder) == ["config.json"]
    assert read_json(folder / "config.json") == "old"


def test_a_new_folder_replaces_the_old_one_whole(tmp_path):
    folder = tmp_path / "model"
    for name in ("a.json", "b.json"):
        with atomic_path(folder) as temporary:
            write_json(temporary / name, name)
    assert names(folder) == ["b.json"]
    assert names(tmp_path) == ["model"]


def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "_exchange", lambda one, other: False)
    folder = tmp_path / "model"
    with atomic_path(folder) as temporary:
        write_json(temporary / "a.json", "old")
    replace = artifacts.Path.replace

    def fail(self, target):
        if self.name.endswith(".partial") and target == folder:
            raise OSError("disk gone")
        return replace(self, target)

    monkeypatch.setattr(artifacts.Path, "replace", fail)
    with pytest.raises(OSError, match="disk gone"), atomic_path(folder) as temporary:
        temporary.mkdir()
    assert names(tmp_path) == ["model"]
    assert names(folder) == ["a.json"]


def test_the_old_folder_is_never_half_removed_in_its_place(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    with atomic_path(folder) as temporary:
        write_json(temporary / "a.json", "old")
    removed = []
    monkeypatch.setattr(artifacts.shutil, "rmtree", removed.append)
    with atomic_path(folder) as temporary:
        write_json(temporary / "a.json", "new")
    assert read_json(folder / "a.json") == "new"
    assert folder not in removed


def test_what_a_killed_process_of_the_same_number_left_is_not_mixed_in(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(RuntimeError), atomic_path(folder) as leftover:
        raise RuntimeError
    write_json(leftover / "stale.json", 1)
    with atomic_path(folder) as temporary:
        assert temporary == leftover
        write_json(temporary / "fresh.json", 2)
    assert names(folder) == ["fresh.json"]


@pytest.mark.parametrize("exchange", [True, False])
def test_what_dead_processes_left_is_cleared_and_the_old_comes_back(
    tmp_path, monkeypatch, exchange
):
    if not exchange:  # a file system that cannot exchange two names
        monkeypatch.setattr(artifacts, "_exchange", lambda one, other: False)
    folder = tmp_path / "model"
    dead = subprocess.Popen(["true"])
    dead.wait()
    write_json(tmp_path / f".model.{dead.pid}.partial" / "half.json", 1)
    write_json(tmp_path / f".model.{dead.pid}.replaced" / "old.json", 2)
    write_json(tmp_path / ".model.notes" / "mine.json", 3)
    artifacts.clear_leftovers(folder)
    assert names(tmp_path) == [".model.notes", "model"]
    assert names(folder) == ["old.json"]
    with atomic_path(folder) as temporary:
        write_json(temporary / "new.json", 4)
    assert names(folder) == ["new.json"]
    assert names(tmp_path) == [".model.notes", "model"]


def test_what_a_living_process_is_writing_stays(tmp_path):
    other = tmp_path / f".model.{os.getppid()}.partial"
    write_json(other / "half.json", 1)
    with atomic_path(tmp_path / "model") as temporary:
        temporary.mkdir()
    assert names(other) == ["half.json"]


def test_two_folders_change_places_in_one_step(tmp_path):
    for name in ("a", "b"):
        write_json(tmp_path / name / "name.json", name)
    if not artifacts._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange two names")
    assert [read_json(tmp_path / name / "name.json") for name in "ab"] == ["b", "a"]


def test_all_of_a_folder_is_on_disk_before_it_is_renamed(tmp_path, monkeypatch):
    flushed = []

    def fsync(descriptor):
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))

    if not Path("/proc/self/fd").exists():
        pytest.skip("the names of open files are read from /proc")
    monkeypatch.setattr(artifacts.os, "fsync", fsync)
    folder = tmp_path / "model"
    with atomic_path(folder) as temporary:
        write_json(temporary / "inner" / "a.json", 1)
    kept = [str(temporary / "inner" / "a.json"), str(temporary / "inner"), str(temporary)]
    assert [path for path in kept if path not in flushed] == []
    assert flushed[-1] == str(tmp_path)


def test_whoever_may_read_an_artifact_can_read_all_of_it(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "made") as temporary:
            temporary.mkdir()
            (temporary / "weights").touch(0o600)  # as safetensors makes its files
            (temporary / "program").touch(0o700)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "made").iterdir()}
    assert modes == {"weights": 0o640, "program": 0o740}


def test_a_linked_folder_is_replaced_where_it_lies(tmp_path):
    target = tmp_path / "big-disk"
    write_json(target / "a.json", 1)
    link = tmp_path / "model"
    link.symlink_to(target)
    with atomic_path(link) as temporary:
        write_json(temporary / "b.json", 2)
    assert link.is_symlink()
    assert names(target) == ["b.json"]


def test_a_killed_process_leaves_the_old_file_and_no_data_set(tmp_path):
    """A real SIGKILL in the middle of writing, where no clean-up can run."""
    write_json(tmp_path / "Shop.inter.json", {"0": [0, 1, 2]})
    script = """
        import sys, time
        from pathlib import Path
        from lcrec.core.artifacts import atomic_path
        with atomic_path(Path(sys.argv[1])) as temporary:
            temporary.write_text("{")
            print("writing", flush=True)
            time.sleep(60)
    """
    for name in ("Shop.inter.json", "Other.inter.json"):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / name)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "writing\n"
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert len(names(tmp_path)) == 3
    paths = find_data(tmp_path)
    assert paths.name == "Shop"
    assert read_json(paths.inter) == {"0": [0, 1, 2]}


def test_find_data_names_every_file_and_refuses_none_and_many(tmp_path):
    with pytest.raises(InputError, match=r"--data .*nowhere: no such folder.*lcrec.prepare"):
        find_data(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"exactly one <Name>.inter.json .*, found none"):
        find_data(tmp_path)
    (tmp_path / "Shop.item.json").touch()
    (tmp_path / "B.inter.json").touch()
    paths = find_data(tmp_path)
    assert (paths.name, paths.item, paths.user_ids) == (
        "B", tmp_path / "B.item.json", tmp_path / "B.user2id",
    )  # fmt: skip
    (tmp_path / "._B.inter.json").touch()  # of macOS
    (tmp_path / "B.inter.json").rename(tmp_path / "B.inter.C.inter.json")
    assert find_data(tmp_path).name == "B.inter.C"
    (tmp_path / "A.inter.json").touch()
    with pytest.raises(InputError, match=r"exactly one <Name>.inter.json .*, found A.*, B"):
        find_data(tmp_path)


@settings(max_examples=30)  # each is flushed to the disk
@given(JSON_VALUES)
def test_json_round_trip(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value


@settings(max_examples=30)
@given(st.lists(JSON_VALUES, min_size=1, max_size=5))
def test_jsonl_round_trip(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows


def test_jsonl_lines_end_where_they_should(tmp_path):
    rows = [{"title": "one\u2028two\u2029three\x85four\x1cfive"}, {"title": "line\nbreak\r"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert "\u2028" in (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    assert read_jsonl(tmp_path / "a.jsonl") == rows
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\r\n{"a": 2}')
    assert read_jsonl(tmp_path / "a.jsonl") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"", "line 1, column 1: not valid JSON"),
        ("a.json", b'{"0": [1,\n 2,}', "line 2, column 4: not valid JSON"),
        ("a.json", b'{"title": "caf\xe9"}', "cannot be read as UTF-8"),
        ("a.json", b'{"0": [1], "1": [2], "0": [3]}', "key '0' is written twice"),
        ("a.json", b'{"0": {"title": "a", "title": "b"}}', "key 'title' is written twice"),
        ("a.json", b"[" * 100_000 + b"]" * 100_000, "JSON .maximum recursion depth"),
        ("a.json", b"9" * 5000, "JSON .Exceeds the limit"),
        ("a.jsonl", b"", "the file is empty"),
        ("a.jsonl", b'{"a": 1}\n{"a": 2\n{"a": 3}\n', "line 2: not valid JSON"),
        ("a.jsonl", b'{"a": 1}\n\n{"a": 3}\n', "line 2: not valid JSON"),
        ("a.jsonl", b'"\xff"\n', "cannot be read as UTF-8"),
        ("a.jsonl", b"[" * 100_000 + b"]" * 100_000, "line 1: .*JSON .maximum recursion depth"),
        ("a.jsonl", b"9" * 5000, "line 1: .*JSON .Exceeds the limit"),
    ],
)
def test_bad_json(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}.*{message}"):
        (read_json if name == "a.json" else read_jsonl)(tmp_path / name)


def test_arrays(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_array(tmp_path / "a.npy", array)
    read = read_array(tmp_path / "a.npy")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, array)
    assert names(tmp_path) == ["a.npy"]
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "empty.npy").touch()
    write_array(tmp_path / "whole.npy", np.zeros(100))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:-8])
    for name in ("pickled", "text", "empty", "cut"):
        with pytest.raises(InputError, match=f"{name}.npy: not a plain NumPy array"):
            read_array(tmp_path / f"{name}.npy")


@pytest.mark.parametrize("read", [read_json, read_jsonl, read_array, fingerprint])
def test_missing_files(tmp_path, read):
    with pytest.raises(InputError, match="missing: no such file"):
        read(tmp_path / "missing")


def test_sha256_is_the_known_one(tmp_path):
    (tmp_path / "abc").write_text("abc")
    assert sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")
    assert fingerprint(tmp_path / "abc") == sha256(tmp_path / "abc")


def test_a_large_file_is_read_once_while_it_stays_as_it_is(tmp_path, monkeypatch):
    reads = []
    digest = provenance._digest
    monkeypatch.setattr(provenance, "_digest", lambda path: reads.append(path.name) or digest(path))
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_text("abc")
    large.write_bytes(bytes(provenance.LARGE_FILE))
    first = [sha256(path) for path in (small, large)]
    assert [sha256(path) for path in (small, large)] == first
    assert reads == ["small", "large", "small"]
    large.write_bytes(bytes(provenance.LARGE_FILE - 1) + b"1")
    os.utime(large, ns=(0, 0))  # as a copy that keeps an old time
    assert sha256(large) != first[1]
    (tmp_path / "other").write_bytes(bytes(provenance.LARGE_FILE))
    (tmp_path / "other").replace(large)
    assert sha256(large) == first[1]


def test_a_folder_is_known_by_names_and_contents_alone(tmp_path):
    folder = tmp_path / "a"
    (folder / "deep").mkdir(parents=True)
    (folder / "one").write_text("1")
    (folder / "deep" / "two").write_text("2")
    first = fingerprint(folder)

    folder = folder.rename(tmp_path / "b")
    (folder / PROVENANCE).write_text("{}")
    (folder / "deep" / PROVENANCE).write_text("{}")
    (folder / "empty folder").mkdir()
    assert fingerprint(folder) == first

    (folder / "one").write_text("1!")
    assert fingerprint(folder) != first
    (folder / "one").write_text("1")
    assert fingerprint(folder) == first
    (folder / "deep" / "two").rename(folder / "deep" / "zwei")
    assert fingerprint(folder) != first
    (folder / "deep" / "zwei").rename(folder / "two")
    assert fingerprint(folder) != first
    apart = fingerprint(folder)
    (folder / "one").write_text("2")
    (folder / "two").write_text("1")
    assert fingerprint(folder) != apart


@pytest.fixture
def made(tmp_path):
    """An artifact made of one input: its folder and the input."""
    source = tmp_path / "Shop.item.json"
    write_json(source, {"0": {"title": "Desk"}})
    folder = tmp_path / "embeddings"
    write_provenance(folder, STAGE, {"dim": 3, "sizes": (4, 4)}, {"item": source}, rows=1)
    return folder, source


def test_the_sidecar(made, tmp_path):
    folder, source = made
    record = read_provenance(folder)
    assert (record["kind"], record["format"], record["stage"]) == ("toy", 1, STAGE)
    assert record["config"] == {"dim": 3, "sizes": [4, 4]}
    assert record["inputs"] == {"item": {"path": str(source), "sha256": sha256(source)}}
    assert record["rows"] == 1
    assert read_provenance(source.parent) is None
    assert provenance_path(tmp_path / "index") == tmp_path / "index" / "lcrec.json"
    assert provenance_path(tmp_path / "model-v1.2") == tmp_path / "model-v1.2" / "lcrec.json"
    assert provenance_path(tmp_path / "a.jsonl") == tmp_path / "a.lcrec.json"


def test_is_current(made):
    folder, source = made
    config = {"dim": 3, "sizes": (4, 4)}
    inputs = {"item": source}
    assert is_current(folder, STAGE, config, inputs)
    assert not is_current(folder, "python -m lcrec.other", config, inputs)
    assert not is_current(folder, STAGE, {**config, "dim": 4}, inputs)
    assert not is_current(folder, STAGE, {**config, "more": 1}, inputs)
    assert not is_current(folder, STAGE, config, {})
    assert not is_current(folder, STAGE, config, {"items": source})
    assert not is_current(folder, STAGE, config, {**inputs, "prompts": source})
    assert not is_current(folder, STAGE, config, {"item": source.parent / "gone"})
    assert not is_current(source.parent, STAGE, config, inputs)


def test_a_folder_that_lacks_what_was_written_is_not_current(tmp_path):
    for name in ("weights.bin", "page.html", "prompts/one.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    write_provenance(tmp_path, STAGE, {}, {})
    (tmp_path / "note.txt").write_text("a person's")
    (tmp_path / "note.txt").unlink()
    assert is_current(tmp_path, STAGE, {}, {})
    (tmp_path / "page.html").unlink()
    assert not is_current(tmp_path, STAGE, {}, {})


def test_neither_a_release_nor_a_new_name_makes_an_artifact_stale(made, monkeypatch):
    folder, source = made
    ask = {"dim": 3, "sizes": (4, 4)}, {"item": source}
    monkeypatch.setattr(provenance, "__version__", "99.0")
    assert is_current(folder, STAGE, *ask)
    monkeypatch.setitem(provenance.KINDS, "lcrec play", "toy")
    assert is_current(folder, "lcrec play", *ask)
    assert is_kind(folder, "lcrec play")
    assert not is_kind(folder, "python -m lcrec.embed")
    assert not is_kind(source, STAGE)
    assert not is_kind(source.parent, STAGE)


def test_a_sidecar_without_a_kind_has_that_of_its_command(made):
    folder, source = made
    path = folder / PROVENANCE
    for stage, kind in (
        ("accelerate launch recipes/finetune.py", "checkpoint"),
        ("python -m lcrec.embed", "embeddings"),
        ("python -m lcrec.baselines sasrec", "baselines sasrec"),
    ):
        record = json.loads(path.read_text()) | {"stage": stage}
        record.pop("kind", None), record.pop("format", None)
        path.write_text(json.dumps(record))
        found = read_provenance(folder)
        assert (found["kind"], found["format"]) == (kind, 1)
        assert is_current(folder, stage, {"dim": 3, "sizes": (4, 4)}, {"item": source})


def test_an_unknown_format_is_refused(made, monkeypatch):
    folder, source = made
    monkeypatch.setitem(provenance.FORMATS, "toy", 2)
    assert provenance.format_of("toy") == 2
    with pytest.raises(InputError, match=r"lcrec.json: format 1 of 'toy'.*knows format 2"):
        is_current(folder, STAGE, {"dim": 3, "sizes": (4, 4)}, {"item": source})


def test_a_changed_input_is_noticed_and_a_moved_one_is_not(made):
    folder, source = made
    config = {"dim": 3, "sizes": [4, 4]}
    moved = source.rename(source.with_name("Store.item.json"))
    assert is_current(folder, STAGE, config, {"item": moved})
    require_same_input(folder, "item", moved, "python -m lcrec.embed")

    write_json(moved, {"0": {"title": "Lamp"}})
    assert not is_current(folder, STAGE, config, {"item": moved})
    with pytest.raises(InputError) as error:
        require_same_input(folder, "item", moved, "python -m lcrec.embed --data X")
    message = str(error.value)
    assert f"{folder} was made from another item file than {moved}" in message
    assert "Shop.item.json" in message  # the file it was made from
    assert "rebuild it with: python -m lcrec.embed --data X" in message


def test_what_was_made_elsewhere_is_taken_as_it_is(made):
    folder, source = made
    require_same_input(source.parent, "item", source, "python -m lcrec.embed")
    require_same_input(folder, "prompts", source, "python -m lcrec.embed")
    require_same_input(folder / "a.jsonl", "item", source, "python -m lcrec.embed")


def test_inputs_must_exist(tmp_path):
    with pytest.raises(InputError, match="gone: no such file"):
        write_provenance(tmp_path, STAGE, {}, {"item": tmp_path / "gone"})
    assert not (tmp_path / PROVENANCE).exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: [],
        lambda record: {"inputs": {}},
        lambda record: {key: value for key, value in record.items() if key != "stage"},
        lambda record: {key: value for key, value in record.items() if key != "config"},
        lambda record: {key: value for key, value in record.items() if key != "lcrec"},
        lambda record: {**record, "kind": 1},
        lambda record: {**record, "format": None},
        lambda record: {**record, "inputs": []},
        lambda record: {**record, "inputs": {"item": "abc"}},
        lambda record: {**record, "inputs": {"item": {"path": "x"}}},
        lambda record: {**record, "inputs": {"item": {"sha256": "x"}}},
        lambda record: {**record, "inputs": {"item": {"path": "x", "sha256": 7}}},
        lambda record: {**record, "config": "x"},
        lambda record: {**record, "stage": 1},
        lambda record: {**record, "prepared": [1]},
        lambda record: {**record, "earlier": []},
        lambda record: {**record, "alike": {"item": 3}},
        lambda record: {**record, "files": [None]},
    ],
)
def test_a_damaged_sidecar(made, damage):
    folder, source = made
    sidecar = folder / PROVENANCE
    sidecar.write_text(json.dumps(damage(json.loads(sidecar.read_text()))))
    for ask in (
        lambda: read_provenance(folder),
        lambda: is_current(folder, STAGE, {}, {"item": source}),
        lambda: require_same_input(folder, "item", source, "python -m lcrec.embed"),
    ):
        with pytest.raises(InputError, match=r"lcrec.json: not an lcrec provenance file; delete"):
            ask()


def test_a_cut_sidecar(made):
    folder, source = made
    sidecar = folder / PROVENANCE
    sidecar.write_text(sidecar.read_text()[:40])
    with pytest.raises(InputError, match=r"lcrec.json, line .*not valid JSON"):
        is_current(folder, STAGE, {}, {"item": source})
