"""`--boundary-tokens`: an answer is begin, codes, end; everything else stays as it is without."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from lcrec import export
from lcrec.core.artifacts import read_json
from lcrec.core.config import parse_config
from lcrec.core.errors import InputError
from lcrec.core.provenance import read_provenance
from lcrec.generate import standalone
from lcrec.generate.calibration import calibrate, unconditional
from lcrec.generate.recommender import Recommender
from lcrec.generate.requests import RankingRequest
from lcrec.modeling.finetuning import load_model
from lcrec.prompts.encoder import (
    BOUNDARY,
    PromptEncoder,
    boundary_ids,
    extend_tokenizer,
    item_token_ids,
    vocabulary_ids,
)
from lcrec.prompts.joining import RowJoiner
from lcrec.prompts.rows import draw_rows
from lcrec.prompts.tasks import TaskData

HISTORY = [3, 17, 5]


@pytest.fixture(scope="module")
def bounded(recipe, finetune_words, tmp_path_factory):
    """A checkpoint trained with boundary tokens, to learn what stands around an item."""
    folder = tmp_path_factory.mktemp("bounded") / "model"
    recipe.main([*finetune_words(folder), "--boundary-tokens"])
    return folder


def test_an_answer_is_begin_codes_end(base, index, prompts):
    plain, tokenizer = (AutoTokenizer.from_pretrained(base) for _ in range(2))
    extend_tokenizer(plain, index)
    new_ids = extend_tokenizer(tokenizer, index, boundary=True)
    begin, end = boundary_ids(tokenizer)
    assert new_ids == [*vocabulary_ids(tokenizer, index).tolist(), begin, end]
    encoder, without = PromptEncoder(tokenizer, prompts), PromptEncoder(plain, prompts)
    own = item_token_ids(tokenizer, index)[7].tolist()
    eos = tokenizer.eos_token_id
    texts = [index.texts[7], f"Try {index.texts[7]}.", "a desk"]
    bare = without.answer_ids(texts)
    assert bare[0] == [*own, eos]
    assert encoder.answer_ids(texts) == [
        [begin, *own, end, eos],
        [*bare[1][: bare[1].index(own[0])], begin, *own, end, *bare[1][-2:]],
        bare[2],
    ]
    # Prompts show items without, and text cannot spell what stands around an answer.
    questions = [f"After {index.texts[7]}{index.texts[8]}?", "BOUNDARY".join(BOUNDARY)]
    assert encoder.prompt_ids(questions)[0] == without.prompt_ids(questions)[0]
    for ids in (encoder.prompt_ids(questions)[1], encoder.answer_ids(questions)[1]):
        assert {begin, end}.isdisjoint(ids)
    taken = AutoTokenizer.from_pretrained(base)
    taken.add_tokens(list(BOUNDARY))
    with pytest.raises(InputError, match=r"already has '<\|begin_of_item\|>'"):
        extend_tokenizer(taken, index)


def test_rows_are_joined_as_they_are_rendered(base, index, prompts, shop_items, split):
    tokenizer = AutoTokenizer.from_pretrained(base)
    extend_tokenizer(tokenizer, index, boundary=True)
    encoder = PromptEncoder(tokenizer, prompts)
    data = TaskData(shop_items, split.train, index, max_history=4)
    drawn = draw_rows(data, prompts, {"seqrec": 30, "item2index": 20, "index2item": 20}, 0, 0)
    _, answers = RowJoiner(encoder, data).encode(drawn.templates, 0, drawn.chosen, drawn.places)
    expected = encoder.answer_ids([row.completion for row in drawn])
    assert [
        own.tolist() for own in np.split(answers.ids, np.cumsum(answers.lengths)[:-1])
    ] == expected
    begins = [row.task != "index2item" for row in drawn]
    assert [ids[0] == boundary_ids(tokenizer)[0] for ids in expected] == begins


def test_a_model_is_trained_on_them_and_ranks_real_items(bounded, checkpoint, split, index):
    assert read_provenance(bounded)["config"]["boundary_tokens"] is True
    assert "boundary_tokens" not in read_provenance(checkpoint)["config"]
    recommender = Recommender.from_pretrained(bounded)
    begin, end = boundary_ids(recommender.tokenizer)
    ranking = recommender.recommend(split.test.histories, 10)
    assert ((ranking.items >= 0) & (ranking.items < len(index))).all()
    assert all(len(set(row)) == 10 for row in ranking.items.tolist())
    # Scores are those of plain passes over prompt, begin and codes; what follows is the end.
    paths = torch.from_numpy(item_token_ids(recommender.tokenizer, index))
    (prompt,) = recommender.encode([RankingRequest(HISTORY)])
    assert prompt[-1] == begin
    whole = torch.cat([torch.tensor([prompt]).expand(len(paths), -1), paths], dim=1)
    with torch.no_grad():
        logits = recommender.model(whole).logits.log_softmax(-1)
        asked = recommender.model(whole[:1, : len(prompt) - 1]).logits[0, -1]
    codes = logits[:, -4:-1].gather(2, paths[..., None]).sum((1, 2))
    found = recommender.recommend([HISTORY], 48)
    assert found.scores[0] == pytest.approx(codes[found.items[0]].numpy(), abs=1e-4)
    assert int(asked.argmax()) == begin
    assert logits[:, -1, end].mean() > 1 - math.log(logits.shape[-1])  # far above chance


def test_words_have_no_boundary_and_calibration_takes_it(bounded, split):
    recommender = Recommender.from_pretrained(bounded)
    prompts = recommender.encode([RankingRequest(HISTORY)])
    (text,) = recommender.write_texts(prompts, 8, words_only=True)
    assert not any(token in text for token in BOUNDARY)
    known = unconditional(recommender, split.valid)
    before = recommender.recommend([HISTORY], 48)
    calibrate(recommender, known.log_probs, 0.5)
    after = recommender.recommend([HISTORY], 48, num_beams=48)
    expected = before.scores[0] - 0.5 * known.log_probs[before.items[0]]
    order = np.argsort(before.items[0]), np.argsort(after.items[0])
    assert after.scores[0][order[1]] == pytest.approx(expected[order[0]], abs=1e-4)


def test_rows_of_a_first_stage_come_with_theirs(bounded, recipe, finetune_words):
    words = finetune_words("unused", "--rows", bounded)
    config = parse_config(recipe.FinetuneConfig, words, description="", prog="finetune")
    job = recipe.prepare(config)
    with pytest.raises(InputError, match="was trained with --boundary-tokens; do so here too"):
        load_model(job.config, job.inputs)
    trained = load_model(replace(job.config, boundary_tokens=True), job.inputs)
    other = Recommender.from_pretrained(bounded)
    ids = torch.tensor([boundary_ids(trained.tokenizer)])
    rows, theirs = (m.get_input_embeddings()(ids) for m in (trained.model, other.model))
    assert torch.equal(rows, theirs)


@pytest.mark.parametrize("engine", ["transformers", "flashrec"])
def test_an_export_tells_the_engine(bounded, index, tmp_path, engine):
    words = ["--model", bounded, "--to", engine, "--output", tmp_path / "out"]
    export.main([*map(str, words), "--precision", "fp32"])
    recommender = Recommender.from_pretrained(bounded)
    boundary = boundary_ids(recommender.tokenizer)
    form = read_json(tmp_path / "out" / "prompt.json")
    assert form["boundary_token_ids"] == boundary
    if engine == "flashrec":
        card = (tmp_path / "out" / "README.md").read_text()
        assert re.search(r"--sid-boundary-tokens (\d+),(\d+)", card).groups() == tuple(
            map(str, boundary)
        )
        return
    step, encode = standalone.load_transformers(tmp_path / "out")
    items = standalone.read_items(tmp_path / "out")
    prompt = encode(standalone.prompt_of(form, [index.text(item) for item in HISTORY]))
    assert [prompt] == recommender.encode([RankingRequest(HISTORY)])
    paths = {tuple(row["token_ids"]): int(item) for item, row in items.items()}
    ranked = standalone.rank(step, prompt, paths, 5)
    expected = recommender.recommend([HISTORY], 5)
    assert [item for item, _ in ranked] == expected.items[0].tolist()
    assert [score for _, score in ranked] == pytest.approx(expected.scores[0].tolist(), abs=1e-4)
