"""The studio: a page in the browser to look at a trained recommender, its index and its prompts.

`workbench` answers what the page asks, with the library's functions and `parts.html`; `page` lays
the answers out in tabs (Gradio); `guard` checks the token and lets the page load nothing from
elsewhere. Nothing here ranks, counts or renders by itself.
"""

from lcrec.core.lazy import lazy_exports

_HOMES = {"Workbench": "workbench", "build_page": "page", "create_app": "page"}
__all__ = sorted(_HOMES)
__getattr__ = lazy_exports(__name__, _HOMES)
