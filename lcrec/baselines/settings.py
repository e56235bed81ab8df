"""What can be set of every method, what it needs, and what `tune` tries.

Apart from the methods, so that a command reads its options without loading torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from lcrec.core.config import option
from lcrec.core.errors import InputError
from lcrec.data.cooccurrence import BACKWARD, DISTANCE_DECAY, HISTORY_DECAY, LAST, WINDOW

Need = Literal["embeddings", "texts", "index"]
NextItemLoss = Literal["ce", "bce", "bpr", "sampled"]
ExampleForm = Literal["prefixes", "windows"]

# Helps of several methods.
DECAY = "the factor per step back in the history; 1: order plays no part"
LOSSES = "ce: softmax over the catalogue; sampled: over --negatives items; bce, bpr: one"
PREFIXES_OR_WINDOWS = (
    "prefixes: a history per target, as RecBole; windows: a target after every item"
)
SUBLAYERS = "share of inputs and of what sublayers add"


@dataclass(frozen=True)
class MethodSettings:
    """What can be set of a method, and what a command must know of it before it loads it.

    Attributes:
        path: module below `lcrec.baselines.methods`, colon, class.
        summary: what the method does, in a line.
        needs: what `TrainingData` must hold for this method.
        is_stochastic: whether it draws at random, so that another seed gives another result.
        tuned: {setting: value} of the best known configuration, where it is not the default.
        grid: {setting: values} that `lcrec baselines tune` tries.
    """

    path: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()
    is_stochastic: ClassVar[bool] = True
    tuned: ClassVar[Mapping[str, Any]] = {}
    grid: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @property
    def required_inputs(self) -> frozenset[Need]:
        """What `TrainingData` must hold with these settings: `needs`, for most."""
        return self.needs


@dataclass(frozen=True)
class PopularitySettings(MethodSettings):
    """Nothing to set."""

    path = "closed_form:Popularity"
    summary = "the most bought first, the same for everyone"
    is_stochastic = False


@dataclass(frozen=True)
class CooccurrenceSettings(MethodSettings):
    """What can be set."""

    path = "closed_form:Cooccurrence"
    summary = "what stood after or near the user's last items elsewhere"
    is_stochastic = False

    window: int = option("the largest distance between two items that counts", WINDOW, minimum=1)
    distance_decay: float = option(
        "the factor per further step between them", DISTANCE_DECAY, minimum=0
    )
    backward: float = option(
        "weight of standing before an item, against 1 for standing after it", BACKWARD, minimum=0
    )
    last: int = option("how many of a history's last items count", LAST, minimum=1)
    history_decay: float = option(
        "the factor per step back in the history", HISTORY_DECAY, minimum=0
    )


@dataclass(frozen=True)
class ItemKNNSettings(MethodSettings):
    """The defaults are RecBole 1.2.1's."""

    path = "closed_form:ItemKNN"
    summary = "what the same customers bought as well (Sarwar et al. 2001)"
    is_stochastic = False
    # Best NDCG@10 of 16 cells on 4,000 validation users of Instruments.
    tuned: ClassVar = {"neighbours": 500, "shrink": 10.0, "history_decay": 0.7}
    grid: ClassVar = {
        "neighbours": (100, 500),
        "shrink": (0.0, 10.0, 30.0),
        "history_decay": (0.5, 0.7, 0.9, 1.0),
    }

    neighbours: int = option("how many of the items most like an item vote for it", 100, minimum=1)
    shrink: float = option("added below the fraction: few customers count less", 0.0, minimum=0)
    history_decay: float = option(DECAY, 1.0, minimum=0, maximum=1)


