"""Games, one family per file."""

from .matrix import bimatrix, prisoners_dilemma, repeated

__all__ = ["bimatrix", "prisoners_dilemma", "repeated"]
