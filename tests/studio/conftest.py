"""A workbench over the tiny checkpoint, with raw ids, embeddings and a predictions file."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the studio needs the extra `studio`")


@pytest.fixture(scope="session")
def named_shop(shop, tmp_path_factory):
    """The shop whose users are called customer-0 and so on, and its items SKU-000."""
    folder = tmp_path_factory.mktemp("named") / "shop"
    shutil.copytree(shop, folder)
    users = json.loads((folder / "Shop.inter.json").read_text())
    lines = "".join(f"customer-{user}\t{user}\n" for user in users)
    (folder / "Shop.user2id").write_text(lines)
    (folder / "Shop.item2id").write_text("".join(f"SKU-{item:03}\t{item}\n" for item in range(48)))
    return folder


@pytest.fixture(scope="session")
def studio_folder(named_shop, split, tmp_path_factory):
    """embeddings/, and popular.jsonl: everybody's test item first, but not that of customer-0."""
    from lcrec.core.artifacts import find_data
    from lcrec.core.provenance import write_provenance
    from lcrec.rankings.predictions import write_predictions

    folder = tmp_path_factory.mktemp("studio")
    (folder / "embeddings").mkdir()
    vectors = np.random.default_rng(0).normal(size=(48, 8)).astype(np.float32)
    np.save(folder / "embeddings" / "embeddings.npy", vectors)
    inputs = {"item": find_data(named_shop).item}
    write_provenance(folder / "embeddings", "python -m lcrec.embed", {}, inputs)
    lists = []
    for case, target in enumerate(split.test.targets.tolist()):
        others = [item for item in range(48) if item != target][:9]
        ranked = np.array(others if case == 0 else [target, *others])
        lists.append((ranked, np.zeros(len(ranked))))
    write_predictions(folder / "popular.jsonl", split.test.predictions(lists))
    return folder


@pytest.fixture(scope="session")
def bench(checkpoint, named_shop, studio_folder):
    from lcrec.studio.workbench import Workbench

    return Workbench.load(
        checkpoint,
        named_shop,
        embeddings=studio_folder / "embeddings",
        compared=[studio_folder / "popular.jsonl"],
        prompts_folder=studio_folder / "prompts",
    )
