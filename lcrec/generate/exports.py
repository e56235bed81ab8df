"""The catalogue, the prompt and the token layout of a checkpoint as other engines read them.

- `items.jsonl` and `prompt.json`: for any engine, read by `lcrec.generate.standalone`;
- FlashRec (github.com/sohu-mptc/FlashRec): JSON whose keys are an item's codes, "3,0,12", and flags
  that say where the codes' tokens lie in the vocabulary;
- sid-gr (examples/sid_gr of github.com/NVIDIA/recsys-examples), which trains a model of its own: a
  tensor of codes [levels, items], sequences as Parquet, and the settings that name both.

Each is checked on the way without the engine. Reads nothing, and writes what it is told to.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lcrec.core.artifacts import write_jsonl
from lcrec.core.errors import InputError
from lcrec.data.splits import Split
from lcrec.index.item_index import ItemIndex
from lcrec.prompts.encoder import BOUNDARY, PromptEncoder, boundary_ids, item_token_ids
from lcrec.prompts.prompt_set import PromptSet
from lcrec.prompts.tasks import history_record
from lcrec.prompts.templates import Template

ITEMS, PROMPT, PROGRAM = "items.jsonl", "prompt.json", "recommend.py"
CATALOGUE = "catalog.json"
MAPPING, TRAINING, TESTING, SETTINGS = (
    "item-sid-mapping.pt", "training.parquet", "testing.parquet", "sid.gin",
)  # fmt: skip


def write_items(
    path: Path, tokenizer: PreTrainedTokenizerBase, index: ItemIndex, vocabulary: int
) -> np.ndarray:
    """Write a line per item, {"item", "text", "token_ids"}, and return the ids.

    Args:
        path: the file.
        tokenizer: with the index's tokens.
        index: the item index; items go by their raw ids where it has them.
        vocabulary: how many tokens the model has rows for.

    Returns:
        int64 [items, levels].

    Raises:
        InputError: an item's text does not come back as its tokens, or has one that the model has
            no row for.
    """
    ids = item_token_ids(tokenizer, index)
    read = tokenizer(index.texts, add_special_tokens=False)["input_ids"]
    for item, (own, found) in enumerate(zip(ids.tolist(), read, strict=True)):
        if found != own or tokenizer.convert_ids_to_tokens(own) != index.tokens(item):
            raise InputError(
                f"item {item}: the tokenizer reads {index.texts[item]} as {found}, not as the "
                f"tokens {own} that the model was trained on; it cannot be exported"
            )
    if ids.max() >= vocabulary:
        raise InputError(f"the model has {vocabulary} rows, none for token {ids.max()} of an item")
    names = index.ids.names if index.ids.is_raw else range(len(index))
    rows = zip(names, index.texts, ids.tolist(), strict=True)
    write_jsonl(path, ({"item": n, "text": text, "token_ids": own} for n, text, own in rows))
    return ids


def history_template(prompts: PromptSet) -> Template:
    """Return the first `seqrec` template that asks with the history alone.

    Raises:
        InputError: there is none.
    """
    (template,) = prompts.evaluation_templates(
        "seqrec",
        accepts=lambda template: template.question_variables == {"history"},
        that="that asks with the history alone",
    )
    return template


def prompt_form(encoder: PromptEncoder, template: Template, max_history: int) -> dict[str, Any]:
    """Return what turns a history into a prompt: Jinja, what stands around it, the longest.

    A token that begins an item ends the prompt; its id and that of the one behind an item's tokens
    are told.
    """
    boundary = boundary_ids(encoder.tokenizer)
    form = {
        "before": encoder.before,
        "question": template.question,
        "after": encoder.after + (BOUNDARY[0] if boundary else ""),
        "max_history": max_history,
    }
    return form | ({"boundary_token_ids": boundary} if boundary else {})


def flashrec_flags(
    encoder: PromptEncoder, template: Template, index: ItemIndex, token_ids: np.ndarray
) -> list[str]:
    """Return the flags that say where the codes' tokens lie, for `flashrec --serve`.

    FlashRec takes a code for the token at start + sizes of the levels before + code. It ends every
    prompt in its token that begins an item, unless it ends so already: where a model was trained
    without one, the last token of its prompts is named, so that they stay as they were in training.

    Args:
        encoder: of the prompts.
        template: what histories are asked with.
        index: the item index.
        token_ids: int64 [items, levels].

    Raises:
        InputError: the tokens do not lie side by side, or prompts end in different tokens.
    """
    start = int(token_ids[0, 0] - index.code_columns[0, 0])
    if not np.array_equal(token_ids, start + index.code_columns):
        raise InputError(
            "the item tokens do not lie side by side in the vocabulary, as FlashRec needs them; "
            "export for transformers or vllm"
        )
    boundary = boundary_ids(encoder.tokenizer)
    asked = [template.ask(history_record(index, [item], 1)) for item in (0, len(index) - 1)]
    last = {ids[-1] for ids in encoder.prompt_ids(asked)}
    if not boundary and len(last) > 1:
        raise InputError(
            "prompts end in an item, and FlashRec would put a token behind it that the model never "
            "saw; train with --boundary-tokens"
        )
    end = start + sum(index.level_sizes) - 1
    sizes = ",".join(map(str, index.level_sizes))
    boundary = boundary or [last.pop(), encoder.tokenizer.eos_token_id]
    return [
        *("--sid-token-range", f"{start}:{end}", "--sid-codebook-sizes", sizes),
        *("--sid-boundary-tokens", ",".join(map(str, boundary))),
    ]


def write_sid_gr(folder: Path, index: ItemIndex, split: Split, max_history: int, name: str) -> None:
    """Write what sid-gr trains on: codes, sequences, and the settings that name them.

    A row of the sequences is a user: `user_id` by number, and `sequence_data`, of which the last
    item is what is to be predicted. Users without a history are left out, and of a case with
    several targets the first counts.

    Args:
        folder: where the files go; it exists.
        index: the item index.
        split: what is trained and tested on.
        max_history: how many items a history holds.
        name: of the data set.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    torch.save(torch.from_numpy(index.codes.T.astype(np.int64).copy()), folder / MAPPING)
    train = [sequence[-max_history - 1 :] for sequence in split.train if len(sequence) > 1]
    numbers = {user: number for number, user in enumerate(split.train.users)}
    test = split.test.one_per_user()
    tested = [
        np.append(history[-max_history:], target)
        for history, target in zip(test.histories, test.first_targets, strict=True)
    ]
    trained = [number for number, own in enumerate(split.train) if len(own) > 1]
    for file, users, sequences in (
        (TRAINING, trained, train),
        (TESTING, [numbers[user] for user in test.users], tested),
    ):
        columns = {
            "user_id": pa.array(users, pa.int64()),
            "sequence_data": pa.array([own.tolist() for own in sequences], pa.list_(pa.int64())),
        }
        pq.write_table(pa.table(columns), folder / file)
    settings = {
        "dataset_name": name,
        "dataset_type_str": "disk_sequence_dataset",
        "max_history_length": max_history,
        "sequence_features_training_data_path": f"./{TRAINING}",
        "sequence_features_testing_data_path": f"./{TESTING}",
        "item_to_sid_mapping_path": f"./{MAPPING}",
        "num_hierarchies": index.num_levels,
        "codebook_sizes": list(index.level_sizes),
    }
    lines = [f"DatasetArgs.{key} = {json.dumps(value)}\n" for key, value in settings.items()]
    (folder / SETTINGS).write_text("".join(lines), encoding="utf-8")
