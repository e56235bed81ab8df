"""What tests of reinforcement share: its command on the toy shop."""

import pytest


@pytest.fixture(scope="session")
def reinforce(checkpoint, shop):
    """Run the command in this process: `reinforce(output, "--group", 4)` returns `output`."""
    from lcrec.reinforce.__main__ import main

    defaults = {
        "--model": checkpoint, "--data": shop, "--cases": 24, "--batch-size": 4, "--group": 4,
        "--learning-rate": 0.003, "--validation-users": 20, "--validate-every": 0.5,
        "--tolerance": 99,
    }  # fmt: skip

    def run(output, *options):
        settings = {**defaults, **dict(zip(options[::2], options[1::2], strict=True))}
        main([str(word) for setting in settings.items() for word in setting if word is not None]
             + ["--output", str(output)])  # fmt: skip
        return output

    return run
