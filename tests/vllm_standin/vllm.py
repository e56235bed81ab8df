"""What `lcrec.generate.standalone` uses of vLLM 0.32, over a plain model; limits as there.

With its folder in PYTHONPATH a process takes it for vLLM.
"""

import types

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class SamplingParams:
    def __init__(self, *, max_tokens, temperature, detokenize, logprob_token_ids):
        assert (max_tokens, temperature, detokenize) == (1, 0.0, False)
        assert 0 < len(logprob_token_ids) <= 128
        self.tokens = logprob_token_ids


def TokensPrompt(*, prompt_token_ids):
    return {"prompt_token_ids": prompt_token_ids}


class LLM:
    def __init__(
        self, model, *, dtype, enable_prefix_caching, enforce_eager, kv_cache_memory_bytes
    ):
        assert enable_prefix_caching
        assert enforce_eager != torch.cuda.is_available()
        assert (kv_cache_memory_bytes is None) == torch.cuda.is_available()
        print("INFO: vLLM prints to standard output")
        dtype = getattr(torch, dtype)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model)

    def get_tokenizer(self):
        return self.tokenizer

    @torch.no_grad()
    def generate(self, prompts, params, *, use_tqdm):
        return [self.answer(*each) for each in zip(prompts, params, strict=True)]

    def answer(self, prompt, params):
        logits = self.model(torch.tensor([prompt["prompt_token_ids"]])).logits[0, -1]
        row = logits.float().log_softmax(-1)
        best = int(row.argmax())  # vLLM adds the sampled token
        found = {t: types.SimpleNamespace(logprob=float(row[t])) for t in [*params.tokens, best]}
        return types.SimpleNamespace(outputs=[types.SimpleNamespace(logprobs=[found])])
