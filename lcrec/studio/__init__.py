"""The studio: a page in the browser to look at a trained recommender, its index and its prompts.

`workbench` answers what the page asks, with the library's functions and `parts.html`; `page` lays
the answers out in tabs (Gradio); `guard` checks the token and lets the page load nothing from
elsewhere. Nothing here ranks, counts or renders by itself.
"""
