"""The data folder: items, interactions, user texts, and the split into train, valid and test.

`folder` reads what `lcrec.prepare` or `lcrec.synthetic` wrote, `splits` decides which interactions
a stage may see, `user_texts` reads what users say of themselves and their reviews, `id_map` what
the shop calls its users and items, and `new_items` checks what joins a catalogue later. `shop`
makes the small synthetic shop of the quickstart.
"""

from lcrec.core.lazy import lazy_exports

_HOMES = {
    "EvalCases": "splits",
    "DataSet": "data_set",
    "Interactions": "folder",
    "Items": "folder",
    "Split": "splits",
    "UserTexts": "user_texts",
    "leave_one_out": "splits",
    "load_data": "data_set",
    "load_interactions": "folder",
    "load_items": "folder",
    "load_split": "splits",
    "load_user_texts": "user_texts",
}
__all__ = sorted(_HOMES)
__getattr__ = lazy_exports(__name__, _HOMES)
