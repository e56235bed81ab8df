"""What `accelerate launch` is given in a checkout: the stage `lcrec.finetune`."""

from lcrec.core.errors import run_stage
from lcrec.finetune import main

if __name__ == "__main__":
    run_stage(main)
