"""lcrec: turn an open language model into a recommender.

Every stage is a command, `lcrec --help` lists them in order. From Python, after
`bash scripts/quickstart.sh`:

    import lcrec

    data = lcrec.load_data("data/shop")
    recommender = lcrec.Recommender.from_pretrained("runs/quickstart/model")
    histories = data.split.test.histories[:3]
    ranking = recommender.recommend(histories, k=5, exclude_history=True)
    for items in ranking.items.tolist():
        print([data.items.title(item) for item in items])
    metrics = lcrec.evaluate_predictions(["runs/quickstart/predictions/lc-rec.jsonl"])
    print(metrics["runs"]["lc-rec"]["overall"]["NDCG@10"]["mean"])

The names below are loaded when they are first used: `import lcrec` loads neither torch nor
transformers.
"""

import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING

from lcrec.core.lazy import lazy_exports
from lcrec.core.version import __version__

if TYPE_CHECKING:
    from lcrec.data.data_set import load_data
    from lcrec.finetune import FinetuneConfig
    from lcrec.finetune import run as fine_tune
    from lcrec.generate.recommender import Recommender
    from lcrec.index.item_index import IndexSettings, ItemIndex
    from lcrec.prompts.prompt_set import PromptSet
    from lcrec.quantize import build_index
    from lcrec.rankings.evaluation import evaluate_predictions

_HOMES = {
    "FinetuneConfig": "finetune",
    "IndexSettings": "index.item_index",
    "ItemIndex": "index.item_index",
    "PromptSet": "prompts.prompt_set",
    "Recommender": "generate.recommender",
    "build_index": "quantize",
    "evaluate_predictions": "rankings.evaluation",
    "fine_tune": "finetune:run",
    "load_data": "data.data_set",
}
# Written out, because type checkers read it.
__all__ = [
    "FinetuneConfig",
    "IndexSettings",
    "ItemIndex",
    "PromptSet",
    "Recommender",
    "__version__",
    "build_index",
    "evaluate_predictions",
    "fine_tune",
    "load_data",
]
__getattr__ = lazy_exports(__name__, _HOMES)

if sys.platform == "win32":
    # Named, so that `python -m lcrec.STAGE` says it in one line.
    raise ImportError(
        "lcrec runs on Linux and macOS, whose file locks it needs; on Windows, install it in WSL",
        name=__name__,
    )

# trl and vLLM report every training and start over the network unless told otherwise.
os.environ.setdefault("DO_NOT_TRACK", "1")

# peft imports bitsandbytes wherever it is installed, and that warns of a missing kernel which only
# 4-bit models on a CPU would use.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# peft 0.21 asks a model for `is_gradient_checkpointing`, which transformers 5.23 calls by another
# name: theirs to mend, and nothing to tell whoever trains an adapter.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