@dataclass(frozen=True)
class EASESettings(MethodSettings):
    """The default is RecBole 1.2.1's; the paper finds 200 to 1,000 on data sets far denser."""

    path = "closed_form:EASE"
    summary = "a linear model of all items, in closed form (Steck 2019)"
    is_stochastic = False
    # Best NDCG@10 of 12 cells on 4,000 validation users of Instruments; second on Office.
    tuned: ClassVar = {"regularisation": 250.0, "history_decay": 0.7}
    grid: ClassVar = {
        "regularisation": (3.0, 10.0, 30.0, 100.0, 250.0, 500.0),
        "history_decay": (0.5, 0.7, 0.9, 1.0),
    }

    regularisation: float = option("what is added to every item's count", 250.0, minimum=1e-3)
    history_decay: float = option(DECAY, 1.0, minimum=0, maximum=1)
    memory_gb: float = option(
        "refuse a catalogue that needs more; 4 GB hold 18,000 items", 4.0, minimum=0.001
    )


@dataclass(frozen=True)
class TextCosineSettings(MethodSettings):
    """What can be set."""

    path = "closed_form:TextCosine"
    summary = "items whose text is like the history's"
    is_stochastic = False
    needs = frozenset({"embeddings"})

    last: int | None = option(
        "how many of a history's last items count; none: all", None, minimum=1
    )


@dataclass(frozen=True)
class LightGCNSettings(MethodSettings):
    """Defaults of RecBole 1.2.1, but for a longer patience."""

    path = "lightgcn:LightGCN"
    summary = "vectors smoothed over the graph of purchases (He et al. 2020)"
    grid: ClassVar = {
        "loss": ("bpr", "info_nce"),
        "layers": (1, 2, 3),
        "learning_rate": (1e-3, 5e-3),
    }

    dim: int = option("numbers per vector", 64, minimum=1)
    layers: int = option("how often the vectors are smoothed over the graph", 2, minimum=0)
    loss: Literal["bpr", "info_nce"] = option("bpr: one negative; info_nce: several", "bpr")
    negatives: int = option("info_nce: items drawn per purchase", 256, minimum=1)
    temperature: float = option("info_nce: what cosines are divided by", 0.2, minimum=0.001)
    regularisation: float = option("bpr: weight of the squared norms", 1e-5, minimum=0)
    learning_rate: float = option("of Adam", 1e-3, minimum=0)
    batch_size: int = option("purchases per update", 2048, minimum=1)
    epochs: int = option("at most", 300, minimum=1)
    # RecBole's 10 can stop it in the dip after its first epochs, which it leaves slowly: on Office
    # at epoch 5 with NDCG@10 .085 on validation, where epoch 348 has .0945.
    patience: int = option("validations without improvement before training stops", 100, minimum=1)
    every: int = option("epochs from one validation to the next", 1, minimum=1)


@dataclass(frozen=True)
class MatrixFactorisationSettings(LightGCNSettings):
    """Those of LightGCN; the number of layers is not for setting."""

    path = "lightgcn:MatrixFactorisation"
    summary = "a vector per user and item, BPR (Rendle et al. 2009)"
    grid: ClassVar = {"loss": ("bpr", "info_nce"), "learning_rate": (1e-3, 5e-3)}

    layers: int = field(default=0, init=False)


@dataclass(frozen=True)
class FusionSettings(MethodSettings):
    """Defaults of the released code (there, validation is by Recall@20)."""

    path = "fusion:Fusion"
    summary = "purchases and texts side by side, norm-concat-norm"
    needs = frozenset({"embeddings"})
    grid: ClassVar = {
        "temperature": (0.1, 0.15, 0.2),
        "layers": (1, 2, 3),
        "learning_rate": (1e-3, 5e-3),
    }

    views: Literal["both", "collaborative", "semantic"] = option(
        "what to train: both, or one of them alone, to compare", "both"
    )
    dim: int = option("numbers per view", 64, minimum=1)
    layers: int = option("how often purchases are smoothed over the graph", 2, minimum=0)
    temperature: float = option("what cosines are divided by", 0.15, minimum=0.001)
    candidates: int = option("items drawn per purchase", 512, minimum=1)
    negatives: int = option("how many of them, the hardest, are trained on", 256, minimum=1)
    learning_rate: float = option("of AdamW", 1e-3, minimum=0)
    weight_decay: float = option("of AdamW", 1e-4, minimum=0)
    batch_size: int = option("purchases per update", 2048, minimum=1)
    epochs: int = option("at most", 200, minimum=1)
    patience: int = option("validations without improvement before training stops", 5, minimum=1)
    every: int = option("epochs from one validation to the next", 5, minimum=1)

    def __post_init__(self) -> None:
        if self.negatives > self.candidates:
            raise InputError(
                f"--negatives {self.negatives}: more than --candidates {self.candidates}, of which "
                "they are the hardest"
            )

    @property
    def required_inputs(self) -> frozenset[Need]:
        """The embeddings, but for purchases alone."""
        return frozenset() if self.views == "collaborative" else self.needs


