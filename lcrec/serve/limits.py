"""What the service allows; apart from it, so that options are read without loading it."""

from dataclasses import dataclass

from lcrec.core.config import option


@dataclass(frozen=True, kw_only=True)
class ServiceLimits:
    """How many requests wait and are answered together, how long they take, how large they are."""

    max_batch: int = option("requests answered together at most", 32, minimum=1)
    batch_wait: float = option("milliseconds a request waits for others to join", 2.0, minimum=0)
    max_queue: int = option("requests that may wait; the next is refused (503)", 256, minimum=1)
    timeout: float = option(
        "seconds until a request is given up (504), and to send its head or body",
        10.0,
        minimum=0.001,
    )
    max_body: int = option("bytes of a request at most (413)", 2**20, minimum=1)
    max_k: int = option("items of an answer at most", 100, minimum=1)
    max_history: int = option("items of a request's history at most", 1000, minimum=1)
    max_query: int = option("characters of a query at most", 2000, minimum=1)
