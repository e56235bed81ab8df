"""The synthetic shop: its files, its words, and that there is something to learn in it."""

import ast
import itertools
import math
import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcrec.core.artifacts import data_paths, read_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import fingerprint, read_provenance
from lcrec.data.folder import load_interactions, load_items
from lcrec.data.shop import (
    NEED_CHANCES,
    TASTES,
    WHIM_CHANCE,
    make_shop,
    next_item_probabilities,
    taste_probabilities,
)
from lcrec.data.shop_words import BRANDS, DEPARTMENTS, KINDS, STYLES, TIERS
from lcrec.data.splits import leave_one_out
from lcrec.synthetic import main

KIND_NAMES = [kind.name for kind in KINDS]
SMALL = ["--users", "40", "--items", "60"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The shop as the command writes it when only told where to."""
    path = tmp_path_factory.mktemp("data") / "shop"
    main(["--output", str(path)])
    return path


@pytest.fixture(scope="module")
def shop():
    return make_shop()


@pytest.fixture(scope="module")
def texts(folder):
    paths = data_paths(folder, "Shop")
    return {role: read_json(getattr(paths, role)) for role in ("item", "review", "user")}


def words(text):
    return re.findall(r"[\w°-]+", text.lower())


def test_the_folder_loads_and_splits(folder, shop):
    items = load_items(folder)
    interactions = load_interactions(folder, len(items))
    split = leave_one_out(interactions)
    assert len(items) == 600
    assert len(split.test) == len(split.valid) == 2000
    assert [sequence.tolist() for sequence in interactions] == shop.sequences
    record = read_provenance(folder)
    assert record["config"] == {"users": 2000, "items": 600, "seed": 0}
    assert record["purchases"] == len(interactions.items)
    lengths = [len(sequence) for sequence in shop.sequences]
    assert (min(lengths), max(lengths)) == (5, 20)
    assert 8 < np.mean(lengths) < 10
    assert all(len(set(sequence)) == len(sequence) for sequence in shop.sequences)


def test_every_item_has_its_own_readable_title(texts, shop):
    entries = list(texts["item"].values())
    assert len({entry["title"] for entry in entries}) == len(entries)
    assert all(set(entry) == {"title", "description", "brand", "categories"} for entry in entries)
    assert all(entry["brand"] in entry["title"] for entry in entries)
    titles = [len(entry["title"].split()) for entry in entries]
    descriptions = [len(entry["description"].split()) for entry in entries]
    assert min(titles) >= 6
    assert np.mean(titles) < 9
    assert min(descriptions) >= 15
    assert np.mean(descriptions) < 35
    full = make_shop(num_users=1, num_items=30_000)
    assert len({ware.title for ware in full.wares}) == 30_000
    for ware in shop.wares:
        assert ware.kind.name in ware.title.lower()
        assert ware.style.name in ware.description.lower()
        assert any(word in words(ware.title) for word in map(str.lower, ware.tier.words))
        assert ware.tier.name in ware.description.lower()


def test_every_purchase_has_a_review_and_no_other(shop, texts):
    keys = [ast.literal_eval(key) for key in texts["review"]]
    bought = [(user, item) for user, items in enumerate(shop.sequences) for item in items]
    assert keys == bought
    assert next(iter(texts["review"])) == f"(0, {shop.sequences[0][0]})"
    for (user, item), entry in zip(keys, texts["review"].values(), strict=True):
        assert set(entry) == {"review", "summary"}
        style, tier = TASTES[shop.tastes[user]]
        ware = shop.wares[item]
        said = entry["review"].lower()
        likes_style = any(praise.lower() in said for praise in style.praise)
        likes_tier = any(praise.lower() in said for praise in tier.praise)
        assert (likes_style, likes_tier) == (ware.style == style, ware.tier == tier)
        if not likes_style:
            assert style.liking in entry["review"]
        if not likes_tier:
            assert tier.liking in entry["review"]


@pytest.mark.parametrize(("split", "back"), [("train", 3), ("test", 1)])
def test_intentions_are_about_the_held_out_item_and_keep_its_title_back(shop, texts, split, back):
    intentions = texts["user"]["user_vague_intention"][split]
    assert list(intentions) == [str(user) for user in range(2000)]
    for user, sequence in enumerate(shop.sequences):
        entry = intentions[str(user)]
        assert entry["item"] == sequence[-back]
        assert entry["inters"] == sequence[:-back]
        ware = shop.wares[entry["item"]]
        user_text, item_text = entry["querys"]
        assert TASTES[shop.tastes[user]][0].liking in user_text
        assert ware.style.liking in user_text
        assert ware.tier.liking in user_text
        assert ware.kind.need in user_text
        assert ware.style.name in item_text.lower()
        assert ware.kind.name in item_text
        title = words(ware.title)
        runs = {tuple(title[i : i + 3]) for i in range(len(title) - 2)}
        for text in entry["querys"]:
            said = words(text)
            assert ware.brand not in text
            assert not runs & {tuple(said[i : i + 3]) for i in range(len(said) - 2)}


def test_preferences_say_what_the_history_shows_and_not_what_comes_after(shop, texts):
    preferences = texts["user"]["user_explicit_preference"]
    assert list(preferences) == [str(user) for user in range(2000)]
    right = 0
    for user, sequence in enumerate(shop.sequences):
        overall, long_term, short_term = preferences[str(user)]
        style, tier = TASTES[taste_probabilities(shop, sequence[:-3]).argmax()]
        assert style.liking in overall
        assert tier.liking in overall
        assert style.name in long_term
        assert tier.name in long_term
        assert shop.wares[sequence[-4]].kind.name in short_term
        right += (style, tier) == TASTES[shop.tastes[user]]
    # A history of two items need not show the taste, a long one does.
    assert 0.5 < right / 2000 < 0.95


def test_the_tables_fit_together():
    assert len(KIND_NAMES) == len(set(KIND_NAMES)) == 24
    assert len(DEPARTMENTS) == 6
    for kind in KINDS:
        assert set(kind.followers) <= set(KIND_NAMES) - {kind.name}
        assert len(set(kind.followers)) == len(NEED_CHANCES)
    assert set(KIND_NAMES) == {name for kind in KINDS for name in kind.followers}
    brands = [brand for tiers in BRANDS for pair in tiers for brand in pair]
    assert len(brands) == len(set(brands)) == 2 * len(STYLES) * len(TIERS)
    assert sum(NEED_CHANCES) == pytest.approx(1)


def test_users_follow_the_process_and_what_is_owned_is_not_needed_again(shop):
    tent = next(i for i, ware in enumerate(shop.wares) if ware.kind.name == "tent")
    chances = next_item_probabilities(shop, [tent])
    for name, chance in zip(KINDS[0].followers, NEED_CHANCES, strict=True):
        of_kind = shop.kinds == KIND_NAMES.index(name)
        planned = (1 - WHIM_CHANCE) * chance + WHIM_CHANCE / len(KINDS)
        assert chances[of_kind].sum() == pytest.approx(planned, rel=0.01)
    bags = np.flatnonzero(shop.kinds == KIND_NAMES.index("sleeping bag"))
    alike = [item for item in bags if shop.wares[item].style == shop.wares[tent].style]
    assert len(alike) / len(bags) < 0.3
    assert chances[alike].sum() > 0.4 * chances[bags].sum()
    first = {ware.kind.name: item for item, ware in reversed(list(enumerate(shop.wares)))}
    tent, *followers = (first[name] for name in ("tent", *KINDS[0].followers))
    chances = next_item_probabilities(shop, [*followers, tent])
    for item in followers:
        assert chances[shop.kinds == shop.kinds[item]].sum() < WHIM_CHANCE / len(KINDS) * 1.1
    everything = next_item_probabilities(shop, list(first.values()))
    assert everything.sum() == pytest.approx(1)
    follows = Counter(
        shop.wares[after].kind.name in shop.wares[before].kind.followers
        for sequence in shop.sequences
        for before, after in itertools.pairwise(sequence)
    )
    assert 0.7 < follows[True] / follows.total() < 0.85
    likes = [
        shop.wares[item].style == TASTES[taste][0]
        for sequence, taste in zip(shop.sequences, shop.tastes, strict=True)
        for item in sequence
    ]
    assert 0.55 < np.mean(likes) < 0.75


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(24, 90), st.integers(0, 2**40))
def test_probabilities_are_a_distribution_over_what_is_not_bought(users, items, seed):
    shop = make_shop(users, items, seed)
    assert len(shop.wares) == items
    assert len({ware.title for ware in shop.wares}) == items
    assert set(shop.kinds) == set(range(len(KINDS)))
    for sequence in shop.sequences:
        for length in (0, 1, len(sequence)):
            chances = next_item_probabilities(shop, sequence[:length])
            assert chances.sum() == pytest.approx(1)
            assert (chances[sequence[:length]] == 0).all()
            assert (np.delete(chances, sequence[:length]) > 0).all()
        assert taste_probabilities(shop, sequence).sum() == pytest.approx(1)
    np.testing.assert_allclose(taste_probabilities(shop, []), 1 / len(TASTES))


def test_popularity_and_co_occurrence_are_sensible_but_the_process_knows_more(folder, shop):
    split = leave_one_out(load_interactions(folder, 600))
    popularity = np.bincount(split.train.items, minlength=600).astype(float)
    follows = np.zeros((600, 600))
    for sequence in split.train:
        for position, item in enumerate(sequence):
            for age, earlier in enumerate(sequence[max(0, position - 5) : position][::-1]):
                follows[earlier, item] += 0.8**age

    def co_occurrence(history):
        recent = history[-5:][::-1]
        return 0.8 ** np.arange(len(recent)) @ follows[recent] + 1e-6 * popularity

    def hit_rate(scorer):
        hits = 0
        for history, target in zip(split.test.histories, split.test.targets, strict=True):
            scores = scorer(history).copy()
            scores[history] = -math.inf
            hits += (scores > scores[target]).sum() < 10
        return hits / len(split.test)

    popular = hit_rate(lambda history: popularity)
    together = hit_rate(co_occurrence)
    oracle = hit_rate(lambda history: next_item_probabilities(shop, history))
    assert 0.03 < popular < 0.07
    assert 0.10 < together < 0.20
    assert 0.45 < oracle < 0.55


def test_the_same_seed_gives_the_same_bytes_whatever_the_hash_seed(tmp_path):
    prints = {}
    for name, hash_seed, seed in (("a", "1", "7"), ("b", "2", "7"), ("c", "1", "8")):
        subprocess.run(
            [sys.executable, "-m", "lcrec.synthetic", "--output", name, "--seed", seed, *SMALL],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
        )
        prints[name] = fingerprint(tmp_path / name)
    assert prints["a"] == prints["b"] != prints["c"]


def test_asked_again_it_does_nothing_and_says_what_comes_next(tmp_path, capsys):
    shop = tmp_path / "shop"
    main(["--output", str(shop), *SMALL])
    said = capsys.readouterr().out
    assert "60 items of 24 kinds and 40 users" in said
    assert f"Next: python -m lcrec.embed --data {shop} --output runs/shop/embeddings" in said
    before = {path: path.stat().st_mtime_ns for path in shop.iterdir()}
    main(["--output", str(shop), *SMALL])
    said = capsys.readouterr().out
    assert "already holds this shop: nothing to do" in said
    assert "Next: python -m lcrec.embed" in said
    assert {path: path.stat().st_mtime_ns for path in shop.iterdir()} == before


def test_other_settings_replace_the_shop(tmp_path):
    shop = tmp_path / "shop"
    main(["--output", str(shop), *SMALL])
    main(["--output", str(shop), "--users", "5", "--items", "24", "--seed", "3"])
    assert len(load_items(shop)) == 24
    assert len(load_interactions(shop, 24)) == 5
    assert read_provenance(shop)["config"] == {"users": 5, "items": 24, "seed": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["shop"]


def test_a_link_and_the_current_folder_work_as_output(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    main(["--output", str(tmp_path / "link"), *SMALL])
    assert len(load_items(tmp_path / "real")) == 60
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    main(["--output", ".", *SMALL])
    assert fingerprint(tmp_path / "here") == fingerprint(tmp_path / "real")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--items", "23"], "--items 23: the shop sells 24 kinds of product .* from 24 to"),
        (["--items", "400000"], "--items 400000: .* different titles"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        main(["--output", str(tmp_path / "shop"), *flags])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("users", "seed"), [(0, 0), (5, -1)])
def test_the_library_function_checks_too(users, seed):
    with pytest.raises(InputError, match=f"--users {users} --seed {seed}"):
        make_shop(num_users=users, seed=seed)
