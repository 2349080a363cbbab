"""Learning agents in Markov games: simulated, and solved as averaged differential equations."""

import lazy_loader

# What the stub beside this file imports is imported here when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