@dataclass(frozen=True)
class CollabContextSettings(MethodSettings):
    """Defaults of the released code; weight decay, which it leaves open, is the paper's middle."""

    path = "collabcontext:CollabContext"
    summary = "text and purchases teach each other in turn (CARec, 2024)"
    needs = frozenset({"embeddings"})
    grid: ClassVar = {
        "learning_rate": (1e-4, 1e-3, 1e-2),
        "weight_decay": (1e-4, 1e-5, 1e-6),
        "layers": (1, 2, 3),
    }

    layers: int = option("how often the vectors are smoothed over the graph", 2, minimum=0)
    feature_norm: Literal["none", "l2", "minmax"] = option(
        "what is done to the embeddings first: nothing, rows of length 1, or all values into 0..1 "
        "(as the released configuration does)",
        "none",
    )
    hidden_layers: int = option("of the MLP, each followed by ReLU and dropout", 2, minimum=0)
    hidden: int | None = option(
        "numbers per hidden layer of the MLP; none: as many as an embedding has", None, minimum=1
    )
    dropout: float = option("after the MLP's hidden layers, below 1", 0.2, minimum=0)
    phases: Literal["both", "first", "second"] = option(
        "which phases to train, to see what each is worth", "both"
    )
    cycles: int = option("how often the two phases take turns; more is no better", 1, minimum=1)
    detach_tutor: bool = option("no gradient through the side that teaches", False)
    trainable_items: bool = option("phase 2 trains the item embeddings beside the MLP", False)
    alignment_only: bool = option("leave uniformity out of the loss", False)
    symmetric: bool = option(
        "one phase instead of two: users and MLP at once, the mean of both sides' uniformity", False
    )
    learning_rate: float = option("of Adam, a new one for every phase", 1e-3, minimum=0)
    weight_decay: float = option("of Adam", 1e-5, minimum=0)
    batch_size: int = option("purchases per update", 1024, minimum=1)
    epochs: int = option("of a phase, at most", 200, minimum=1)
    patience: int = option("validations without improvement before a phase ends", 30, minimum=1)
    every: int = option("epochs from one validation to the next", 1, minimum=1)

    def __post_init__(self) -> None:
        if self.dropout >= 1:
            raise InputError(f"--dropout {self.dropout}: it must be below 1")
        if self.symmetric and (self.phases != "both" or self.cycles > 1 or self.detach_tutor):
            raise InputError(
                "--symmetric trains both sides in one phase; leave out --phases, --cycles and "
                "--detach-tutor"
            )
        if self.phases != "both" and self.cycles > 1:
            raise InputError(f"--cycles {self.cycles} needs both phases; leave out --phases")
        if self.trainable_items and self.phases == "first":
            raise InputError("--trainable-items is of phase 2; leave out --phases first")


