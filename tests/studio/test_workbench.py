"""What the studio answers: the library's own results in raw ids, and every fault as a sentence."""

import re
from dataclasses import replace

import numpy as np
import pytest

from lcrec.core.errors import InputError
from lcrec.rankings.predictions import write_predictions

OPTIONS = {"k": 4, "exclude_history": False}
QUESTION, ANSWER = "So far: {{ history | join(' ') }}", "{{ target }}"


def options(**given):
    from lcrec.studio.workbench import Options

    return Options(**OPTIONS | given)


def listed(html):
    """Return the ids in the model's ranking and in the counted one."""
    model, _, counted = html.partition("<h3>Counted neighbours</h3>")
    ranking = re.compile(r"<b>[^<]*</b> <small>(SKU-\d+)</small> <small>-?[\d.e+-]+</small>")
    return ranking.findall(model), ranking.findall(counted)


def test_a_user_of_the_test_split_is_loaded_without_the_item_that_was_held_out(bench, split):
    history, target = bench.pick_user("customer-7", hide_test=True)
    case = split.test.users.index("7")
    assert history.split("\n") == [f"SKU-{item:03}" for item in split.test.histories[case]]
    assert target == f"SKU-{split.test.targets[case]:03}"
    assert bench.pick_user(" customer-7 ", hide_test=False) == (f"{history}\n{target}", "")
    assert bench.random_user() in bench.ids.users.names


def test_a_ranking_is_the_recommenders_and_says_why(bench):
    history, _ = bench.pick_user("customer-7", hide_test=True)
    items = [bench.ids.items.number(name) for name in history.split("\n")]
    ranking = bench.recommender.recommend([items], 4)
    expected = bench.ids.items.names_of(ranking.items[0])
    html = bench.recommend(history, options(), expected[1])
    model, counted = listed(html)
    assert model == expected
    assert len(counted) == 4
    assert html.count('<li class="target">') == 1 + (expected[1] in counted)
    first = bench.tree.path(int(ranking.items[0][0]))[0]
    assert f"{len(first.items)} items: {', '.join(first.words)}" in html
    (near,) = bench.tree.near(int(ranking.items[0][0]), 1, "embeddings", among=items)
    assert f"cosine {near.cosine:.2f}" in html
    left = listed(bench.recommend(history, options(deny=expected[0], exclude_history=True)))
    for names in left:
        assert not {expected[0], *history.split("\n")}.intersection(names)
    brand = bench.data.items.text(3, "brand")
    for names in listed(bench.recommend(history, options(brand=brand))):
        own = {bench.data.items.text(bench.ids.items.number(name), "brand") for name in names}
        assert own == {brand}


def test_titles_are_searched_and_added_to_a_history(bench):
    title = bench.data.items.title(5)
    found = dict(bench.find_items(title.upper()))
    assert found[f"{title} (SKU-005)"] == "SKU-005"
    assert bench.add_item("", "SKU-005") == "SKU-005"
    assert bench.add_item("SKU-001\n", "SKU-005") == "SKU-001\n\nSKU-005"
    assert listed(bench.recommend("SKU-001\n\nSKU-005", options()))[0]


def test_the_index_is_unfolded_down_to_its_items(bench):
    assert bench.overview().count("<tr><td>") == len(bench.branches()) == 3
    html = bench.unfold(bench.branches()[0][1])
    assert html.count("SKU-") == len(bench.tree.children()[0].items)
    beside = bench.neighbours("SKU-003")
    assert beside.count("codes shared") + beside.count("code shared") == 20
    assert "Nearest by code" in beside
    assert "Nearest by embedding" in beside


def test_two_rankings_are_compared_user_by_user(bench):
    from lcrec.studio.workbench import SIDES

    popular, model = bench.compared
    users = {side: bench.compare(popular, model, 9, side) for side in SIDES}
    counts = [int(re.search(r"<caption>(\d+) users", html)[1]) for html in users.values()]
    assert sum(counts) == 60
    assert "<td>recall of A</td><td>0.9833</td>" in next(iter(users.values()))  # all but customer-0
    without = users["B finds it, A does not"] + users["neither finds it"]
    assert re.findall(r"customer-\d+", without) == ["customer-0"]
    swapped = bench.compare(model, popular, 9, "B finds it, A does not")
    assert f"<caption>{counts[0]} users" in swapped


