"""The HTTP service over a `Recommender`.

`app` has the routes, `requests` checks what is asked and shapes the answer, `batching` joins
waiting requests into one batch, `middleware` limits, counts, logs and words problems. `loading`
says what is loaded, `live` replaces it while requests are in flight, `process` runs all that in one
process, and `workers` runs several of these on one port.
"""

from lcrec.core.lazy import lazy_exports

_HOMES = {"Batcher": "batching", "RequestHandler": "requests", "create_app": "app"}
__all__ = sorted(_HOMES)
__getattr__ = lazy_exports(__name__, _HOMES)
