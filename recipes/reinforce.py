"""What `accelerate launch` is given in a checkout: the stage `lcrec.reinforce`."""

from lcrec.core.errors import run_stage
from lcrec.reinforce.__main__ import main

if __name__ == "__main__":
    run_stage(main)
