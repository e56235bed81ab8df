"""From a rendered prompt to the token ids that training and decoding share."""

import re

import numpy as np
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from lcrec.core.errors import InputError
from lcrec.core.pretrained import check_ids
from lcrec.index.item_index import ITEM_TOKEN, ItemIndex
from lcrec.prompts.prompt_set import PromptSet
from lcrec.prompts.rendering import SENTINEL, fix_prompt, split_markup

# Items as prompts show them, one or more on end; a text is split there, the items are kept.
ITEM_RUN = re.compile(r"((?:<[a-z]_\d+>)+)")
# What stands around an item in an answer, where a model is trained so (--boundary-tokens).
BOUNDARY = ("<|begin_of_item|>", "<|end_of_item|>")
# Texts between items whose ids are kept: a few hundred bytes each.
KEPT_PIECES = 200_000
# What may stand beside an item token, to try a tokenizer with.
_BESIDE = ("", "x", " x ", ", ", "\n", ': "é" ')
# Role markup that is no token of its own, such as Llama 2's [INST] and <<SYS>>.
BRACKETED = re.compile(r"\[[^\s\[\]]+\]|<+[^\s<>]+>+")


class PromptEncoder:
    """Turns a question into prompt ids and an answer into completion ids.

    Role markup comes from the tokenizer's chat template; a tokenizer without one is given the
    prompt set's. The tokenizer keeps the template with what `fix_prompt` took out of it, so that
    a checkpoint is asked as it was trained. Item text may spell what is plain words to one
    tokenizer and markup to another (`[INST]`, `[PAD]`): in questions and answers a space breaks it
    up, so markup and special tokens stand where the chat template put them alone.

    A tokenizer with the tokens of `BOUNDARY` has them around every item of an answer. Prompts show
    histories without: their items need no end to be told apart, and would be half as long again.

    Attributes:
        begin: the id of the token that begins an item in an answer; empty where there is none.

    Raises:
        InputError: the tokenizer has no EOS token, or a chat template that cannot be applied.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet) -> None:
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no EOS token, so an answer could never end")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.chat_template is None:
            tokenizer.chat_template = prompts.chat_template
        # What stands around a question is always the same: rendered once, not once per row.
        conversations = [prompts.messages(SENTINEL)]
        if prompts.system:
            # Some chat templates (Gemma's, for one) refuse a system message.
            joined = {"role": "user", "content": f"{prompts.system}\n\n{SENTINEL}"}
            conversations.append([joined])
        for conversation in conversations:
            try:
                given = tokenizer.get_chat_template()
                template, text = fix_prompt(given, conversation, **tokenizer.special_tokens_map)
                break
            except Exception as error:  # what a stranger wrote may fail in any way
                reason = str(error)
        else:
            raise InputError(f"the tokenizer's chat template fails: {reason}")
        if template != given:
            tokenizer.chat_template = template
        start = str(tokenizer.bos_token or "")
        wants_start = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
        self.conversation = conversation
        self.before, self.after = split_markup(text, "the tokenizer's chat template")
        if wants_start and not text.startswith(start):
            self.before = start + self.before
        markup = {token.strip() for token in _special_tokens(tokenizer)}
        markup |= set(BRACKETED.findall(self.before + self.after))
        # One character cannot be broken up; as a token it is the one that plain text has too.
        self.markup_tokens = tuple(
            token for token in markup if len(token) > 1 and not ITEM_TOKEN.fullmatch(token)
        )
        first = "".join(sorted({re.escape(token[0]) for token in self.markup_tokens}))
        # Most brackets of a prompt open an item token: passed over here, for speed alone.
        self.prefixes = re.compile(f"[{first}](?!{ITEM_TOKEN.pattern[1:]})") if first else None
        # The ids of pieces of text; None where this tokenizer takes a text for more than its parts.
        self._pieces: dict[str, list[int]] | None = {} if self._tokenises_apart() else None
        self._around = self._markup_around()
        self.begin = boundary_ids(tokenizer)[:1]

    def messages(self, question: str) -> list[dict[str, str]]:
        """Return the conversation that this tokenizer's chat template turns into the prompt."""
        question = self.escape_markup(question)
        return [
            {**message, "content": message["content"].replace(SENTINEL, question)}
            for message in self.conversation
        ]

    def prompt_ids(self, questions: list[str]) -> list[list[int]]:
        """Return the prompt of each question as token ids."""
        start, before, after, end = self._around
        texts = [before + self.escape_markup(question) + after for question in questions]
        return [[*start, *ids, *end] for ids in self._encode(texts)]

    def head_ids(self, starts: list[str]) -> list[list[int]]:
        """Return the ids that prompts begin with whose questions begin so.

        Without the last one, for a token may go on behind the start of a question.
        """
        texts = [self.before + self.escape_markup(start) for start in starts]
        return [ids[:-1] for ids in self._encode(texts)]

    def answer_ids(self, answers: list[str]) -> list[list[int]]:
        """Return each answer as token ids that end in EOS."""
        texts = [self.escape_markup(answer) for answer in answers]
        if self.begin:
            texts = [ITEM_RUN.sub(r"{}\1{}".format(*BOUNDARY), text) for text in texts]
        return [[*answer, self.tokenizer.eos_token_id] for answer in self._encode(texts)]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Return the texts' ids, each item and each text between items tokenised once.

        Prompts are made of few such pieces, and tokenising is most of the cost of a sample.
        """
        known = self._pieces
        if known is None or not texts:
            return self._encode_whole(texts)
        if len(known) > KEPT_PIECES:
            known.clear()
        split = [ITEM_RUN.split(text) for text in texts]
        missing = list({piece for pieces in split for piece in pieces}.difference(known))
        if missing:
            known.update(zip(missing, self._encode_whole(missing), strict=True))
        return [[id for piece in pieces for id in known[piece]] for pieces in split]

    def _encode_whole(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def _markup_around(self) -> tuple[list[int], str, str, list[int]]:
        """Return what stands around a question: ids, text before it, text behind it, ids.

        The ids are those up to the last special token before it and from the first one behind it
        on, where a tokenizer cuts every text.
        """
        cuts = [
            token.content
            for token in self.tokenizer.added_tokens_decoder.values()
            if not (token.lstrip or token.rstrip or token.single_word or token.normalized)
        ]
        before, after = self.before, self.after
        at = max((before.rfind(token) + len(token) for token in cuts if token in before), default=0)
        to = min((after.find(token) for token in cuts if token in after), default=len(after))
        start, end = self._encode_whole([before[:at], after[to:]])
        before, after = before[at:], after[:to]
        for text in _BESIDE:
            (whole,) = self._encode_whole([self.before + text + self.after])
            (inner,) = self._encode_whole([before + text + after])
            if whole != [*start, *inner, *end]:
                return [], self.before, self.after, []
        return start, before, after, end

    def _tokenises_apart(self) -> bool:
        """Try whether what stands beside item tokens is tokenised as it is where it stands alone.

        So does every tokenizer that cuts a text at its added tokens first. Where a word's first
        letter looks otherwise at the start of a text (SentencePiece), some do not.
        """
        item = next(filter(ITEM_TOKEN.fullmatch, self.tokenizer.get_added_vocab()), None)
        if item is None:
            return False
        texts = [f"{one}{item}{item}{two}{item}" for one in _BESIDE for two in _BESIDE]
        pieces = [ITEM_RUN.split(text) for text in texts]
        joined = [[id for ids in self._encode_whole(parts) for id in ids] for parts in pieces]
        return self._encode_whole(texts) == joined

    def escape_markup(self, text: str) -> str:
        """Return the text of a question or answer with a space inside all that would be markup."""
        if self.prefixes is None:
            return text
        return self.prefixes.sub(
            lambda found: found[0] + " " * text.startswith(self.markup_tokens, found.start()), text
        )


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the tokens that mean more to the model than their letters."""
    added = tokenizer.added_tokens_decoder.values()
    return {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerBase, index: ItemIndex, *, boundary: bool = False
) -> list[int]:
    """Add every item token and return their ids, in the order of `index.vocabulary`.

    They are ordinary tokens, matched as they stand (no stripping, no normalisation), so decoding
    with `skip_special_tokens` keeps them. With `boundary` the tokens of `BOUNDARY` come last; those
    are special tokens, which no item's text can spell.

    Raises:
        InputError: the tokenizer knows one of them already, or would give one a word's id.
    """
    known = tokenizer.get_vocab()
    clash = next((token for token in (*index.vocabulary, *BOUNDARY) if token in known), None)
    if clash is not None:
        raise InputError(
            f"the tokenizer already has {clash!r}: the base model was tuned for an item index "
            "before; start from a base model, or recommend from this one with lcrec.generate"
        )
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=False) for token in index.vocabulary]
    )
    if boundary:
        tokenizer.add_tokens(
            [AddedToken(token, normalized=False, special=True) for token in BOUNDARY],
            special_tokens=True,
        )
    check_ids("the tokenizer cannot take the item tokens", tokenizer)
    return added_ids(tokenizer, index).tolist()


