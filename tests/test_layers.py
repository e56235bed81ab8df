"""The shape of the house: imports go down only, stages meet on disk, files stay short."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lcrec.__main__ import STAGES, main
from lcrec.baselines.__main__ import COMMANDS
from lcrec.errors import InputError

TOP = Path(__file__).parents[1]

# A module may import its own layer and those below; a new module gets its place here.
LAYERS = {
    # Neither torch nor transformers.
    **dict.fromkeys(["lcrec", "lcrec.__main__", "lcrec.errors", "lcrec.config"], 0),
    **dict.fromkeys(["lcrec.artifacts", "lcrec.data", "lcrec.user_texts", "lcrec.index"], 0),
    **dict.fromkeys(["lcrec.tasks", "lcrec.templates", "lcrec.prompts"], 0),
    **dict.fromkeys(["lcrec.metrics", "lcrec.predictions", "lcrec.ensemble"], 0),
    **dict.fromkeys(["lcrec.report", "lcrec.planted", "lcrec.decimals"], 0),
    "lcrec.data_parquet": 0,
    **dict.fromkeys(["lcrec.reviews", "lcrec.title_guard", "lcrec.intent_prompts"], 0),
    **dict.fromkeys(["lcrec.prompts_show", "lcrec.prompts_diff", "lcrec.new_items"], 0),
    # Arrays and tensors, nothing of Hugging Face.
    **dict.fromkeys(["lcrec.assignment", "lcrec.rqvae", "lcrec.trie", "lcrec.leaf_filter"], 1),
    "lcrec.loose_trie": 1,
    **dict.fromkeys(["lcrec.residual", "lcrec.rqvae_state", "lcrec.sinkhorn"], 1),
    **dict.fromkeys(["lcrec.index_quality", "lcrec.index_verdict", "lcrec.index_page"], 1),
    # Language models.
    **dict.fromkeys(["lcrec.vocab", "lcrec.dataset", "lcrec.modeling", "lcrec.probe"], 2),
    "lcrec.processes": 2,
    **dict.fromkeys(["lcrec.new_rows", "lcrec.merging", "lcrec.plan", "lcrec.run_folder"], 2),
    **dict.fromkeys(["lcrec.beams", "lcrec.generation", "lcrec.decoding"], 2),
    **dict.fromkeys(["lcrec.questions", "lcrec.recommender", "lcrec.trainer"], 2),
    **dict.fromkeys(["lcrec.prompts_tokens", "lcrec.prompts_score", "lcrec.encoders"], 2),
    **dict.fromkeys(["lcrec.explanations", "lcrec.lsa"], 2),
    # Stages and what belongs to one of them.
    **dict.fromkeys(["lcrec.synthetic", "lcrec.synthetic_texts", "lcrec.synthetic_words"], 3),
    **dict.fromkeys(["lcrec.prompts_cli", "lcrec.dataset_cli"], 3),
    **dict.fromkeys(["lcrec.prepare", "lcrec.cleaning", "lcrec.formats", "lcrec.tinylm"], 3),
    **dict.fromkeys(["lcrec.engines", "lcrec.filters", "lcrec.ledger", "lcrec.refine"], 3),
    **dict.fromkeys(["lcrec.numbering", "lcrec.splits", "lcrec.data_folder"], 3),
    "lcrec.data_card": 3,
    **dict.fromkeys(["lcrec.formats_tables", "lcrec.formats_open", "lcrec.formats_sift"], 3),
    **dict.fromkeys(["lcrec.formats_literal", "lcrec.formats_layouts"], 3),
    **dict.fromkeys(["lcrec.formats_published", "lcrec.formats_sequences"], 3),
    "lcrec.formats_inputs": 3,
    **dict.fromkeys(["lcrec.intents", "lcrec.intent_requests", "lcrec.intent_keywords"], 3),
    **dict.fromkeys(["lcrec.intent_endpoint", "lcrec.intent_local"], 3),
    **dict.fromkeys(["lcrec.embed", "lcrec.quantize", "lcrec.generate", "lcrec.evaluate"], 3),
    **dict.fromkeys(["lcrec.choices", "lcrec.bulk", "lcrec.one_request"], 3),
    **dict.fromkeys(["lcrec.indexers", "lcrec.rqvae_training"], 3),
    **dict.fromkeys(["lcrec.index_fit", "lcrec.index_report"], 3),
    **dict.fromkeys(["lcrec.extension", "lcrec.repair", "lcrec.add_items"], 3),
    **dict.fromkeys(["lcrec.evaluate_pairs", "lcrec.evaluate_search"], 3),
    **dict.fromkeys(["lcrec.evaluate_language", "lcrec.judging"], 3),
    **dict.fromkeys(["lcrec.negatives", "lcrec.rouge"], 3),
    **dict.fromkeys(["lcrec.serve", "lcrec.service", "lcrec.desk", "lcrec.gate"], 3),
    **dict.fromkeys(["lcrec.batching"], 3),
    **dict.fromkeys(["lcrec.baselines", "lcrec.baselines.__main__", "lcrec.baselines.base"], 3),
    **dict.fromkeys(["lcrec.baselines.inputs", "lcrec.baselines.store"], 3),
    **dict.fromkeys(["lcrec.baselines.settings", "lcrec.baselines.histories"], 3),
    **dict.fromkeys(["lcrec.baselines.ease", "lcrec.baselines.itemknn"], 3),
    **dict.fromkeys(["lcrec.baselines.generative", "lcrec.baselines.tiger"], 3),
    **dict.fromkeys(["lcrec.baselines.cid", "lcrec.baselines.p5cid"], 3),
    "lcrec.baselines.tune": 3,
    **dict.fromkeys(["lcrec.baselines.ranking", "lcrec.baselines.sampling"], 3),
    **dict.fromkeys(["lcrec.baselines.graph", "lcrec.baselines.losses"], 3),
    **dict.fromkeys(["lcrec.baselines.stopping", "lcrec.baselines.vectors"], 3),
    **dict.fromkeys(["lcrec.baselines.cooccurrence", "lcrec.baselines.popularity"], 3),
    **dict.fromkeys(["lcrec.baselines.lightgcn", "lcrec.baselines.mf"], 3),
    **dict.fromkeys(["lcrec.baselines.fusion", "lcrec.baselines.rank_fusion"], 3),
    **dict.fromkeys(["lcrec.baselines.fuse", "lcrec.baselines.comparable"], 3),
    **dict.fromkeys(["lcrec.baselines.diagnostics", "lcrec.baselines.diagnose"], 3),
    **dict.fromkeys(["lcrec.baselines.probes", "lcrec.baselines.probe"], 3),
    "lcrec.baselines.collabcontext": 3,
    **dict.fromkeys(["lcrec.baselines.method_run", "lcrec.baselines.protocols"], 3),
    **dict.fromkeys(["lcrec.baselines.memory"], 3),
    **dict.fromkeys(["lcrec.baselines.tssr", "lcrec.baselines.tssr_losses"], 3),
    "lcrec.baselines.tssr_content": 3,
    **dict.fromkeys(["lcrec.baselines.cold", "lcrec.baselines.cold_split"], 3),
    **dict.fromkeys(["lcrec.baselines.encoder", "lcrec.baselines.sequences"], 3),
    **dict.fromkeys(["lcrec.baselines.alpharec", "lcrec.baselines.textcosine"], 3),
    **dict.fromkeys(["lcrec.baselines.candidates", "lcrec.baselines.training_runs"], 3),
    **dict.fromkeys(["lcrec.baselines.compare", "lcrec.baselines.comparison"], 3),
    "lcrec.baselines.comparison_page": 3,
    **dict.fromkeys(["lcrec.baselines.sequential", "lcrec.baselines.attributes"], 3),
    **dict.fromkeys(["lcrec.baselines.sasrec", "lcrec.baselines.bert4rec"], 3),
    **dict.fromkeys(["lcrec.baselines.gru4rec", "lcrec.baselines.fmlp"], 3),
    **dict.fromkeys(["lcrec.baselines.caser", "lcrec.baselines.hgn"], 3),
    **dict.fromkeys(["lcrec.baselines.fdsa", "lcrec.baselines.s3rec"], 3),
    **dict.fromkeys(["lcrec.baselines.transfer"], 3),
    **dict.fromkeys(["lcrec.baselines.intention", "lcrec.baselines.convergence"], 3),
}
# Stages that answer at once, because they need no tensors either.
LIGHT_STAGES = [
    *("synthetic", "prompts_cli", "prepare", "add_items", "intents", "evaluate"),
    "baselines.__main__",
]
HEAVY = ["torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers"]


def module_name(path):
    words = path.relative_to(TOP).with_suffix("").parts
    return ".".join(words).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted((TOP / "lcrec").rglob("*.py"))}
SCRIPTS = {
    module_name(path): path
    for folder in ("recipes", "scripts")
    for path in sorted((TOP / folder).glob("*.py"))
}
TREES = {
    name: ast.parse(path.read_text(encoding="utf-8"))
    for name, path in {**MODULES, **SCRIPTS}.items()
}


def is_main_guard(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def imported(name, *, with_main_guard=True):
    """Return every module named in an import anywhere in a file."""
    body = TREES[name].body
    if not with_main_guard:
        body = [node for node in body if not is_main_guard(node)]
    found = set()
    for node in (inner for outer in body for inner in ast.walk(outer)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            # `from lcrec import data` names a module, `from lcrec.data import Items` does not.
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & MODULES.keys()) or {node.module}
    return found


def stages():
    """Return the modules that a person runs."""
    return [
        name
        for name, tree in TREES.items()
        if any(map(is_main_guard, tree.body)) and name != "lcrec.__main__"
    ]


def test_every_module_has_its_layer():
    assert LAYERS.keys() == MODULES.keys(), "give the new module a layer, or remove the old one"


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_only(name):
    # Run as a command, a module may hand over to what stands above it.
    for other in imported(name, with_main_guard=False):
        if other.split(".")[0] == "lcrec":
            assert LAYERS[other] <= LAYERS[name], f"{name} imports {other} from above"
        assert other.split(".")[0] not in ("recipes", "scripts", "tests")


def test_no_two_modules_import_each_other():
    below = {name: imported(name, with_main_guard=False) & MODULES.keys() for name in MODULES}
    done: list[str] = []
    while ready := [name for name in below if name not in done and below[name] <= set(done)]:
        done += ready
    assert sorted(done) == sorted(below), "the rest import each other in a circle"


@pytest.mark.parametrize("name", TREES)
def test_stages_meet_on_disk(name):
    # A library with a command of its own (prompts, modeling) is still a library.
    assert not imported(name) & {stage for stage in stages() if LAYERS.get(stage, 3) >= 3}


def test_the_bottom_layer_is_light():
    names = [name for name, layer in LAYERS.items() if layer == 0]
    names += [f"lcrec.{name}" for name in LIGHT_STAGES]
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1].split():\n"
        "    importlib.import_module(name)\n"
        f"    heavy = [heavy for heavy in {HEAVY} if heavy in sys.modules]\n"
        "    assert not heavy, f'{name} loads {heavy}'\n"
    )
    command = [sys.executable, "-c", script, " ".join(names)]
    result = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_first_layer_knows_nothing_of_hugging_face():
    for name, layer in LAYERS.items():
        if layer <= 1:
            roots = {other.split(".")[0] for other in imported(name)}
            assert not roots & {"trl", "peft", "accelerate", "datasets"}, name
            assert "transformers" not in roots, name


@pytest.mark.parametrize("name", TREES)
def test_no_file_is_long(name):
    path = {**MODULES, **SCRIPTS}[name]
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400


@pytest.mark.parametrize("name", TREES)
def test_every_module_says_what_it_offers(name):
    text = ast.get_docstring(TREES[name])
    assert text, f"{name} has no docstring"
    first = text.splitlines()[0]
    assert first.endswith((".", ":")), f"{name}: the first line is a sentence: {first}"
    if name == "lcrec" or name not in MODULES:
        return
    assert "Public names: " in text, name
    offered = re.findall(r"`(\w+)`", text.split("Public names: ")[1])
    defined = set()
    for node in TREES[name].body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and name == "lcrec.baselines":
            defined |= {alias.name for alias in node.names}
    assert set(offered) <= defined, f"{name}: {set(offered) - defined} is not there"
    assert not [word for word in offered if word.startswith("_")]


# `python -m lcrec`.


def command_of(name):
    if name in SCRIPTS:
        return f"accelerate launch {SCRIPTS[name].relative_to(TOP).as_posix()}"
    return f"python -m {name.removesuffix('.__main__')}"


def test_the_overview_lists_every_stage_and_no_other():
    expected = sorted(command_of(name) for name in stages() if not name.startswith("scripts."))
    assert sorted(command for command, _, _ in STAGES) == expected


def test_the_names_in_provenance_are_those_of_the_overview():
    commands = {command for command, _, _ in STAGES}
    commands |= {f"python -m lcrec.baselines {name}" for name in COMMANDS}
    constants = {
        name: node.value.value
        for name, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("STAGE", "PROG")
        and isinstance(node.value, ast.Constant)
    }
    assert len(constants) >= 7
    assert set(constants.values()) <= commands
    for name, value in constants.items():
        if name in stages() and LAYERS.get(name, 3) >= 3:
            assert value == command_of(name)


def test_the_overview_is_in_order_a_line_each(capsys):
    main([])
    lines = [line for line in capsys.readouterr().out.splitlines() if "->" in line]
    assert len(lines) == len(STAGES)
    assert max(map(len, lines)) <= 130
    commands = [line.split("  ")[0] for line in lines]
    assert commands == [command for command, _, _ in STAGES]
    order = ["prepare", "embed", "quantize", "finetune.py", "generate", "evaluate"]
    places = [next(i for i, c in enumerate(commands) if c.endswith(word)) for word in order]
    assert places == sorted(places)
    main(["--help"])
    assert "python -m lcrec.embed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "command"),
    [
        ("embed", "python -m lcrec.embed"),
        ("quantise", "python -m lcrec.quantize"),
        ("finetune", "accelerate launch recipes/finetune.py"),
        ("--data", "python -m lcrec."),
    ],
)
def test_an_argument_is_answered_with_the_command_that_was_meant(word, command):
    with pytest.raises(InputError) as error:
        main([word, "--data", "data/shop"])
    message = str(error.value)
    assert f"python -m lcrec takes no argument {word!r}" in message
    assert re.search(rf"such as: {re.escape(command)}.* --help$", message)


def test_the_overview_loads_nothing_heavy():
    script = (
        "import runpy, sys\n"
        "sys.argv = ['lcrec']\n"
        "runpy.run_module('lcrec', run_name='__main__')\n"
        f"assert not set(sys.modules) & {{'numpy', 'yaml', *{HEAVY}}}\n"
    )
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "python -m lcrec.quantize" in result.stdout
