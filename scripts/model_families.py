"""Which causal language models of transformers can be fine-tuned, each tried as a whole.

    python scripts/model_families.py              # tries the list and writes the table: an hour
    python scripts/model_families.py qwen3 mamba  # tries these and prints what came of it

For every family a model of two layers is made from its configuration, with random weights, and
fine-tuned, validated, saved, loaded, decoded and merged, in the modes full and lora. What is
decoded must be what plain forward passes over all items say, whoever else is in the batch, and the
merged model must say the same. A family that a fine-tune refuses is noted with the reason; anything
else that goes wrong ends the script. The table stands in `lcrec/modeling/README.md`.
"""

import contextlib
import dataclasses
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from lcrec import finetune, synthetic
from lcrec.core.artifacts import find_data
from lcrec.core.errors import InputError
from lcrec.core.provenance import write_provenance
from lcrec.data.folder import load_items
from lcrec.generate.recommender import Recommender
from lcrec.generate.requests import RankingRequest
from lcrec.index.item_index import ItemIndex
from lcrec.modeling.__main__ import main as modeling
from lcrec.prompts.encoder import item_token_ids
from lcrec.prompts.prompt_set import SHIPPED_PROMPTS, PromptSet
from lcrec.tinylm import collect_corpus, train_tokenizer

TABLE = Path(__file__).parents[1] / "lcrec" / "modeling" / "README.md"
HEAD = "| What `--mode full` and `--mode lora` do | Families |\n|---|---|\n"
MODES = ("full", "lora")
LARGEST = 4_000_000  # parameters
ITEMS = 48
WORDS = 500  # of the vocabulary
# Any other that transformers can make from a configuration may be named on the command line.
NAMES = """
    afmoe apertus arcee aria_text axk1 axk2 bailing_hybrid bamba bart beam bert bert-generation
    big_bird bigbird_pegasus biogpt bitnet blenderbot blenderbot-small bloom camembert codegen
    cohere cohere2 cohere2_moe ctrl cwm data2vec-text deepseek_v2 deepseek_v3 deepseek_v32
    deepseek_v4 diffllama doge dots1 electra ernie ernie4_5 ernie4_5_moe exaone4 falcon
    falcon_h1 falcon_mamba flex_olmo gemma gemma2 gemma3_text glm glm4 glm4_moe gpt2
    gpt_bigcode gpt_neo gpt_neox gpt_oss gptj granite granitemoe granitemoehybrid helium
    hunyuan_v1_dense hunyuan_v1_moe internlm3 jamba jetmoe kimi_linear lfm2 lfm2_moe llama
    llama4_text mamba mamba2 mbart minicpm3 minimax mistral mixtral moshi mpt nemotron
    nemotron_h olmo olmo2 olmo3 olmoe openai-gpt opt pegasus persimmon phi phi3 phimoe qwen2
    qwen2_moe qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next recurrent_gemma roberta
    rwkv seed_oss smollm3 stablelm starcoder2 whisper xglm zaya
"""
FAMILIES = NAMES.split()

