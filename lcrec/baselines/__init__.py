"""Methods to compare with, behind one contract; `python -m lcrec.baselines NAME` runs one.

A method is one file here with a subclass of `Baseline`, and one line in `METHODS`.
"""

import importlib
from dataclasses import dataclass

from lcrec.baselines.base import Baseline
from lcrec.core.errors import InputError, closest

__all__ = ["METHODS", "Method", "find_method"]


@dataclass(frozen=True)
class Method:
    """Where a method's class is, and what it does in a line.

    The class is imported when it is used: most need torch, and a list of names does not.
    """

    path: str
    summary: str

    def load(self) -> type[Baseline]:
        """Return the class."""
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(f"lcrec.baselines.{module}"), name)


METHODS: dict[str, Method] = {
    "popularity": Method(
        "methods.popularity:Popularity", "the most bought first, the same for everyone"
    ),
    "cooccurrence": Method(
        "methods.cooccurrence:Cooccurrence",
        "what stood after or near the user's last items elsewhere",
    ),
    "itemknn": Method(
        "methods.itemknn:ItemKNN", "what the same customers bought as well (Sarwar et al. 2001)"
    ),
    "ease": Method("methods.ease:EASE", "a linear model of all items, in closed form (Steck 2019)"),
    "mf": Method(
        "methods.lightgcn:MatrixFactorisation",
        "a vector per user and item, BPR (Rendle et al. 2009)",
    ),
    "lightgcn": Method(
        "methods.lightgcn:LightGCN", "vectors smoothed over the graph of purchases (He et al. 2020)"
    ),
    "fusion": Method("methods.fusion:Fusion", "purchases and texts side by side, norm-concat-norm"),
    "collabcontext": Method(
        "methods.collabcontext:CollabContext",
        "text and purchases teach each other in turn (CARec, 2024)",
    ),
    "text-cosine": Method(
        "methods.text_cosine:TextCosine", "items whose text is like the history's"
    ),
    "linear-mapping": Method(
        "methods.alpharec:LinearMapping",
        "a matrix on the vectors of item texts (Sheng et al. 2025)",
    ),
    "alpharec": Method(
        "methods.alpharec:AlphaRec",
        "item texts mapped by a network, then the graph (Sheng et al. 2025)",
    ),
    "sasrec": Method("methods.sasrec:SASRec", "a causal transformer (Kang and McAuley 2018)"),
    "bert4rec": Method(
        "methods.bert4rec:BERT4Rec", "a transformer that fills in masks (Sun et al. 2019)"
    ),
    "gru4rec": Method("methods.gru4rec:GRU4Rec", "a recurrent network (Hidasi et al. 2016)"),
    "fmlp": Method("methods.fmlp:FMLP", "learned filters over frequencies (Zhou et al. 2022)"),
    "caser": Method("methods.caser:Caser", "convolutions over the last items (Tang and Wang 2018)"),
    "hgn": Method("methods.hgn:HGN", "gates on features and items of a history (Ma et al. 2019)"),
    "fdsa": Method(
        "methods.fdsa:FDSA", "SASRec beside one that reads attributes (Zhang et al. 2019)"
    ),
    "s3rec": Method(
        "methods.s3rec:S3Rec", "SASRec after four tasks of pre-training (Zhou et al. 2020)"
    ),
    "tiger": Method(
        "methods.tiger:TIGER", "writes the codes of the next item (Rajput et al. 2023)"
    ),
    "p5cid": Method(
        "methods.p5cid:P5CID", "the same, codes from who bought what (Hua et al. 2023)"
    ),
    "tssr": Method(
        "methods.tssr:TSSR", "two streams, of ids and contents, that read each other (TSSR, 2024)"
    ),
}


def find_method(name: str) -> Method:
    """Return the method of this name.

    Raises:
        InputError: there is none.
    """
    if name not in METHODS:
        raise InputError(f"no method {name!r}{closest(name, METHODS)} ({', '.join(METHODS)})")
    return METHODS[name]
