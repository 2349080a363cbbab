"""Errors of the averaged ODE along a run, with a martingale that takes noise out of the weak one.

`M = 1/N sum over k of psi(t_k, e_k) - E[psi(t_k, e) | X_k, c_k]`, with
`psi(t, e) = l . Y(T, t) (f(x_t, e) + v(x_t, c'))`, Y the fundamental matrix of the linearised
ODE and v the Poisson solution. Its mean is zero for any psi, and `l . (X - x) - M` has a standard
deviation of order 1 / N. Source: derived for this package (compare Henderson and Glynn 2002,
"Approximating martingales for variance reduction in Markov process simulation").
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..base.compiling import compiled
from ..model.wrapped import WrappedGame
from ..second_order.noise import event_scores, poisson
from ..second_order.prediction import Fluctuations
from ..second_order.required_scale import CELLS, Linearised
from ..simulation.recorders import AbstractRecorder

_BINS = 256  # of the table of psi, in time


class Errors(NamedTuple):
    """Errors of one run so far.

    Attributes:
        largest: `max_i |X_i - x_i|`, its supremum over the steps.
        along: `l . (X - x)` after the last step.
        martingale: N M.
    """

    largest: Float[Array, ""]
    along: Float[Array, ""]
    martingale: Float[Array, ""]


class ControlVariate(AbstractRecorder):
    """Reports `sqrt(N) sup |X - x|`, `N l . (X - x)` and `N (l . (X - x) - M)`, `[3]`.

    Attributes:
        wrapped: the game and its learners.
        scale: N.
        end: T.
        path: x on a grid of M cells in time, each leaf `[M + 1, ...]`.
        velocity: F(x) there, likewise.
        direction: l, like the parameters.
        scores: psi on B bins in time, `[B, S, A_1, .., A_n, K]`, and the next joint action if a
            learner needs it.
        means: its mean over outcomes, `[B, S, A_1, .., A_n]`; None if a learner needs its next
            action, since psi then depends on how that is drawn.
    """

    wrapped: WrappedGame
    scale: Float[Array, ""]
    end: Float[Array, ""]
    path: Any
    velocity: Any
    direction: Any
    scores: Float[Array, "B *place"]
    means: Float[Array, "B *core"] | None

    def init(self, wrapped, params):
        """A run starts on the path."""
        return Errors(*jnp.zeros((3,)))

    def update(self, state, event, before, after):
        """Compares the run with the path at the end of the step; adds what psi is surprised by."""
        step = jnp.round(event.time * self.scale)
        bins = self.scores.shape[0]
        place_in_time = (step - 1) / self.scale / self.end * bins
        bin_ = jnp.minimum(place_in_time.astype(int), bins - 1)
        place = (event.state, *event.joint_action, event.outcome)
        if event.next_action is not None:
            place = (*place, *event.next_action)
        surprise = self.scores[bin_][place] - self._expected(bin_, event, before)
        distance = jax.tree.map(jnp.subtract, after, self._path_at(step / self.scale))
        largest = [jnp.abs(leaf).max() for leaf in jax.tree.leaves(distance)]
        along = jax.tree.map(lambda d, leaf: jnp.sum(d * leaf), self.direction, distance)
        return Errors(
            jnp.maximum(state.largest, jnp.stack(largest).max()),
            jax.tree.reduce(jnp.add, along),
            state.martingale + surprise,
        )

    def report(self, state):
        """The three errors so far, rescaled; the run goes on."""
        plain = self.scale * state.along
        strong = jnp.sqrt(self.scale) * state.largest
        return jnp.stack([strong, plain, plain - state.martingale]), state

    def _expected(self, bin_, event, params):
        """Mean of psi over what could have happened in the step."""
        if self.means is not None:
            return jnp.sum(self._joint_policy(params, event.state) * self.means[bin_][event.state])
        game, here = self.wrapped.game, (event.state, *event.joint_action)
        ahead = jax.vmap(lambda s: self._joint_policy(params, s))(game.successors[here])
        ahead = jnp.sum((ahead * self.scores[bin_][here]).reshape(game.num_successors, -1), axis=1)
        return jnp.sum(game.probabilities[here] * ahead)

    def _joint_policy(self, params, state):
        joint = jnp.ones(())
        for learner, own in zip(self.wrapped.learners, params, strict=True):
            joint = jnp.multiply.outer(joint, learner.policy(own, state))
        return joint

    def _path_at(self, t):
        """x(t) by cubic Hermite interpolation."""
        cells = jax.tree.leaves(self.path)[0].shape[0] - 1
        width = self.end / cells
        cell = jnp.clip((t / width).astype(int), 0, cells - 1)
        u = t / width - cell.astype(width.dtype)

        def of_leaf(path, velocity):
            begin, end = width * velocity[cell], width * velocity[cell + 1]
            change = path[cell + 1] - path[cell]
            bend = u * (3 * change - 2 * begin - end + u * (begin + end - 2 * change))
            return path[cell] + u * (begin + bend)

        return jax.tree.map(of_leaf, self.path, self.velocity)


def control_variate(
    predicted: Fluctuations, velocity: np.ndarray, linear: Linearised, direction: np.ndarray
) -> ControlVariate:
    """The recorder of errors, at scale 1.

    Args:
        predicted: the path on a grid of `CELLS` cells.
        velocity: F(x) there, `[CELLS + 1, d]`.
        linear: the linearised ODE in these cells.
        direction: l, `[d]`.
    """
    adjoint = [direction]
    for propagator in linear.propagators[::-1]:
        adjoint.append(adjoint[-1] @ propagator)
    adjoint = np.array(adjoint[::-1])
    middles = np.arange(_BINS) * (CELLS // _BINS) + CELLS // _BINS // 2
    wrapped = predicted.wrapped
    game = wrapped.game
    params = jax.tree.map(lambda leaf: leaf[middles], predicted.params)
    scores = _scores(wrapped, params, jnp.asarray(adjoint[middles]))
    shape, means = game.successors.shape, None
    if wrapped.needs_next_action:
        shape = (*shape, *game.num_actions)
    scores = scores.reshape(_BINS, *shape)
    if not wrapped.needs_next_action:
        # Outcomes are drawn whatever the parameters: their mean can be taken beforehand.
        means = jnp.sum(scores * game.probabilities[None], axis=-1)
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], predicted.params))
    return ControlVariate(
        wrapped=wrapped,
        scale=jnp.ones(()),
        end=jnp.asarray(predicted.ts[-1]),
        path=predicted.params,
        velocity=jax.vmap(unravel)(jnp.asarray(velocity)),
        direction=unravel(jnp.asarray(direction)),
        scores=scores,
        means=means,
    )


@compiled
def _scores(wrapped, params, adjoint):
    return jax.lax.map(
        lambda a: event_scores(wrapped, poisson(wrapped, a[0]), a[1]), (params, adjoint)
    )
