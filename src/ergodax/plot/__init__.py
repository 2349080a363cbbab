"""Figures of results.

Every function but `comparison` draws on one axes, `ax`, or on those of a new figure as wide as a
column of an article, and returns them: `.figure.savefig("name.pdf")` writes the figure.

The ODE is drawn as lines, the ensemble's mean as markers, two standard deviations on either side of
it as a band, single runs as thin lines. An action, state or attractor keeps its colour (Okabe and
Ito 2008, safe for colour-blind readers), line style and marker everywhere, so that figures stay
readable in print. A stable rest point is a filled circle, an unstable one a hollow circle, one that
the linearisation does not decide a cross. Nothing global is changed: figures are plain
`matplotlib.figure.Figure` objects.
"""

import lazy_loader

# What the stub beside this file imports is imported here when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