@dataclass(frozen=True)
class AlphaRecSettings(MethodSettings):
    """Defaults of the authors' code; `hidden` is theirs for text-embedding-3-large.

    They chose `hidden` for about 4.7 million parameters, whatever the encoder.
    """

    path = "alpharec:AlphaRec"
    summary = "item texts mapped by a network, then the graph (Sheng et al. 2025)"
    needs = frozenset({"embeddings"})
    grid: ClassVar = {"temperature": (0.05, 0.1, 0.15, 0.2), "layers": (1, 2, 3)}

    mapping: Literal["mlp", "linear"] = option(
        "f: one hidden layer, or a matrix without a bias", "mlp"
    )
    hidden: int | None = option(
        "mlp: width of the hidden layer; none: half of the embeddings'", None, minimum=1
    )
    dim: int = option("numbers per mapped vector", 64, minimum=1)
    layers: int = option("how often they are smoothed over the graph; 0: no graph", 2, minimum=0)
    loss: Literal["info_nce", "bpr"] = option(
        "info_nce: cosines, several negatives; bpr: dot products, one", "info_nce"
    )
    negatives: int = option("info_nce: items drawn per purchase", 256, minimum=1)
    temperature: float = option(
        "info_nce: what cosines are divided by", 0.15, minimum=0.001
    )  # .15 on Books and Movies, .2 on Games
    learning_rate: float = option("of Adam", 5e-4, minimum=0)
    batch_size: int = option("purchases per update", 4096, minimum=1)
    epochs: int = option("at most", 500, minimum=1)
    patience: int = option("validations without improvement before training stops", 20, minimum=1)
    every: int = option("epochs from one validation to the next", 5, minimum=1)


@dataclass(frozen=True)
class LinearMappingSettings(AlphaRecSettings):
    """Those of AlphaRec; that f is a matrix and that there is no graph is not for setting."""

    path = "alpharec:LinearMapping"
    summary = "a matrix on the vectors of item texts (Sheng et al. 2025)"
    grid: ClassVar = {"temperature": (0.05, 0.1, 0.15, 0.2)}

    mapping: Literal["mlp", "linear"] = field(default="linear", init=False)
    hidden: int | None = field(default=None, init=False)
    layers: int = field(default=0, init=False)


@dataclass(frozen=True)
class SequenceSettings(MethodSettings):
    """Defaults of RecBole 1.2.1, with LC-Rec's histories of 20 items for its 50."""

    dim: int = option("numbers per item vector", 64, minimum=1)
    max_history: int = option("the last items of a history that are read", 20, minimum=1)
    loss: NextItemLoss = option(LOSSES, "ce")
    negatives: int = option("sampled: items drawn per target", 256, minimum=1)
    learning_rate: float = option("of Adam", 1e-3, minimum=0)
    batch_size: int = option("targets per update", 2048, minimum=1)
    epochs: int = option("at most", 300, minimum=1)
    patience: int = option("validations without improvement before training stops", 10, minimum=1)
    every: int = option("epochs from one validation to the next", 1, minimum=1)
    # Not for setting, but in methods whose states know nothing of later items.
    examples: ExampleForm = field(default="prefixes", init=False)


@dataclass(frozen=True)
class SASRecSettings(SequenceSettings):
    """Defaults of RecBole 1.2.1, with LC-Rec's histories of 20 items for its 50."""

    path = "attention:SASRec"
    summary = "a causal transformer (Kang and McAuley 2018)"
    # On Amazon 2018 Instruments these rank what is held out for validation better (NDCG@10 .0764,
    # best after 40 epochs) than RecBole's (.0733, after 12).
    tuned: ClassVar = {
        "examples": "windows",
        "batch_size": 512,
        "dropout": 0.3,
        "attention_dropout": 0.3,
    }
    grid: ClassVar = {"dim": (64, 128), "dropout": (0.2, 0.5), "learning_rate": (5e-4, 1e-3)}

    examples: ExampleForm = option(PREFIXES_OR_WINDOWS, "prefixes")
    layers: int = option("blocks of the transformer", 2, minimum=1)
    heads: int = option("of its attention; divides --dim", 2, minimum=1)
    hidden: int = option("width of its feed-forward networks", 256, minimum=1)
    dropout: float = option(SUBLAYERS, 0.5, minimum=0, maximum=0.99)
    attention_dropout: float = option("share of attention weights", 0.5, minimum=0, maximum=0.99)


