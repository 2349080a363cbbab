"""More learners for the oracle, written from their sources in plain NumPy; see `oracle`."""

import itertools
from dataclasses import dataclass

import numpy as np

from oracle import DenseGame, TableLearner, eps_softmax, maximum, softmax


class FrequencyAdjustedQLearning(TableLearner):
    """Kaisers and Tuyls 2010: the step of Q-learning times min(beta / pi(a|s), 1)."""

    beta = 0.3

    def increment(
        self, params, game, agent, state, joint_action, reward, next_state, next_action_own
    ):
        Q = self.table(params, game, agent)
        own = joint_action[agent]
        share = min(self.beta / self.policy(params, game, agent, state)[own], 1)
        f = np.zeros_like(Q)
        target = reward + self.gamma * maximum(Q[next_state])
        f[state, own] = share * self.alpha * (target - Q[state, own])
        return f.ravel()


@dataclass(frozen=True)
class _Table:
    """A learner of one table in C order, with a rate and an exploration."""

    alpha: float
    eps: float
    needs_next_action = False

    def num_params(self, game, agent):
        return game.num_states * game.num_actions[agent]

    def policy(self, params, game, agent, state):
        count = game.num_actions[agent]
        row = np.reshape(params, (-1, count))[state]
        return (1 - self.eps) * self.chosen(row) + self.eps / count

    def chosen(self, row):
        return row

    def increment(
        self, params, game, agent, state, joint_action, reward, next_state, next_action_own
    ):
        table = np.reshape(params, (-1, game.num_actions[agent]))
        f = np.zeros_like(table)
        f[state] = self.row_step(
            table[state], joint_action[agent], reward, self.policy(params, game, agent, state)
        )
        return f.ravel()


class Cross(_Table):
    """x_a += alpha r (1 - x_a), x_b -= alpha r x_b."""

    def row_step(self, row, own, reward, policy):
        step = -self.alpha * reward * row
        step[own] = self.alpha * reward * (1 - row[own])
        return step


class BushMosteller(_Table):
    """Macy and Flache 2002: x_a += s (1 - x_a) or s x_a; the others keep their proportions."""

    aspiration = 0.5

    def row_step(self, row, own, reward, policy):
        stimulus = self.alpha * (reward - self.aspiration)
        new = row[own] + stimulus * ((1 - row[own]) if stimulus >= 0 else row[own])
        after = row * (1 - new) / (1 - row[own])
        after[own] = new
        return after - row


class RothErev(_Table):
    """Erev and Roth 1998, with experimentation .2 and forgetting .1."""

    def chosen(self, row):
        return row / sum(row)

    def row_step(self, row, own, reward, policy):
        earned = np.full(len(row), 0.2 * reward / (len(row) - 1))
        earned[own] = 0.8 * reward
        return self.alpha * (earned - 0.1 * row)


class ExponentialWeights(_Table):
    """theta_a += eta r / pi_a under a softmax."""

    def chosen(self, row):
        return softmax(row)

    def row_step(self, row, own, reward, policy):
        step = np.zeros(len(row))
        step[own] = self.alpha * reward / policy[own]
        return step


class ProjectedGradient(ExponentialWeights):
    """The same under the projection on the simplex, found by bisection."""

    def chosen(self, row):
        low, high = row.min() - 1, row.max()
        for _ in range(200):
            level = (low + high) / 2
            low, high = (level, high) if np.maximum(row - level, 0).sum() > 1 else (low, level)
        return np.maximum(row - low, 0)


class Reinforce(_Table):
    """theta += alpha (r - .3) times the numerical gradient of log pi_a, temperature 1."""

    def chosen(self, row):
        return softmax(row)

    def row_step(self, row, own, reward, policy):
        def log_policy(row):
            return np.log(eps_softmax(row, 1.0, self.eps)[own])

        score = [log_policy(row + 1e-30j * unit).imag / 1e-30 for unit in np.eye(len(row))]
        return self.alpha * (reward - 0.3) * np.array(score)


@dataclass(frozen=True)
class FallingRate:
    """Q-learning with rate alpha / n(s,a)^omega: Q, then the numbers of visits."""

    alpha: float
    gamma: float
    tau: float
    eps: float
    omega: float
    needs_next_action = False

    def num_params(self, game, agent):
        return 2 * game.num_states * game.num_actions[agent]

    def tables(self, params, game, agent):
        return np.reshape(params, (2, game.num_states, game.num_actions[agent]))

    def policy(self, params, game, agent, state):
        return eps_softmax(self.tables(params, game, agent)[0, state], self.tau, self.eps)

    def increment(
        self, params, game, agent, state, joint_action, reward, next_state, next_action_own
    ):
        (Q, n), own = self.tables(params, game, agent), joint_action[agent]
        f = np.zeros((2, *Q.shape))
        target = reward + self.gamma * Q[next_state].max()
        f[0, state, own] = self.alpha / n[state, own] ** self.omega * (target - Q[state, own])
        f[1, state, own] = 1
        return f.ravel()


def tossed(game, tossing=(0, 1)):
    """The game in which some agents toss a fair coin: their rewards are pairs (reward, coin)."""
    outcomes = {}
    for place, own in game.outcomes.items():
        outcomes[place] = []
        for (p, t, rewards), coins in itertools.product(
            own, itertools.product(range(2), repeat=len(tossing))
        ):
            seen = list(rewards)
            for agent, coin in zip(tossing, coins, strict=True):
                seen[agent] = (rewards[agent], coin)
            outcomes[place].append((p / 2 ** len(tossing), t, seen))
    return DenseGame(outcomes, game.num_states, game.num_actions, game.num_agents)


class DoubleQLearning(TableLearner):
    """Van Hasselt 2010, in `tossed` games: both tables in turn; greedy, or by a softmax."""

    selection = None

    def num_params(self, game, agent):
        return 2 * super().num_params(game, agent)

    def policy(self, params, game, agent, state):
        A, B = np.split(np.ravel(params), 2)
        return super().policy((A + B) / 2, game, agent, state)

    def increment(
        self, params, game, agent, state, joint_action, reward, next_state, next_action_own
    ):
        (reward, coin), own = reward, joint_action[agent]
        tables = [self.table(half, game, agent) for half in np.split(np.ravel(params), 2)]
        learns, values = tables if coin == 0 else tables[::-1]
        if self.selection is None:
            value = values[next_state][learns[next_state].argmax()]
        else:
            value = softmax(learns[next_state] / self.selection) @ values[next_state]
        step = np.zeros_like(learns)
        step[state, own] = self.alpha * (reward + self.gamma * value - learns[state, own])
        parts = [step, np.zeros_like(step)]
        return np.ravel(parts if coin == 0 else parts[::-1])


class SoftDoubleQLearning(DoubleQLearning):
    """The same with a softmax of temperature .4 that selects."""

    selection = 0.4


def lenient_rewards(table, others, draws):
    """Expected maximum of `draws` rewards of every action, by all sequences of the others' actions.

    Args:
        table: rewards by own action and joint action of the others, `[A, B]`.
        others: probabilities of the latter, `[B]`.
        draws: how many.
    """
    expected = np.zeros(len(table))
    for sequence in itertools.product(range(len(others)), repeat=draws):
        chance = np.prod([others[b] for b in sequence])
        expected += chance * table[:, list(sequence)].max(axis=1)
    return expected
