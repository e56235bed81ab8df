"""The loss against transformers' own, validation against offline ranking, complete checkpoints."""

import functools
import itertools
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.nn.modules.module import _IncompatibleKeys
from trl import SFTConfig

from lcrec.core import console
from lcrec.core.errors import InputError
from lcrec.data.splits import EvalCases
from lcrec.generate.many_users import catalogue_ranker
from lcrec.generate.recommender import Recommender
from lcrec.modeling.base import add_adapter, load_base
from lcrec.modeling.batches import split_batch
from lcrec.modeling.item_rows import resize_embeddings
from lcrec.modeling.run_folder import latest_checkpoint
from lcrec.modeling.trainer import RankingValidation, RecommenderTrainer
from lcrec.modeling.trees import PackingCollator
from lcrec.prompts.encoder import PromptEncoder, extend_tokenizer
from lcrec.prompts.rows import collate_left, draw_rows, tokenise_rows
from lcrec.prompts.tasks import TaskData
from lcrec.rankings.metrics import hit_at_k, ndcg_at_k

BEAMS = 15


@pytest.fixture(autouse=True)
def fused_kernels():
    """Let every test begin with the fused attention kernels that a trainer may switch off."""
    yield
    torch.backends.cuda.enable_flash_sdp(True)
    torch.backends.cuda.enable_mem_efficient_sdp(True)
    torch.compiler.set_stance("default")


@pytest.fixture(scope="module")
def tokenizer(base, index):
    made = load_base(str(base))[1]
    extend_tokenizer(made, index)
    return made


@pytest.fixture(scope="module")
def rows(tokenizer, prompts, shop_items, split, index):
    """40 training rows as token ids."""
    data = TaskData(shop_items, split.train, index, max_history=4, max_text_words=12)
    mixture = {"seqrec": 24.0, "item2index": 8.0, "index2item": 8.0}
    drawn = draw_rows(data, prompts, mixture, 0, 0)
    return tokenise_rows([drawn], PromptEncoder(tokenizer, prompts), 400, 4)


@pytest.fixture
def make_model(base, index, make_llama):
    def make(*, tied=True, mode="lora"):
        model, tokenizer = load_base(str(base))
        model = model if tied else make_llama(tied=False)
        new_ids = extend_tokenizer(tokenizer, index)
        resize_embeddings(model, tokenizer, index)
        torch.manual_seed(0)
        lora = {"rank": 2, "alpha": 4, "dropout": 0.0}
        return add_adapter(model, new_ids, **lora) if mode == "lora" else model

    return make


@pytest.fixture
def make_trainer(tokenizer, rows, prompts, split, index, tmp_path):
    def make(model, cases=None, epochs=1, collator=None, **settings):
        settings = {"per_device_train_batch_size": 8, "max_steps": 3, "bf16": False, **settings}
        return RecommenderTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=rows,
            eval_dataset=rows.select(range(12)),
            data_collator=collator
            or functools.partial(collate_left, pad_token_id=tokenizer.pad_token_id),
            ranking=RankingValidation(
                cases or split.valid, catalogue_ranker(tokenizer, index, prompts, 4), BEAMS
            ),
            epochs=epochs,
            args=SFTConfig(
                output_dir=str(tmp_path / "work"), train_sampling_strategy="sequential",
                dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False,
                max_length=400, activation_checkpointing=False, learning_rate=1e-2,
                report_to="none", use_cpu=True, disable_tqdm=True, **settings,
            ),
        )  # fmt: skip

    return make


def features(batch):
    """What transformers' own loss is computed from."""
    return {name: value for name, value in batch.items() if name != "task"}


def test_what_is_trained_on_a_quantised_base_stays_in_float32(make_trainer, make_model):
    model = make_model()
    model.get_base_model().is_loaded_in_4bit = True  # by which TRL and PEFT know
    trained = [weight for weight in make_trainer(model).model.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in trained} == {torch.float32}


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_loss_is_the_plain_one(make_trainer, rows, tokenizer, tied, mode, make_model):
    model = make_model(tied=tied, mode=mode)
    trainer = make_trainer(model)
    # Answers of different lengths; one row alone is not padded at all.
    for chosen in (range(8), range(8, 20), [3]):
        batch = collate_left([rows[row] for row in chosen], tokenizer.pad_token_id)
        plain = model(**features(batch)).loss
        assert plain > 1
        loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
        assert torch.allclose(loss, plain, atol=1e-5)
        # The head scores the answers only.
        width = int((batch["labels"] != -100).any(0).sum())
        assert outputs.logits.shape[1] == width < batch["input_ids"].shape[1]
        # As part of a larger batch, a row counts by its share of the answer tokens.
        tokens = int((batch["labels"] != -100).sum())
        part = trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(4 * tokens))
        assert torch.allclose(part, plain / 4, atol=1e-5)


