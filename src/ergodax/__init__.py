"""Learning agents in Markov games: simulated, and solved as averaged differential equations."""

from importlib.metadata import version

from . import games as games
from . import io as io
from . import learners as learners
from . import plot as plot
from .check import check_learner as check_learner
from .compare import Comparison as Comparison
from .compare import compare as compare
from .drift import drift as drift
from .drift import jacobian as jacobian
from .drift import occupation_measure as occupation_measure
from .flow import Solution as Solution
from .flow import solve as solve
from .game import MarkovGame as MarkovGame
from .learner import AbstractExploration as AbstractExploration
from .learner import AbstractLearner as AbstractLearner
from .learner import At as At
from .learner import EpsilonSoftmax as EpsilonSoftmax
from .learner import Transition as Transition
from .learner import hyper as hyper
from .learners import ActorCritic as ActorCritic
from .learners import CounterfactualQLearning as CounterfactualQLearning
from .learners import QLearning as QLearning
from .learners import Sarsa as Sarsa
from .results import RESULTS as RESULTS
from .simulate import Ensemble as Ensemble
from .simulate import Simulation as Simulation
from .simulate import simulate as simulate
from .stationary import stationary_distribution as stationary_distribution
from .wrapped import WrappedGame as WrappedGame

__version__ = version("ergodax")