def test_a_checkpoint_and_a_file_of_every_case_of_a_user_are_compared(bench, tmp_path):
    split = bench.data.split
    test = replace(split.test, numbers=np.arange(len(split.test)))
    file = tmp_path / "p.jsonl"
    write_predictions(file, test.predictions([(np.array([0]), np.zeros(1))] * len(test)))
    compared = {"file": file, "model": list(bench.compared.values())[-1]}
    data = replace(bench.data, split=replace(split, test=test))
    own = replace(bench, data=data, compared=compared, _read={})
    assert "<caption>" in own.compare("file", "model", 9, "neither finds it")


def test_a_template_is_shown_ranked_with_and_saved(bench, studio_folder):
    from lcrec.prompts.prompt_set import SHIPPED_PROMPTS, PromptSet

    task_templates = bench.templates("seqrec")
    assert bench.template(task_templates[0])[1] == "{{ target }}"
    html = bench.show_prompt("seqrec", QUESTION, ANSWER, "customer-7")
    _, target = bench.pick_user("customer-7", hide_test=True)
    tokens = bench.tree.index.tokens(bench.ids.items.number(target))
    loss = re.findall(r'<span class="loss">([^<]*)</span>', html)
    assert [text.replace("&lt;", "<").replace("&gt;", ">") for text in loss[:-1]] == tokens
    assert "uses &#39;histry&#39;" in bench.show_prompt("seqrec", "{{ histry }}", ANSWER, "x")
    assert 'class="loss"' in bench.show_prompt("item2index", "{{ title }}", ANSWER, "")
    before, after = bench.rank_with(QUESTION, ANSWER, "customer-7", 3).split("This template")
    assert before.count("SKU-") == after.count("SKU-") == 3
    assert "seqrec.desk.yaml" in bench.save("seqrec", "own-1", QUESTION, ANSWER, "desk")
    read = PromptSet.load(studio_folder / "prompts", base=SHIPPED_PROMPTS)
    assert read.get("own-1").question == QUESTION


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda b: b.pick_user("customer-x", hide_test=True), "--user customer-x: not in the data"),
        (lambda b: b.find_items("no such thing"), "no title holds 'no such thing'"),
        (lambda b: b.add_item("", None), "no item is chosen"),
        (lambda b: b.recommend(" \n", options()), "the history is empty"),
        (lambda b: b.recommend("SKU-0", options()), "item 'SKU-0' is unknown"),
        (lambda b: b.recommend("SKU-001", options(brand="nobody")), "no item has the brand"),
        (lambda b: b.recommend("SKU-001", options(k=0)), "k: Input should be greater"),
        (lambda b: b.ask("a lamp", "", options()), "not trained on itemsearch"),
        (lambda b: b.unfold(None), "is no prefix"),
        (lambda b: b.neighbours(None), "no item is named"),
        (lambda b: b.compare("x", "y", 5, "both find it"), "choose two different ones"),
        (lambda b: b.show_prompt("seqrec", QUESTION, ANSWER, "who"), "--user who: not in the data"),
        (lambda b: b.save("seqrec", "a b", QUESTION, ANSWER, "x"), "not saved: the id 'a b'"),
    ],
)
def test_what_is_wrong_is_a_sentence(bench, ask, message):
    with pytest.raises(InputError) as error:
        ask(bench)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_studio_of_what_does_not_belong_together_is_refused(checkpoint, named_shop, tmp_path):
    from lcrec.studio.workbench import Workbench

    with pytest.raises(InputError, match=r"--compare .*nothing.jsonl: no such file"):
        Workbench.load(checkpoint, named_shop, compared=[tmp_path / "nothing.jsonl"])
    np.save(tmp_path / "embeddings.npy", np.zeros((3, 2), np.float32))
    with pytest.raises(InputError, match="has 3 rows but the catalogue has 48"):
        Workbench.load(checkpoint, named_shop, embeddings=tmp_path)


def test_items_that_were_added_are_shown(checkpoint, grown):
    from lcrec.studio.workbench import Workbench

    with pytest.raises(InputError, match=r"items joined after --model .* with --index, made with"):
        Workbench.load(checkpoint, grown / "data")
    bench = Workbench.load(checkpoint, grown / "data", index=grown / "index")
    assert "Brand new lamp" in bench.unfold("<a_3>")


def test_text_of_a_catalogue_is_no_markup(bench):
    from lcrec.data.folder import Items
    from lcrec.index.tree import ItemTree

    hostile = Items([{"title": "<script>alert(1)</script> & co"}] * 48)
    tree = ItemTree(bench.tree.index, hostile)
    shown = type(bench)(bench.recommender, bench.data, bench.ids, tree)
    assert "<script" not in shown.unfold("<a_0>")