def boundary_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of `BOUNDARY`; none where a model was trained without."""
    known = tokenizer.get_added_vocab()
    return [known[token] for token in BOUNDARY if token in known]


def added_ids(tokenizer: PreTrainedTokenizerBase, index: ItemIndex) -> np.ndarray:
    """Return the ids of all that `extend_tokenizer` added, int64 [tokens]; raises as below."""
    boundary = np.asarray(boundary_ids(tokenizer), dtype=np.int64)
    return np.concatenate([vocabulary_ids(tokenizer, index), boundary])


def vocabulary_ids(tokenizer: PreTrainedTokenizerBase, index: ItemIndex) -> np.ndarray:
    """Return the token id of every entry of `index.vocabulary`, int64 [vocabulary].

    Raises:
        InputError: the tokenizer lacks one, so model and index do not belong together.
    """
    known = tokenizer.get_vocab()
    missing = [token for token in index.vocabulary if token not in known]
    if missing:
        raise InputError(
            f"the model's vocabulary lacks {len(missing)} of the index's "
            f"{len(index.vocabulary)} tokens (first: {missing[0]!r}); model and index do not "
            "belong together"
        )
    return np.asarray([known[token] for token in index.vocabulary], dtype=np.int64)


def item_token_ids(tokenizer: PreTrainedTokenizerBase, index: ItemIndex) -> np.ndarray:
    """Return the token ids that spell each item, int64 [items, levels]."""
    return vocabulary_ids(tokenizer, index)[index.code_columns]