@dataclass(frozen=True)
class BERT4RecSettings(SASRecSettings):
    """Defaults of RecBole 1.2.1, with LC-Rec's histories of 20 items for its 50."""

    path = "attention:BERT4Rec"
    summary = "a transformer that fills in masks (Sun et al. 2019)"
    tuned: ClassVar = {"examples": "windows"}
    grid: ClassVar = {"masked": (0.2, 0.4), "dropout": (0.1, 0.2), "learning_rate": (5e-4, 1e-3)}

    examples: ExampleForm = option(
        "prefixes: a history per target, as RecBole; windows: all of a user's items at once",
        "prefixes",
    )
    dropout: float = option(SUBLAYERS, 0.2, minimum=0, maximum=0.99)
    attention_dropout: float = option("share of attention weights", 0.2, minimum=0, maximum=0.99)
    masked: float = option("share of items that are masked", 0.2, minimum=0, maximum=1)
    last_only: float = option(
        "share of examples with only the last item masked", 0.5, minimum=0, maximum=1
    )


@dataclass(frozen=True)
class GRU4RecSettings(SequenceSettings):
    """Defaults of RecBole 1.2.1, with LC-Rec's histories of 20 items for its 50."""

    path = "without_attention:GRU4Rec"
    summary = "a recurrent network (Hidasi et al. 2016)"
    # On Amazon 2018 Instruments as good for validation (NDCG@10 .0824; 53 epochs, 52 without) in
    # two thirds of the time.
    tuned: ClassVar = {"examples": "windows"}
    grid: ClassVar = {"dim": (64, 128), "dropout": (0.1, 0.3, 0.5), "learning_rate": (5e-4, 1e-3)}

    examples: ExampleForm = option(PREFIXES_OR_WINDOWS, "prefixes")
    layers: int = option("of the GRU", 1, minimum=1)
    hidden: int = option("numbers in its state", 128, minimum=1)
    dropout: float = option("share of its input", 0.3, minimum=0, maximum=0.99)


@dataclass(frozen=True)
class FMLPSettings(SequenceSettings):
    """Defaults of the authors' code, with LC-Rec's histories of 20 items for its 50."""

    path = "without_attention:FMLP"
    summary = "learned filters over frequencies (Zhou et al. 2022)"
    tuned: ClassVar = {"loss": "ce", "batch_size": 2048}
    grid: ClassVar = {"dim": (64, 128), "dropout": (0.2, 0.5), "learning_rate": (5e-4, 1e-3)}

    loss: NextItemLoss = option(LOSSES, "bce")
    batch_size: int = option("targets per update", 256, minimum=1)
    layers: int = option("blocks, each a filter and a feed-forward network", 2, minimum=1)
    hidden: int = option("width of the feed-forward networks", 256, minimum=1)
    dropout: float = option(SUBLAYERS, 0.5, minimum=0, maximum=0.99)


@dataclass(frozen=True)
class CaserSettings(SequenceSettings):
    """Defaults of RecBole 1.2.1, but for L, for which the paper's 5 stands (its section 4.2)."""

    path = "without_attention:Caser"
    summary = "convolutions over the last items (Tang and Wang 2018)"
    grid: ClassVar = {"max_history": (5, 10), "dropout": (0.2, 0.4), "learning_rate": (5e-4, 1e-3)}

    max_history: int = option("L, the last items of a history that are read", 5, minimum=1)
    horizontal: int = option("horizontal filters per height", 8, minimum=1)
    vertical: int = option("vertical filters", 4, minimum=1)
    dropout: float = option("share of what the filters answer", 0.4, minimum=0, maximum=0.99)
    regularisation: float = option("weight of the sum of the matrices' norms", 1e-4, minimum=0)


@dataclass(frozen=True)
class HGNSettings(SequenceSettings):
    """Defaults of RecBole 1.2.1, with LC-Rec's histories of 20 items for its 50."""

    path = "without_attention:HGN"
    summary = "gates on features and items of a history (Ma et al. 2019)"
    grid: ClassVar = {"max_history": (5, 20), "dim": (64, 128), "learning_rate": (5e-4, 1e-3)}


