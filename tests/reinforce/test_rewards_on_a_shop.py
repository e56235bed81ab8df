"""A shop whose law is known, a model stopped early: rewards make it rank better, by any seed."""

import pytest

from lcrec import synthetic
from lcrec.core.provenance import read_provenance
from lcrec.embed import main as embed
from lcrec.quantize import main as quantize
from lcrec.reinforce.__main__ import main as reinforce
from lcrec.tinylm import main as tinylm


@pytest.mark.slow
def test_rewards_raise_the_ndcg_of_a_model_that_was_stopped_early(recipe, tmp_path):
    def run(stage, **settings):
        pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in settings.items())
        stage([word for pair in pairs for word in pair])

    shop, base, model = tmp_path / "shop", tmp_path / "base", tmp_path / "early"
    run(synthetic.main, output=shop, users=500, items=120)
    size = {"vocab_size": 600, "hidden_size": 64, "layers": 2, "epochs": 1, "max_words": 10}
    run(tinylm, data=shop, output=base, **size)
    run(embed, data=shop, output=tmp_path / "embeddings", lsa_dim=32)
    run(quantize, data=shop, embeddings=tmp_path / "embeddings", output=tmp_path / "index")
    run(
        recipe.main, config="recipes/quickstart.yaml", tasks="seqrec", epochs=4, batch_size=32,
        validation_users=500, data=shop, index=tmp_path / "index", base=base, output=model,
    )  # fmt: skip
    gains = []
    for seed in range(3):
        output = tmp_path / f"seed{seed}"
        run(
            reinforce, model=model, data=shop, output=output, seed=seed, learning_rate=1e-4,
            validation_users=500,
        )  # fmt: skip
        before, after = (read_provenance(m)["validation_ndcg_at_10"] for m in (model, output))
        gains.append(after / before - 1)
    assert min(gains) > 0.05, gains
