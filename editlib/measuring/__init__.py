"""What an edit did, and what in the model let it: scores, tasks, causal traces, keys and the first position."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["anatomy", "scores"])
