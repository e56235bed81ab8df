"""What tests of fused rankings share: the shop's rankings by both ways, and fusions of them."""

import pytest


@pytest.fixture(scope="session")
def fused(checkpoint, shop, tmp_path_factory):
    """A function that fuses rankings of the shop and returns the file.

    `fused("score")` takes the name of `--how` and further flags; the rankings of either split lie
    beside it, `model.test.jsonl` and `counted.test.jsonl`.
    """
    from lcrec.baselines.__main__ import main as baselines
    from lcrec.generate.__main__ import main as generate

    folder = tmp_path_factory.mktemp("fusion")
    files = {}
    for split in ("valid", "test"):
        files[split] = [str(folder / f"{name}.{split}.jsonl") for name in ("model", "counted")]
        words = ["--data", str(shop), "--split", split, "--output"]
        generate(["--model", str(checkpoint), *words, files[split][0]])
        baselines(["cooccurrence", *words, files[split][1]])

    def fuse(how, *flags, turned=False):
        order = slice(None, None, -1 if turned else 1)
        words = [*files["test"][order], "--how", how, "--valid", *files["valid"][order]]
        words += ["--data", str(shop)] if how == "adaptive" else []
        output = folder / f"{how}{turned:d}{'-'.join(flags)}.jsonl"
        baselines(["fuse", *words, "--output", str(output), *flags])
        return output

    return fuse
