"""Decoding: from a history or a query to ranked items of the catalogue.

`trie` holds the catalogue as a prefix tree of item tokens, `item_filter` narrows it per request,
`beams` is the beam search with a shared prompt, `hf_generate` the same through `generate`, and
`search` chooses between them. `requests` turns requests into batches of token ids. `Recommender`
(`recommender`) joins all of it, `calibration` and `fusion` change what it ranks; `one_request` and
`many_users` are the two uses of the command.
"""

from lcrec.core.lazy import lazy_exports

_HOMES = {
    "ItemTrie": "trie",
    "LeafFilter": "item_filter",
    "Recommender": "recommender",
    "beam_search": "beams",
    "search": "search",
}
__all__ = sorted(_HOMES)
__getattr__ = lazy_exports(__name__, _HOMES)