@dataclass(frozen=True)
class FDSASettings(SASRecSettings):
    """Defaults of RecBole 1.2.1, with LC-Rec's histories of 20 items for its 50."""

    path = "attributes:FDSA"
    summary = "SASRec beside one that reads attributes (Zhang et al. 2019)"
    needs = frozenset({"texts"})
    tuned: ClassVar = {"examples": "windows"}
    grid: ClassVar = {"dim": (64, 128), "dropout": (0.2, 0.5), "learning_rate": (5e-4, 1e-3)}


@dataclass(frozen=True)
class S3RecSettings(SASRecSettings):
    """Those of SASRec; epochs, batches, masks and weights of the authors' code."""

    path = "attributes:S3Rec"
    summary = "SASRec after four tasks of pre-training (Zhou et al. 2020)"
    needs = frozenset({"texts"})
    tuned: ClassVar = {"examples": "windows", "batch_size": 2048}
    grid: ClassVar = {
        "dropout": (0.2, 0.5),
        "learning_rate": (5e-4, 1e-3),
        "pretrain_epochs": (20, 100),
    }

    batch_size: int = option("targets per update", 256, minimum=1)
    epochs: int = option("at most, after pre-training", 200, minimum=1)
    pretrain_epochs: int = option(
        "of pre-training; the authors used those of 100 to 150", 100, minimum=0
    )
    pretrain_batch_size: int = option(
        "targets per update of pre-training; the authors: 100 sequences", 1024, minimum=1
    )
    masked: float = option("share of items masked in pre-training", 0.2, minimum=0, maximum=1)
    aap: float = option("weight of item and attributes", 0.2, minimum=0)
    mip: float = option("weight of masked items", 1.0, minimum=0)
    map: float = option("weight of masked items' attributes", 1.0, minimum=0)
    sp: float = option("weight of stretches", 0.5, minimum=0)


@dataclass(frozen=True)
class GenerativeSettings(MethodSettings):
    """What can be set of every method here; the methods give the defaults of their own."""

    max_history: int = option("the last items of a history that are read", 20, minimum=1)
    dim: int = option("width of the model", 128, minimum=1)
    layers: int = option("of the encoder, and of the decoder", 4, minimum=1)
    heads: int = option("attention heads, of 64 numbers each", 6, minimum=1)
    hidden: int = option("width of the feed-forward layers", 1024, minimum=1)
    dropout: float = option("share of values dropped in training", 0.1, minimum=0, maximum=0.99)
    learning_rate: float = option("the highest, of AdamW", 5e-4, minimum=0)
    weight_decay: float = option("of AdamW", 0.01, minimum=0)
    warmup: float = option("share of updates while it rises", 0.01, minimum=0, maximum=1)
    batch_size: int = option("examples per update", 256, minimum=1)
    epochs: int = option("at most", 200, minimum=1)
    patience: int = option("validations without improvement before training stops", 20, minimum=1)
    every: int = option("epochs from one validation to the next", 1, minimum=1)
    valid_users: int = option(
        "users drawn to validate on while training, for decoding is slow; 0: all", 1000, minimum=0
    )
    beams: int = option("beams, and so the most items that are ranked", 20, minimum=10)
    precision: Literal["fp32", "bf16"] = option(
        "arithmetic of training; bf16 is nearly twice as fast where the processor has it", "fp32"
    )


@dataclass(frozen=True)
class TIGERSettings(GenerativeSettings):
    """Those of LETTER's TIGER, but for a batch of 256, not 1,024 over two GPUs and two steps."""

    path = "generative:TIGER"
    summary = "writes the codes of the next item (Rajput et al. 2023)"
    needs = frozenset({"index"})
    grid: ClassVar = {"learning_rate": (5e-4, 1e-3, 3e-3), "dropout": (0.1, 0.2)}