def test_gradients_are_the_plain_ones(make_trainer, rows, tokenizer, make_model):
    model = make_model(mode="full")
    batch = collate_left([rows[row] for row in range(8)], tokenizer.pad_token_id)
    model(**features(batch)).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    make_trainer(model).compute_loss(model, batch).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, plain[name], atol=1e-5), name


@pytest.mark.parametrize("limit", [1, 150, 10_000])
def test_a_batch_in_parts_gives_the_same_gradients(
    make_trainer, rows, tokenizer, limit, make_model
):
    batch = collate_left([rows[row] for row in range(6, 14)], tokenizer.pad_token_id)
    answers = (batch["labels"] != -100).sum()
    found = []
    for max_tokens in (None, limit):
        trainer = make_trainer(make_model(mode="full"))
        trainer.create_optimizer_and_scheduler(1)
        trainer.max_tokens_per_batch = max_tokens
        loss = trainer.training_step(trainer.model, batch, answers)
        found.append([loss, *(p.grad for p in trainer.model.parameters())])
    for whole, parts in zip(*found, strict=True):
        assert torch.allclose(whole, parts, atol=1e-5)


@pytest.mark.parametrize("takes", [True, False])
def test_updates_are_alike_whether_a_family_knows_their_size_or_not(
    make_trainer, make_model, takes
):
    found = []
    for max_tokens in (None, 150):
        model = make_model(mode="full")
        model.accepts_loss_kwargs = takes
        trainer = make_trainer(model, max_steps=1)
        trainer.max_tokens_per_batch = max_tokens
        trainer.train()
        (first, *_) = trainer.state.log_history
        found.append(first["train_loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_parts_hold_like_lengths_and_no_needless_padding():
    lengths = [3, 9, 4, 8]
    made = [{"input_ids": [n] * n, "prompt_length": n - 1, "task": "seqrec"} for n in lengths]
    batch = collate_left(made, 0)

    def alone(count):
        return count

    parts = split_batch(batch, 18, alone)
    assert [part["input_ids"].tolist() for part in parts] == [
        [[0, 3, 3, 3], [4, 4, 4, 4]],
        [[0] + [8] * 8, [9] * 9],
    ]
    assert parts[0]["position_ids"].tolist() == [[0, 0, 1, 2], [0, 1, 2, 3]]
    assert split_batch(batch, 36, alone) == [batch]
    assert split_batch(batch, None, alone) == [batch]
    # Another process has more to do: this one takes as many parts, of one row at least.
    assert len(split_batch(batch, 36, lambda count: torch.tensor([1, 3]))) == 3
    assert len(split_batch(batch, 36, lambda count: torch.tensor([1, 9]))) == 4


def test_the_loss_is_logged_per_task(make_trainer, rows, make_model):
    trainer = make_trainer(make_model(), logging_steps=1)
    trainer.train()
    first = trainer.state.log_history[0]
    named = {rows[row]["task"] for row in range(8)}
    assert {name for name in first if name.startswith("loss_")} == {f"loss_{n}" for n in named}
    shares = dict.fromkeys(named, 0)
    for row in range(8):
        answer = len(rows[row]["input_ids"]) - rows[row]["prompt_length"]
        shares[rows[row]["task"]] += answer
    mean = sum(first[f"loss_{n}"] * shares[n] for n in named) / sum(shares.values())
    assert mean == pytest.approx(first["loss"], abs=1e-4)


def test_three_losses_in_a_row_that_are_nan_stop_the_run(make_trainer, capsys, make_model):
    model = make_model()
    trainer = make_trainer(model, max_steps=5)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad)[0] = float("nan")
    with pytest.raises(InputError, match=r"update 3 is NaN or infinite.*sample.*learning-rate"):
        trainer.train()
    assert trainer.state.global_step == 2
    assert capsys.readouterr().out.count("the update is left out") == 2


class BrokenKernel(torch.autograd.Function):
    """Gradients that are NaN, as of cuDNN's attention at some lengths."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


@pytest.fixture
def broken_kernel(monkeypatch):
    """Plant a fused attention kernel whose gradients are NaN from its second call on."""
    flags = torch.backends.cuda
    sound, calls = F.scaled_dot_product_attention, itertools.count()

    def attention(query, *args, **kwargs):
        if next(calls) and flags.flash_sdp_enabled() and query.requires_grad:
            query = BrokenKernel.apply(query)
        return sound(query, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bf16": True},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"dataloader_num_workers": 1},
    ],
    ids=["fp32", "bf16", "accumulated", "packed"],
)
def test_a_kernel_that_fails_costs_no_update(
    make_trainer, tokenizer, rows, capsys, tmp_path, broken_kernel, settings, make_model
):
    model = make_model(mode="full")
    collator = None
    if "dataloader_num_workers" in settings:
        collator = PackingCollator(tokenizer.pad_token_id, 1000)
    trainer = make_trainer(model, collator=collator, **settings)
    trainer.train()
    if collator is not None:  # plain attention takes memory by the square of a buffer
        assert collator.capacity == max(map(len, rows["input_ids"]))
    said = capsys.readouterr().out
    assert said.count("computed again without fused attention kernels") == 1
    batch = re.search(r"\S+nan_update_\d.safetensors", said)[0]
    assert Path(batch).parent == tmp_path
    assert load_file(batch)["0.task"].shape[0] == trainer.args.per_device_train_batch_size
    assert all(p.isfinite().all() for p in model.parameters())
    if "bf16" not in settings:
        broken = {n: p.detach() for n, p in model.named_parameters()}
        whole = make_model(mode="full")
        make_trainer(whole).train()  # by plain attention throughout
        for name, weight in whole.named_parameters():
            # An update moves weights by 1e-2; Adam makes much of a gradient that is almost 0.
            assert torch.allclose(weight, broken[name], atol=5e-4), name


@pytest.fixture
def trained_padded(make_trainer, make_model):
    """The weights after three updates of padded rows, and the losses on the way."""
    model = make_model(mode="full")
    trainer = make_trainer(model, logging_steps=1)
    trainer.train()
    return model, list(trainer.state.log_history), trainer.evaluate()


def check_same_training(trainer, model, expected):
    padded, history, metrics = expected
    for name, weight in padded.named_parameters():
        assert torch.allclose(weight, model.get_parameter(name), atol=5e-4), name
    for before, now in zip(history, trainer.state.log_history, strict=True):
        losses = [name for name in before if name.startswith("loss")]
        assert losses == [name for name in now if name.startswith("loss")]
        assert [now[name] for name in losses] == pytest.approx([before[n] for n in losses], 1e-3)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(metrics["eval_loss"], abs=1e-3)


@pytest.mark.parametrize("capacity", [200, 2000])
def test_packed_samples_train_as_padded_ones(
    make_trainer, tokenizer, trained_padded, capacity, make_model
):
    model = make_model(mode="full")
    collator = PackingCollator(tokenizer.pad_token_id, capacity)
    trainer = make_trainer(model, collator=collator, logging_steps=1)
    trainer.train()
    check_same_training(trainer, model, trained_padded)


def test_buffers_that_do_not_fit_into_memory_are_halved_once(
    make_trainer, tokenizer, trained_padded, capsys, monkeypatch, make_model
):
    model = make_model(mode="full")
    forward, most = model.forward, 300

    def on_a_small_card(input_ids, **inputs):
        if input_ids.shape[1] > most and model.training:
            raise torch.OutOfMemoryError
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(model, "forward", on_a_small_card)
    collator = PackingCollator(tokenizer.pad_token_id, 600)
    trainer = make_trainer(model, collator=collator, logging_steps=1)
    trainer.train()
    assert capsys.readouterr().out.count("Update 1 did not fit into memory") == 1
    assert collator.capacity == 300
    check_same_training(trainer, model, trained_padded)
    most = 100
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train()


def test_accumulating_is_the_same_as_a_larger_batch(make_trainer, make_model):
    weights = []
    for settings in (
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    ):
        model = make_model()
        make_trainer(model, **settings).train()
        weights.append({n: p.detach() for n, p in model.named_parameters() if p.requires_grad})
    start = dict(make_model().named_parameters())
    for name, one in weights[0].items():
        assert torch.allclose(one, weights[1][name], atol=1e-4), name
    assert any(not torch.equal(one, start[name]) for name, one in weights[0].items())


@pytest.mark.parametrize("users", [1, 33, 60])
def test_validation_is_what_offline_ranking_says(
    make_trainer, index, tokenizer, prompts, split, users, make_model
):
    valid = split.valid
    cases = EvalCases(valid.users[:users], valid.histories[:users], valid.targets[:users])
    model = make_model()
    trainer = make_trainer(model, cases)
    metrics = trainer.evaluate()
    recommender = Recommender(model.eval(), tokenizer, index, prompts, max_history=4)
    ranked = recommender.recommend(cases.histories, BEAMS, num_beams=BEAMS).items
    assert (trainer.rank() == ranked).all()
    assert metrics["eval_hr@10"] == pytest.approx(hit_at_k(ranked, cases.targets, 10).mean())
    assert metrics["eval_ndcg@10"] == pytest.approx(ndcg_at_k(ranked, cases.targets, 10).mean())
    assert metrics["eval_loss"] > 1


def test_ranking_leaves_the_mode_as_it_was(make_trainer, make_model):
    model = make_model()
    trainer = make_trainer(model)
    for training in (True, False):
        model.train(training)
        trainer.rank()
        assert model.training == training


def test_checkpoints_on_the_way_are_marked_and_small(make_trainer, tmp_path, make_model):
    trainer = make_trainer(make_model(), save_steps=2)
    trainer.train()
    work = tmp_path / "work"
    assert latest_checkpoint(work) == str(work / "checkpoint-3")
    for step in (2, 3):
        assert (work / f"checkpoint-{step}" / "complete").exists()
        assert (work / f"checkpoint-{step}" / "optimizer.pt").exists()
    size = (work / "checkpoint-3" / "adapter_model.safetensors").stat().st_size
    assert size < 32 * 4 * 500  # one embedding matrix


def test_an_older_checkpoint_goes_once_the_newer_one_stands(
    make_trainer, tmp_path, monkeypatch, make_model
):
    """At every moment of a run there is a complete checkpoint to go on from."""
    trainer = make_trainer(make_model(), save_steps=1, save_total_limit=1)
    work = tmp_path / "work"
    seen = []

    def look(self, folder):
        seen.append((Path(folder).parent.name, latest_checkpoint_of(work)))
        original(self, folder)

    original = type(trainer)._save_optimizer_and_scheduler
    monkeypatch.setattr(type(trainer), "_save_optimizer_and_scheduler", look)
    trainer.train()
    assert seen == [("partial", None), ("partial", "checkpoint-1"), ("partial", "checkpoint-2")]
    assert [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-3"]
    assert not list((work / "partial").iterdir())


def latest_checkpoint_of(work):
    marked = sorted(path.parent.name for path in work.glob("checkpoint-*/complete"))
    return marked[-1] if marked else None


def test_weights_are_missing_unless_they_are_tied(make_trainer, monkeypatch, make_model):
    notes = []
    monkeypatch.setattr("transformers.trainer.logger.warning", notes.append)
    trainer = make_trainer(make_model(tied=True, mode="full"))
    trainer._issue_warnings_after_load(_IncompatibleKeys(["lm_head.weight"], []))
    assert notes == []
    trainer._issue_warnings_after_load(_IncompatibleKeys(["model.norm.weight"], []))
    assert "model.norm.weight" in notes[0]


def test_a_log_counts_to_the_epochs_and_gets_a_line_now_and_then(
    make_trainer, monkeypatch, capsys, make_model
):
    now = itertools.count(step=20)
    monkeypatch.setattr(console, "monotonic", lambda: float(next(now)))
    trainer = make_trainer(
        make_model(), epochs=4, max_steps=-1, num_train_epochs=1, logging_steps=1,
        eval_strategy="epoch",
    )  # fmt: skip
    trainer.train()
    steps = trainer.state.global_step
    assert trainer.state.epoch == 1
    epochs = [entry["epoch"] for entry in trainer.state.log_history]
    assert epochs == sorted(epochs)
    assert epochs[-1] == 4
    captured = capsys.readouterr()
    assert captured.out.startswith(f"Validation after {steps:,} updates: loss ")
    lines = [line for line in captured.err.splitlines() if line.startswith("fine-tune: ")]
    assert re.match(rf"fine-tune: 2 of {steps} updates, .* left, epoch 1.60 of 4, loss", lines[0])
    assert re.match(rf"fine-tune: {steps} updates in .*, epoch 4.00 of 4, loss", lines[-1])
