"""Games, one family per file."""

from .matrix import prisoners_dilemma, repeated

__all__ = ["prisoners_dilemma", "repeated"]