@dataclass(frozen=True)
class P5CIDSettings(GenerativeSettings):
    """Shape of T5-small; training, clusters and leaf of the authors' code, whose batch is 2 x 64.

    It trains 20 epochs whatever happens, hence the patience.
    """

    path = "generative:P5CID"
    summary = "the same, codes from who bought what (Hua et al. 2023)"
    grid: ClassVar = {"clusters": (10, 20), "leaf": (200, 500)}

    dim: int = option("width of the model", 512, minimum=1)
    layers: int = option("of the encoder, and of the decoder", 6, minimum=1)
    heads: int = option("attention heads, of 64 numbers each", 8, minimum=1)
    hidden: int = option("width of the feed-forward layers", 2048, minimum=1)
    learning_rate: float = option("the highest, of AdamW", 1e-3, minimum=0)
    warmup: float = option("share of updates while it rises", 0.05, minimum=0, maximum=1)
    batch_size: int = option("examples per update", 128, minimum=1)
    epochs: int = option("at most", 20, minimum=1)
    clusters: int = option("parts that a cluster of items is divided into", 10, minimum=2)
    leaf: int = option("the most items of a cluster that is not divided", 500, minimum=1)
    whole_words: bool = option("add an embedding of an item's place to its tokens", True)
    base: Path | None = option(
        "a folder with a pretrained T5; its shape then counts; none: random weights", None
    )


@dataclass(frozen=True)
class TSSRSettings(MethodSettings):
    """Defaults of the released code, but for its 20 epochs, few steps where users are few."""

    path = "tssr:TSSR"
    summary = "two streams, of ids and contents, that read each other (TSSR, 2024)"
    needs = frozenset({"embeddings"})
    tuned: ClassVar = {"learning_rate": 1e-3}
    grid: ClassVar = {"learning_rate": (1e-4, 1e-3), "batch_size": (32, 128, 512)}

    dim: int = option("numbers per vector", 128, minimum=1)
    heads: int = option("of every attention; divides --dim", 4, minimum=1)
    hidden: int = option("width of the feed-forward networks", 256, minimum=1)
    layers: int = option("blocks of each stream before they meet", 1, minimum=1)
    cross_layers: int = option("blocks in which each stream reads the other", 4, minimum=1)
    max_history: int = option("how many items of a user are read", 10, minimum=1)
    dropout: float = option("in every block, below 1", 0.1, minimum=0)
    user_contrast: bool = option("users find themselves in the other stream", True)
    item_contrast: bool = option("states find the next item in the other stream", True)
    cross: bool = option("the streams read each other", True)
    gate: bool = option("mix both by a learned gate, else by their mean", True)
    id_only: bool = option("the stream of item ids alone", False)
    content_only: bool = option("the stream of contents alone", False)
    text_encoder: Path | None = option(
        "a folder with a transformers text encoder to train on the titles, in place of "
        "--embeddings",
        None,
    )
    max_tokens: int = option("of a title, with --text-encoder", 32, minimum=2)
    learning_rate: float = option("of Adam", 1e-4, minimum=0)
    batch_size: int = option("users per update, and each other's negatives", 128, minimum=1)
    epochs: int = option("at most", 200, minimum=1)
    patience: int = option("validations without improvement before training stops", 10, minimum=1)
    every: int = option("epochs from one validation to the next", 1, minimum=1)

    def __post_init__(self) -> None:
        if self.dropout >= 1:
            raise InputError(f"--dropout {self.dropout}: it must be below 1")
        if self.id_only and self.content_only:
            raise InputError("--id-only and --content-only leave nothing; give one of them")
        if self.id_only and self.text_encoder is not None:
            raise InputError("--id-only reads no texts; leave out --text-encoder")

    @property
    def required_inputs(self) -> frozenset[Need]:
        """The embeddings; the titles for a text encoder; nothing for ids alone."""
        if self.id_only:
            return frozenset()
        return frozenset({"texts"}) if self.text_encoder is not None else self.needs
