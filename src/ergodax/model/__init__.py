"""A game, a learner per agent, and the two wrapped; neither averages nor simulates."""

from . import schedules as schedules