# What a small model is told of itself, by whichever of these names its configuration uses.
SIZES: dict[int, str] = {
    32: "hidden_size d_model n_embd dim embed_dim embedding_size emb_dim lru_width",
    2: """num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_blocks
        num_decoder_layers num_encoder_layers num_key_value_heads num_experts_per_tok moe_k
        linear_num_key_heads""",
    4: """num_attention_heads n_head n_heads num_heads decoder_attention_heads linear_num_heads
        encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads num_experts
        num_local_experts n_routed_experts moe_num_experts mamba_num_heads mamba_n_heads
        linear_num_value_heads time_step_rank""",
    8: """head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim mamba_d_state state_size
        ssm_state_size linear_key_head_dim linear_value_head_dim hidden_size_per_layer_input
        linear_head_dim""",
    64: """intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner feed_forward_size
        ffn_hidden_size d_inner mamba_d_ssm sliding_window""",
    16: """moe_intermediate_size shared_expert_intermediate_size q_lora_rank kv_lora_rank
        mamba_d_head mamba_head_dim""",
    1: """n_group topk_group n_shared_experts first_k_dense_replace mamba_n_groups n_groups
        is_decoder""",
    0: "eos_token_id pad_token_id num_kv_shared_layers",
    512: "max_position_embeddings n_positions n_ctx max_seq_len",
    WORDS: "vocab_size vocab_size_per_layer_input",
}
SMALL: dict[str, Any] = {name: size for size, names in SIZES.items() for name in names.split()}
SMALL |= {"bos_token_id": None, "is_decoder": True}
OF_LATENT_ATTENTION = """
    axk1 axk2 bailing_hybrid deepseek_v2 deepseek_v3 deepseek_v32 dots3_note_text glm4_moe_lite
    glm_moe_dsa kimi_linear longcat_flash minicpm3 youtu
"""
LAYERS = {
    "linear_attention full_attention": "bailing_hybrid kimi_linear minimax qwen3_5_moe_text "
    "qwen3_5_text qwen3_next",
    "conv full_attention": "lfm2 lfm2_moe lfm3",
    "mamba attention": "granitemoehybrid",
}
SHAPES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "cwm": {"bos_token_id": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "jamba": {
        **{f"{part}_layer_period": 2 for part in ("attn", "expert")},
        **{f"{part}_layer_offset": 1 for part in ("attn", "expert")},
    },
    "lfm2_moe": {"num_dense_layers": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "modernbert-decoder": {"bos_token_id": 0},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "zaya": {"num_experts_per_tok": 1},
}
for family in OF_LATENT_ATTENTION.split():
    SHAPES.setdefault(family, {})["num_key_value_heads"] = 4
for kinds, families in LAYERS.items():
    for family in families.split():
        SHAPES.setdefault(family, {})["layer_types"] = kinds.split()


def small_config(kind: Any, shape: dict[str, Any]) -> PreTrainedConfig:
    """Return the configuration of a two-layer model.

    Args:
        kind: the family's class of configurations.
        shape: what it needs besides `SMALL`.
    """
    names = {field.name for field in dataclasses.fields(kind)}
    renamed = kind.attribute_map
    told = {renamed.get(name, name): value for name, value in SMALL.items()}
    told |= {name: value for name, value in SMALL.items() if name not in renamed}
    told = {name: value for name, value in told.items() if name in names}
    for part in ("text_config", "decoder"):
        if hasattr(kind.sub_configs.get(part), "model_type"):
            told[part] = small_config(kind.sub_configs[part], {}).to_dict()
    return kind(**told | shape)


class Trial:
    """A small shop, its index and a tokenizer, and the families tried on them.

    Args:
        folder: for everything, also the models, each only for as long as it is tried.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data, self.index = folder / "data", folder / "index"
        synthetic.main(["--output", str(self.data), "--users", "60", "--items", str(ITEMS)])
        prompts = PromptSet.load(SHIPPED_PROMPTS)
        corpus = collect_corpus(load_items(self.data), prompts, max_words=20)
        self.tokenizer = train_tokenizer(corpus, WORDS)
        codes = np.stack(np.unravel_index(np.arange(ITEMS), (4, 4, 4)), axis=1)
        ItemIndex(codes.astype(np.int32), (4, 4, 5)).save(self.index)
        inputs = {"item": find_data(self.data).item}
        stage = "python -m lcrec.quantize"
        write_provenance(self.index, stage, {}, inputs, level_sizes=[4, 4, 5])

    def outcome(self, family: str) -> str:
        """Return what came of a family in both modes, in words.

        Raises:
            Exception: something went wrong that no refusal foresaw.
        """
        folder = self.folder / family
        try:
            self.make_base(family, folder / "base")
            results = [self.run(folder, mode) for mode in MODES]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if results[0] == results[1]:
            return results[0]
        return "; ".join(f"{mode}: {result}" for mode, result in zip(MODES, results, strict=True))

    def make_base(self, family: str, folder: Path) -> None:
        """Write a random two-layer model of a family with the shop's tokenizer."""
        torch.manual_seed(0)
        config = small_config(CONFIG_MAPPING[family], SHAPES.get(family, {}))
        with torch.device("meta"):
            size = AutoModelForCausalLM.from_config(config).num_parameters()
        assert size < LARGEST, f"{family} has {size:,} parameters"
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def run(self, folder: Path, mode: str) -> str:
        """Return `work`, or why a fine-tune refuses the base in `folder`."""
        model, merged = folder / mode, folder / f"{mode}-merged"
        words = ["--data", self.data, "--index", self.index, "--base", folder / "base"]
        words += ["--output", model, "--mode", mode, "--epochs", 1, "--validation-users", 6]
        words += ["--tasks", "seqrec=24", "--num-beams", 10]
        try:
            finetune.main(list(map(str, words)))
        except InputError as error:
            if model.exists():
                raise  # it was refused too late
            return refusal_in_words(str(error))
        live = Recommender.from_pretrained(model)
        compare_with_plain(live)
        modeling(["merge", "--model", str(model), "--output", str(merged)])
        found = Recommender.from_pretrained(merged).recommend([[1, 2]], ITEMS)
        near(found.scores, live.recommend([[1, 2]], ITEMS).scores)
        return "work"


def refusal_in_words(message: str) -> str:
    """Return what a refusal says of a family, without its name and the numbers."""
    found = re.search(r"models of the family \S+ (.*?)(?: so \(| \(|, so|;)", message)
    if found is None:
        raise ValueError(f"not the refusal of a family: {message}")
    return f"are refused: they {found[1]}"


@torch.no_grad()
def compare_with_plain(recommender: Recommender) -> None:
    """Check that every item's score is that of a forward pass, in a batch or alone.

    Raises:
        AssertionError: it is not.
    """
    histories = [[1, 2], [7, 5, 3, 9, 11]]
    together = recommender.recommend(histories, ITEMS)
    model = recommender.model
    paths = torch.from_numpy(item_token_ids(recommender.tokenizer, recommender.index))
    prompts = recommender.encode([RankingRequest(history) for history in histories])
    for row, prompt in enumerate(prompts):
        ids = torch.cat([torch.tensor(prompt).expand(ITEMS, -1), paths], dim=1)
        logits = model(input_ids=ids, use_cache=False).logits[:, len(prompt) - 1 : -1]
        scores = logits.float().log_softmax(-1).gather(2, paths[..., None]).sum((1, 2)).numpy()
        near(together.scores[row], scores[together.items[row]])
        near(recommender.recommend([histories[row]], ITEMS).scores[0], together.scores[row])


def near(found: np.ndarray, expected: np.ndarray) -> None:
    """Check that log-probabilities are equal but for rounding."""
    np.testing.assert_allclose(found, expected, atol=2e-3)


def table(outcomes: dict[str, str]) -> str:
    """Return the outcomes as Markdown, the most common first."""
    kinds = sorted(set(outcomes.values()), key=lambda kind: (kind != "work", kind))
    rows = []
    for kind in kinds:
        names = sorted(name for name, outcome in outcomes.items() if outcome == kind)
        rows.append(f"| {kind} ({len(names)}) | {', '.join(names)} |\n")
    return HEAD + "".join(rows)


def outcomes_of(markdown: str) -> dict[str, str]:
    """Return each family's outcome from a text that holds the table."""
    rows = markdown.split(HEAD)[1].split("\n\n")[0].splitlines()
    found = {}
    for row in rows:
        kind, names = re.fullmatch(r"\| (.*) \(\d+\) \| (.*) \|", row).groups()  # type: ignore[union-attr]
        found |= dict.fromkeys(names.split(", "), kind)
    return found


def main(names: list[str]) -> None:
    """Try families, all by default, and then write the table."""
    outcomes = {}
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            trial = Trial(Path(folder))
        for name in names or FAMILIES:
            with contextlib.redirect_stdout(io.StringIO()):
                outcomes[name] = trial.outcome(name)
            print(f"{name}: {outcomes[name]}", flush=True)
    if not names:
        text = TABLE.read_text(encoding="utf-8")
        before, after = text.split(HEAD)
        rest = after[after.index("\n\n") :]
        TABLE.write_text(before + table(outcomes).rstrip() + rest, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
