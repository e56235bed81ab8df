"""Settings from YAML and flags: what is read, and how what is wrong is refused."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcrec.core.config import config_dict, option, parse_config, read_yaml, refuse_settings
from lcrec.core.errors import InputError, closest, run_stage


@dataclass(frozen=True)
class ToyConfig:
    """Settings with a field of every supported type."""

    output: Path = option("the folder to write to")
    rate: float = option("step size, 100 % of it", 0.5, minimum=0)
    batch_size: int = option("rows per step", 8, minimum=1)
    name: str = option("a name", "toy")
    shuffle: bool = option("mix the rows", True)
    mode: Literal["lora", "full"] = option("what to train", "lora")
    fields: list[str] = option("text fields", ["title", "description"])
    widths: list[int] = option("layer widths", [4, 2], minimum=1)
    limit: int | None = option("the most rows, all by default", None, maximum=1000)


@dataclass(frozen=True)
class OffConfig:
    """Settings whose values YAML 1.1 takes for others."""

    name: str | None = option("a name, none by default", "x")
    share: Literal["auto", "off"] = option("whether to share", "auto")


def parse(*argv, config_type=ToyConfig):
    return parse_config(config_type, list(argv), description="A toy.", prog="python -m toy")


@pytest.fixture
def parse_yaml(tmp_path):
    """A function that parses YAML text, and flags after it."""

    def run(text, *flags, config_type=ToyConfig):
        path = tmp_path / "toy.yaml"
        path.write_text(text, encoding="utf-8")
        output = ["--output", "out"] if config_type is ToyConfig else []
        return parse(*output, "--config", str(path), *flags, config_type=config_type)

    return run


def test_defaults_and_flags_of_every_type():
    config = parse(
        *("--output", "out", "--rate", "1e-3", "--batch-size=16", "--name", "x", "--no-shuffle"),
        *("--mode", "full", "--fields", "title", "brand", "--widths", "3", "--limit", "7"),
    )
    expected = (Path("out"), 0.001, 16, "x", False, "full", ["title", "brand"], [3], 7)
    assert tuple(vars(config).values()) == expected
    assert type(config.rate) is float
    assert type(config.batch_size) is int
    config = parse("--output", "out", "--rate", "0", "--batch-size", "1", "--widths", "1", "1")
    assert (config.rate, config.batch_size, config.widths) == (0, 1, [1, 1])  # the minima
    config = parse("--output", "out")
    assert config.output == Path("out")
    assert (config.rate, config.batch_size, config.name) == (0.5, 8, "toy")
    assert config.fields == ["title", "description"]
    assert config.limit is None
    config.fields.append("brand")  # which the next does not share
    assert parse("--output", "out").fields == ["title", "description"]
    with pytest.raises(InputError, match="--output is required: the folder to write to"):
        parse()


@dataclass(frozen=True)
class WordsConfig:
    """Settings whose files stand without a flag."""

    files: list[Path] = option("what to join", words=True)
    output: Path = option("where to")
    others: list[Path] | None = option("more of them", None)


@pytest.mark.parametrize(
    "argv", ["a b --output x", "--output x a b", "a --output x b", "a b --others c d --output x"]
)
def test_words_without_a_flag(argv):
    config = parse(*argv.split(), config_type=WordsConfig)
    assert config.files == [Path("a"), Path("b")]
    assert config.output == Path("x")
    assert config_dict(config) == {}


def test_words_from_a_file_and_words_that_lack(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text("files: [a, b]\noutput: x\n")
    assert parse("--config", str(path), config_type=WordsConfig).files == [Path("a"), Path("b")]
    config = parse("z", "--config", str(path), config_type=WordsConfig)
    assert config.files == [Path("z")]
    with pytest.raises(InputError, match="FILES is required: what to join"):
        parse("--output", "x", config_type=WordsConfig)
    with pytest.raises(InputError, match=r"unknown argument '--botom'"):
        parse("a", "--output", "x", "b", "--botom", "1", config_type=WordsConfig)
    with pytest.raises(SystemExit):
        parse("--help", config_type=WordsConfig)
    assert "FILES" in capsys.readouterr().out


def test_yaml_of_every_type_which_a_flag_overrides(parse_yaml):
    # YAML 1.1 reads 1e-3, without a dot, as text.
    config = parse_yaml(
        "rate: 1e-3\nbatch_size: 16\nname: 12\nshuffle: no\nmode: full\n"
        "fields: [title]\nwidths:\n  - 3\n  - 1\nlimit: null\n"
    )
    expected = (Path("out"), 0.001, 16, "12", False, "full", ["title"], [3, 1], None)
    assert tuple(vars(config).values()) == expected
    assert type(parse_yaml("rate: 1\n").rate) is float  # an integer is a number too
    config = parse_yaml("shuffle: false\nbatch_size: 16\nfields: [brand]\n", "--shuffle")
    assert config.shuffle is True
    assert (config.batch_size, config.fields) == (16, ["brand"])
    config = parse_yaml("shuffle: true\nbatch_size: 16\n", "--no-shuffle", "--batch-size", "2")
    assert (config.shuffle, config.batch_size) == (False, 2)


@pytest.mark.parametrize(
    "text", ["007", "1.10", "1_000", "12:30", "2020-01-31", "no", "0x1f", "1e3"]
)
def test_yaml_text_stays_as_it_is_written(parse_yaml, text):
    config = parse_yaml(f"name: {text}\nfields: [{text}, '{text}']\noutput: {text}\nrate: 1\n")
    assert (config.name, config.fields) == (text, [text, text])
    assert parse_yaml("batch_size: 010\n").batch_size == 10
    assert parse_yaml("name: ~\n", config_type=OffConfig).name is None
    assert parse_yaml("share: off\n", config_type=OffConfig).share == "off"


@given(st.floats(min_value=0, allow_infinity=False), st.integers(1, 2**31 - 1))
def test_numbers_survive_their_way_through_a_flag(rate, size):
    config = parse("--output", "out", f"--rate={rate!r}", f"--batch-size={size}")
    assert (config.rate, config.batch_size) == (rate, size)


def test_help_tells_meaning_and_default(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse("--help")
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "step size, 100 % of it (default: 0.5)" in text
    assert "the folder to write to (required)" in text
    assert "text fields (default: title description)" in text
    assert "the most rows, all by default" in text
    assert "mix the rows (on by default)" in text
    assert "(default: none)" not in text
    assert "--no-shuffle" in text
    assert "{lora,full}" in text


def test_the_usage_has_what_is_required_without_brackets(capsys):
    @dataclass(frozen=True)
    class Config:
        files: list[Path] = option("what to join", words=True)
        data: Path = option("the data folder")
        methods: list[str] = option("what to try")
        mode: Literal["lora", "full"] = option("what to train")
        quick: bool = option("be quick", False)

    with pytest.raises(SystemExit):
        parse("--help", config_type=Config)
    text = capsys.readouterr().out
    assert "be quick\n" in text  # a switch that is off says nothing of its default
    (usage,) = [line for line in text.splitlines() if line.startswith("usage: ")]
    assert usage == (
        "usage: python -m toy FILES [FILES ...] --data PATH --methods ITEM ... "
        "--mode {lora,full} [option ...]"
    )


def test_help_ends_in_the_worked_example(capsys):
    with pytest.raises(SystemExit):
        parse_config(
            ToyConfig, ["--help"], description="A toy.", prog="python -m toy",
            example="--output out --rate 0.5",
        )  # fmt: skip
    assert capsys.readouterr().out.endswith("example:\n  python -m toy --output out --rate 0.5\n")


def test_config_dict_leaves_paths_out_and_is_json():
    settings = config_dict(parse("--output", "out", "--limit", "3"))
    assert "output" not in settings
    assert settings["limit"] == 3
    assert json.loads(json.dumps(settings)) == settings
    assert "others" not in config_dict(WordsConfig([], Path(), [Path("a")]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batchsize", "3"], r"unknown argument '--batchsize'; did you mean '--batch-size'"),
        (["--batch", "3"], "unknown argument '--batch'"),  # no abbreviations
        (["--batch_size=3"], "unknown argument '--batch_size=3'; did you mean '--batch-size'"),
        (["--confg", "x.yaml"], "unknown argument '--confg'; did you mean '--config'"),
        (["--zzzzzz"], r"unknown argument '--zzzzzz' \(all of them: python -m toy --help"),
        (["stray"], "unknown argument 'stray'"),
        (["--batch-size"], r"--batch-size.*expected one argument.*python -m toy --help"),
        (["--fields"], "--fields.*expected at least one argument"),
        (["--batch-size", "3.0"], "--batch-size: expected a whole number, found '3.0'"),
        (["--batch-size", "many"], "--batch-size: expected a whole number, found 'many'"),
        (["--batch-size", "0"], "--batch-size: 0 is too small; the least allowed is 1"),
        (["--batch-size", "-3"], "--batch-size: -3 is too small"),
        (["--batch-size", "9" * 30], f"--batch-size: {'9' * 30} is too large"),
        (["--rate", "fast"], "--rate: expected a number, found 'fast'"),
        (["--rate", "nan"], "--rate: expected a number, found 'nan'"),
        (["--rate", "inf"], "--rate: expected a number, found 'inf'"),
        (["--rate", "-0.5"], "--rate: -0.5 is too small; the least allowed is 0"),
        (["--limit", "1001"], "--limit: 1001 is too large; the most allowed is 1000"),
        (["--mode", "fulll"], "--mode: 'fulll' is none of lora, full; did you mean 'full'"),
        (["--widths", "4", "x"], "--widths: expected a whole number, found 'x'"),
        (["--widths", "4", "0"], "--widths: 0 is too small; the least allowed is 1"),
        (["--output", ""], "--output: the path is empty"),
        (["--config", "missing.yaml"], "missing.yaml: no such file"),
    ],
)
def test_wrong_flags(flags, message):
    with pytest.raises(InputError, match=message):
        parse("--output", "out", *flags)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 3\n", "toy.yaml: unknown key 'batchsize'; did you mean 'batch_size'"),
        ("batch-size: 3\n", "toy.yaml: unknown key 'batch-size'; did you mean 'batch_size'"),
        ("3: 3\n", "toy.yaml: unknown key 3"),
        ("batch_size: 3.0\n", "toy.yaml: batch_size: expected a whole number, found '3.0'"),
        ("batch_size: true\n", "toy.yaml: batch_size: expected a whole number, found 'true'"),
        ("batch_size: [3]\n", "toy.yaml: batch_size: expected a whole number"),
        ("batch_size:\n", r"toy.yaml: batch_size: a value is needed \(rows per step\)"),
        ("batch_size: 0\n", "toy.yaml: batch_size: 0 is too small"),
        (f"rate: {'9' * 400}\n", "toy.yaml: rate: expected a number"),
        ("rate: .inf\n", "toy.yaml: rate: expected a number, found '.inf'"),
        ("rate: .nan\n", "toy.yaml: rate: expected a number, found '.nan'"),
        ("shuffle: 1\n", "toy.yaml: shuffle: expected true or false, found 1"),
        ("shuffle: 'no'\n", "toy.yaml: shuffle: expected true or false, found 'no'"),
        ("batch_size: 1:30\n", "toy.yaml: batch_size: expected a whole number, found '1:30'"),
        ("name: [yes]\n", r"toy.yaml: name: expected text, found \['yes'\]"),
        ("mode: [full]\n", r"toy.yaml: mode: \['full'\] is none of lora, full"),
        ("fields: title\n", "toy.yaml: fields: expected a list, found 'title'"),
        ("fields: [title, null]\n", "toy.yaml: fields: expected text, found None"),
        ("widths: [4, -1]\n", "toy.yaml: widths: -1 is too small"),
        ("output: {a: 1}\n", "toy.yaml: output: expected a path, found {'a': '1'}"),
        ("limit: much\n", "toy.yaml: limit: expected a whole number, found 'much'"),
        ("", "toy.yaml: expected 'key: value' lines, found None"),
        ("- rate\n", "toy.yaml: expected 'key: value' lines, found"),
        ("name: a\nrate: 1\nname: b\n", "toy.yaml, line 3: key 'name' is written twice"),
    ],
)
def test_wrong_yaml_values(parse_yaml, text, message):
    with pytest.raises(InputError, match=message):
        parse_yaml(text)


BAD_YAML = [
    ("a: 1\nb: [\n", "line 3: not valid YAML"),
    ("a: 1\n  b: 2\n", "line 2: not valid YAML"),
    ("a: 1\nb: bell \x07\n", r"character U\+0007 in line 2"),
    ("a: \x00\n", r"character U\+0000 in line 1"),
    ("a: 1\nb: {{ title }}\n", "line 2: not valid YAML .*unhashable"),
    ("[a, b]: 1\n", "line 1: not valid YAML .*unhashable"),
    ("a: 2020-13-45\n", "not valid YAML .*month"),
    ("a: !!bool maybe\n", "not valid YAML"),
    ("a: !!int ''\n", "not valid YAML"),
    ("a: !!map [1]\n", "not valid YAML"),
    ("a: !!python/object/apply:os.getcwd []\n", "line 1: not valid YAML .*constructor"),
    ("a: 1\n---\nb: 2\n", "line 2: not valid YAML"),
    ("a: *nowhere\n", "line 1: not valid YAML .*alias"),
    ("a: " + "[" * 3000, "not valid YAML"),
    ("a:\n  b: 1\n  b: 2\n", "line 3: key 'b' is written twice"),
    ("key: &a [*a]\n", "line 1: an alias stands within"),
]


@pytest.mark.parametrize(("text", "message"), BAD_YAML)
def test_bad_yaml_names_file_and_line(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        read_yaml(path)
    assert str(path) in str(error.value)


def test_yaml_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("a: caf\xe9\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin.yaml: cannot be read as UTF-8"):
        read_yaml(tmp_path / "latin.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml(tmp_path)
    with pytest.raises(InputError, match=r"none.yaml: no such file"):
        read_yaml(tmp_path / "none.yaml")


@given(st.text(max_size=30))
def test_any_text_is_yaml_or_an_input_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        read_yaml(path)
    except InputError as error:
        assert "any.yaml" in str(error)  # noqa: PT017


def test_closest():
    assert closest("histori", ["history", "title"]) == "; did you mean 'history'?"
    assert closest("xyz", ["history", "title"]) == ""
    assert closest("x", []) == ""


def test_run_stage_passes_the_arguments_on(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "argv", ["prog", "--a", "1"])
    run_stage(seen.extend)
    assert seen == ["--a", "1"]


def test_settings_that_a_use_does_not_heed():
    config = parse("--output", "out", "--fields", "brand", "--batch-size", "3")
    refuse_settings(config, {"output", "fields", "batch_size"}, "not here")
    with pytest.raises(InputError, match="--fields brand: not here"):
        refuse_settings(config, {"output", "batch_size"}, "not here")
    with pytest.raises(InputError, match="--batch-size 3: not here"):
        refuse_settings(config, {"output", "fields"}, "not here")
    refuse_settings(parse("--output", "out"), {"output"}, "not here")


def test_a_kilobyte_of_aliases_is_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"bomb.yaml, line 6: .* more than 100,000 values"):
        read_yaml(path)
    path.write_text("a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, x: 3}\n")
    assert read_yaml(path)["c"] == {"x": 3, "y": 2}
