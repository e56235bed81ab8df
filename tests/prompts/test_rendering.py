"""Templates of strangers: bounded in work, and the same prompt in training, tomorrow and elsewhere.

What transformers renders of the template that a checkpoint keeps is the reference: whoever takes
the checkpoint elsewhere must get the prompt that it was trained on.
"""

import random
import re
import time
from pathlib import Path

import jinja2
import pytest
import trl
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils.chat_template_utils import render_jinja_template

from lcrec.core.errors import InputError
from lcrec.prompts.encoder import PromptEncoder
from lcrec.prompts.prompt_set import PromptSet, chat_template_faults
from lcrec.prompts.rendering import SENTINEL, BoundedEnvironment, RenderingTooLong, fix_prompt
from lcrec.prompts.tasks import TASKS
from lcrec.prompts.templates import read_template
from lcrec.prompts.tokens import lay_out_tokens
from lcrec.tinylm import train_tokenizer

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
PROMPTS = PromptSet((), "", CHAT, {})


def encoder_of(template):
    tokenizer = train_tokenizer(["go"], 300)
    tokenizer.chat_template = template
    return PromptEncoder(tokenizer, PROMPTS)


def rendered(encoder, question="go", **settings):
    """What transformers makes of the template that the encoder left with its tokenizer."""
    return encoder.tokenizer.apply_chat_template(
        encoder.messages(question), tokenize=False, add_generation_prompt=True, **settings
    )


@pytest.mark.parametrize(
    ("opening", "written"),
    [
        ("Today: {{ strftime_now('%d %b %Y') }}.", "Today: 01 Jan 2025."),
        ('{% set d = strftime_now("%Y-%m-%d") if strftime_now is defined %}{{ d }}', "2025-01-01"),
        ("{% macro day() %}{{ strftime_now('%B %-d') }}{% endmacro %}{{ day() }}", "January 1"),
        ("{% set f = '%H:%M' %}{% set t = strftime_now(f) %}{{ t[:2] | int + 1 }}", "1"),
        ("{{ ['Hello', 'Hi', 'Hey', 'Yo'] | random }}", "Hello"),
        ("{{ ['Hello', 'Hi'] |random() |upper }}", "HELLO"),
        ("\n{{ strftime_now('%Y') }}", "\n2025"),
        ("  {% if strftime_now %}x{% endif %}", "x"),
        ("{% generation %}{{ strftime_now('%Y') }}{% endgeneration %}", "2025"),
    ],
)
def test_clock_and_chance_are_fixed_and_kept_with_the_tokenizer(opening, written):
    encoder = encoder_of(opening + CHAT)
    assert encoder.before + "go" + encoder.after == f"{written}<user>go\n<assistant>\n"
    kept = encoder.tokenizer.chat_template
    for seed in range(20):
        random.seed(seed)
        assert rendered(encoder) == f"{written}<user>go\n<assistant>\n"
    # What a checkpoint kept is taken as it is.
    assert PromptEncoder(encoder.tokenizer, PROMPTS).tokenizer.chat_template == kept


@pytest.mark.parametrize(
    "opening", ["{{ [[1, 2, 3], [4, 5, 6]] | map('random') | join }}", "{{ lipsum() }}"]
)
def test_chance_that_cannot_be_fixed_is_refused(opening):
    with pytest.raises(InputError, match="writes another prompt each time"):
        encoder_of(opening + CHAT)


def test_a_template_that_does_not_move_stays_as_it_is():
    assert encoder_of(CHAT).tokenizer.chat_template == CHAT


SWITCH = "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"


@pytest.mark.parametrize(
    ("end", "written"),
    [
        ("{{ '<think>\\n' if add_generation_prompt }}", "<think>\n\n</think>\n\n"),
        ("{% if add_generation_prompt %}<think>{% endif %}\n", "<think>\n\n</think>\n\n"),
        ("{{ '[THINK]' if add_generation_prompt }}", "[THINK]\n\n[/THINK]\n\n"),
        ("{{ '<seed:think>\\n' if add_generation_prompt }}", "<seed:think>\n\n</seed:think>\n\n"),
        (SWITCH + "<think>\n\n</think>\n\n{% endif %}", "<think>\n\n</think>\n\n"),
        ("{{ '</think>' if add_generation_prompt }}", "</think>"),
    ],
)
def test_a_thought_is_closed_before_the_answer(end, written):
    encoder = encoder_of(CHAT + end)
    assert encoder.after == f"\n<assistant>\n{written}"
    # Elsewhere too, whatever is asked of the template, and not after the answer.
    for wanted in ({}, {"enable_thinking": True}):
        assert rendered(encoder, **wanted) == f"<user>go\n<assistant>\n{written}"
    whole = [*encoder.messages("go"), {"role": "assistant", "content": "<a_1>"}]
    assert "think" not in encoder.tokenizer.apply_chat_template(whole, tokenize=False).lower()
    kept = encoder.tokenizer.chat_template
    assert PromptEncoder(encoder.tokenizer, PROMPTS).tokenizer.chat_template == kept
    # The preview shows what is trained.
    shown = encoder.after.replace("\n", "\n   ")
    assert f"{shown}[[go" in lay_out_tokens(encoder, "go", "go")


TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))


@pytest.mark.slow  # most of a second for each
def test_templates_of_well_known_models_are_kept_as_they_are_rendered():
    """Those that trl has: whoever renders what is kept gets the same, and the answer is next."""
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    asked = [{"role": "user", "content": f"Which? {SENTINEL}"}]
    for path in TEMPLATES:
        kept, text = fix_prompt(path.read_text(encoding="utf-8"), asked, **tokens)
        (elsewhere,), _ = render_jinja_template(
            [asked], chat_template=kept, add_generation_prompt=True, **tokens
        )
        assert elsewhere == text, path
        after = text.partition(SENTINEL)[2]  # nothing for models of images, whose text is a list
        assert after.count("<think>") == after.count("</think>"), path
    assert len(TEMPLATES) > 20


ENDLESS = (
    "{% for a in q %}{% for b in q %}{% for c in q %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in q %}{% for b in q %}some text here{% endfor %}{% endfor %}",
    "{% for a in q %}{% for b in q %}{{ q }}{% endfor %}{% endfor %}",
    "{% for a in q if q | select | list | length > 9999 %}{{ q | upper }}{% endfor %}",
    "{{ q | center(2000000000) }}",
    "{{ q.center(2000000000) }}",
    "{{ q.center(200000 * 10000) }}",
    "{{ q.center(('9' * 9) | int) }}",
    "{{ q * 20000000 }}",
    "{{ [q] | slice(9999 * 9999) | list | length }}",
    "{{ [q] | batch(q | length ** 3, q) | list | length }}",
    "{{ [q] * 2 ** 40 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ '%2000000000s' % q }}",
    "{{ '{:2000000000}'.format(q) }}",
    "{% set n = namespace(t=q) %}{% for a in q %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    "{% set n = namespace(t=q) %}{% for a in q %}{% set n.t = n.t + n.t %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for a in q recursive %}{% if loop.depth < 9 %}{{ loop(q) }}{% endif %}{% endfor %}",
    "{% set t | center(2000000000) %}x{% endset %}",
    "{% filter center(2000000000) %}x{% endfilter %}",
)


@pytest.mark.parametrize("text", ENDLESS)
def test_no_rendering_goes_on_for_ever(text):
    begin = time.perf_counter()
    with pytest.raises((RenderingTooLong, jinja2.TemplateSyntaxError)):
        BoundedEnvironment().from_string(text).render(q="unbroken" * 1250)
    assert time.perf_counter() - begin < 20  # 2 or less where nothing else runs


@pytest.mark.parametrize("text", [ENDLESS[0], ENDLESS[4]])
def test_endless_templates_are_faults_wherever_they_stand(text):
    found = "writes more than 2,000,000 characters|holds a number beyond 1,000,000"
    entry = {"id": "x", "question": "{% set q = title * 99 %}" + text, "answer": "{{ target }}"}
    chat = CHAT + text.replace(" q", " ('unbroken' * 1250)")
    with pytest.raises(InputError, match=found):
        encoder_of(chat)
    (fault,) = chat_template_faults(chat)
    assert re.search(found, fault)
    _, faults = read_template(entry, TASKS["item2index"])
    assert re.search(found, " ".join(faults))


@pytest.mark.parametrize(
    "text",
    [
        "{% for a in q[:3] %}{{ loop.index }}{{ a ~ '!' }}{% else %}none{% endfor %}",
        "{% for a in q | batch(2) if a | length > 1 %}{{ a | join('-') }}{% endfor %}",
        "{% macro f(x, y=q | upper) %}[{{ x }}{{ y }}{{ caller('z') }}]{% endmacro %}"
        "{% call(x) f(1) %}{{ x * 3 }}{% endcall %}",
        "{% filter upper %}abc{{ q }}{% endfilter %}{% set t | title %}{{ q }}{% endset %}{{ t }}",
        "{{ 2 ** 10 + 7 % 4 - 3 * 2 }}{{ '%s' % q }}{{ 'a' + 'b' }}{{ none }}{{ 1.5 }}{{ [1, q] }}",
        "{% set n = namespace(t='') %}{% for a in q %}{% set n.t = a ~ n.t %}{% endfor %}{{ n.t }}",
        "  {% if q is defined %}\n  {{ q | default('x') | tojson }}\n  {% endif %}\n",
    ],
)
def test_what_ends_is_written_as_jinjas_own_sandbox_writes_it(text):
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    expected = plain.from_string(text).render(q="hello <b>")
    assert BoundedEnvironment().from_string(text).render(q="hello <b>") == expected
    assert expected
