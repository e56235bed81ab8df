"""The HTTP service over a `Recommender`.

`app` has the routes, `requests` checks what is asked and shapes the answer, `batching` joins
waiting requests into one batch, `middleware` limits, counts and words problems.
"""

from lcrec.core.lazy import lazy_exports

_HOMES = {"Batcher": "batching", "RequestHandler": "requests", "create_app": "app"}
__all__ = sorted(_HOMES)
__getattr__ = lazy_exports(__name__, _HOMES)
