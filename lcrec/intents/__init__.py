"""What users like and look for, written from their reviews by a language model or by counting.

`requests` makes one request per user, keeps a journal, checks the answers and refuses texts that
give away the titles of items, `endpoint` sends them to a server, `local` to a model that runs here,
and `keywords` does without a model.
"""

from lcrec.core.lazy import lazy_exports

_HOMES = {
    "EndpointWriter": "endpoint",
    "LocalWriter": "local",
    "keyword_texts": "keywords",
    "make_requests": "requests",
    "write_texts": "requests",
}
__all__ = sorted(_HOMES)
__getattr__ = lazy_exports(__name__, _HOMES)
