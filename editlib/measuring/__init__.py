"""What an edit did: scores, downstream tasks, causal traces, denominators and how keys separate."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["scores"])
