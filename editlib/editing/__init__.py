"""Edits, what they need to know of a model, and the methods that make them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["methods", "stats"])
