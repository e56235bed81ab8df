"""The methods by the names that commands know them by."""

import importlib
import sys
from dataclasses import dataclass

from lcrec.baselines import settings
from lcrec.baselines.base import Baseline
from lcrec.baselines.settings import MethodSettings
from lcrec.core.device import pick_device
from lcrec.core.errors import InputError, closest


@dataclass(frozen=True)
class Method:
    """What can be set of a method, where its class is, and what it does in a line.

    The class is loaded when it is used: most need torch, and options are read without it.
    """

    settings: type[MethodSettings]
    path: str
    summary: str

    def make(
        self, settings: MethodSettings | None = None, seed: int = 0, device: str | None = None
    ) -> Baseline:
        """Return the method, not fitted, on `device` or the one that `pick_device` chooses.

        A method that is counted needs no torch, so nothing is chosen unless it has been loaded.
        """
        kind = self.load()
        if "torch" in sys.modules:
            device = str(pick_device(device))
        return kind(settings, seed=seed, device=device or "cpu")

    def load(self) -> type[Baseline]:
        """Return the class."""
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(f"lcrec.baselines.methods.{module}"), name)


METHODS: dict[str, Method] = {
    "popularity": Method(
        settings.PopularitySettings,
        "closed_form:Popularity",
        "the most bought first, the same for everyone",
    ),
    "cooccurrence": Method(
        settings.CooccurrenceSettings,
        "closed_form:Cooccurrence",
        "what stood after or near the user's last items elsewhere",
    ),
    "itemknn": Method(
        settings.ItemKNNSettings,
        "closed_form:ItemKNN",
        "what the same customers bought as well (Sarwar et al. 2001)",
    ),
    "ease": Method(
        settings.EASESettings,
        "closed_form:EASE",
        "a linear model of all items, in closed form (Steck 2019)",
    ),
    "mf": Method(
        settings.MatrixFactorisationSettings,
        "lightgcn:MatrixFactorisation",
        "a vector per user and item, BPR (Rendle et al. 2009)",
    ),
    "lightgcn": Method(
        settings.LightGCNSettings,
        "lightgcn:LightGCN",
        "vectors smoothed over the graph of purchases (He et al. 2020)",
    ),
    "fusion": Method(
        settings.FusionSettings,
        "fusion:Fusion",
        "purchases and texts side by side, norm-concat-norm",
    ),
    "collabcontext": Method(
        settings.CollabContextSettings,
        "collabcontext:CollabContext",
        "text and purchases teach each other in turn (CARec, 2024)",
    ),
    "text-cosine": Method(
        settings.TextCosineSettings,
        "closed_form:TextCosine",
        "items whose text is like the history's",
    ),
    "linear-mapping": Method(
        settings.LinearMappingSettings,
        "alpharec:LinearMapping",
        "a matrix on the vectors of item texts (Sheng et al. 2025)",
    ),
    "alpharec": Method(
        settings.AlphaRecSettings,
        "alpharec:AlphaRec",
        "item texts mapped by a network, then the graph (Sheng et al. 2025)",
    ),
    "sasrec": Method(
        settings.SASRecSettings, "attention:SASRec", "a causal transformer (Kang and McAuley 2018)"
    ),
    "bert4rec": Method(
        settings.BERT4RecSettings,
        "attention:BERT4Rec",
        "a transformer that fills in masks (Sun et al. 2019)",
    ),
    "gru4rec": Method(
        settings.GRU4RecSettings,
        "without_attention:GRU4Rec",
        "a recurrent network (Hidasi et al. 2016)",
    ),
    "fmlp": Method(
        settings.FMLPSettings,
        "without_attention:FMLP",
        "learned filters over frequencies (Zhou et al. 2022)",
    ),
    "caser": Method(
        settings.CaserSettings,
        "without_attention:Caser",
        "convolutions over the last items (Tang and Wang 2018)",
    ),
    "hgn": Method(
        settings.HGNSettings,
        "without_attention:HGN",
        "gates on features and items of a history (Ma et al. 2019)",
    ),
    "fdsa": Method(
        settings.FDSASettings,
        "attributes:FDSA",
        "SASRec beside one that reads attributes (Zhang et al. 2019)",
    ),
    "s3rec": Method(
        settings.S3RecSettings,
        "attributes:S3Rec",
        "SASRec after four tasks of pre-training (Zhou et al. 2020)",
    ),
    "tiger": Method(
        settings.TIGERSettings,
        "generative:TIGER",
        "writes the codes of the next item (Rajput et al. 2023)",
    ),
    "p5cid": Method(
        settings.P5CIDSettings,
        "generative:P5CID",
        "the same, codes from who bought what (Hua et al. 2023)",
    ),
    "tssr": Method(
        settings.TSSRSettings,
        "tssr:TSSR",
        "two streams, of ids and contents, that read each other (TSSR, 2024)",
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
