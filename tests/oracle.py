"""Brute-force oracle: averaged drifts and trajectories by explicit enumeration, in plain NumPy.

Nothing here is fast and nothing is shared with the package it checks. For n agents, states S and
joint actions A = A_1 x .. x A_n, with x all agents' parameters:

    pi_x(a|s)     = prod_i pi_i(a_i|s; x_i)
    P_x(s,s')     = sum_a pi_x(a|s) T(s'|s,a),       nu_x P_x = nu_x
    mu_x(s,a,s')  = nu_x(s) pi_x(a|s) T(s'|s,a)
    F(x)          = sum over (s,a,s') of mu_x(s,a,s') E[f(x; s,a,r,s') | s,a,s']

The parameters of one agent are a flat vector (any array of that size is accepted and read in C
order); `params_list` holds one per agent. Everything accepts complex parameters, so that `jacobian`
can differentiate by the complex step. Theory: Kerzreho 2025, arXiv 2506.21079.
"""

import itertools
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DenseGame:
    """A finite stochastic game given by the list of outcomes of every (state, joint action).

    Attributes:
        outcomes: maps (state, joint action tuple) to a list of (probability, next state, rewards
            of the n agents). Several outcomes may share a next state: finite random rewards.
        num_states: number of states S.
        num_actions: number of actions of each agent, (A_1, .., A_n).
        num_agents: number of agents n.
    """

    outcomes: dict
    num_states: int
    num_actions: tuple
    num_agents: int

    def __post_init__(self):
        assert len(self.num_actions) == self.num_agents
        assert set(self.outcomes) == set(itertools.product(self.states(), self.joint_actions()))
        for outcomes in self.outcomes.values():
            assert abs(sum(probability for probability, _, _ in outcomes) - 1) < 1e-8
            for probability, next_state, rewards in outcomes:
                assert probability >= 0
                assert 0 <= next_state < self.num_states
                assert len(rewards) == self.num_agents

    @classmethod
    def from_dense(cls, T, R):
        """Builds the game from arrays; outcomes of probability zero are left out.

        Args:
            T: transition kernel, [S, A_1..A_n, S].
            R: rewards, [S, A_1..A_n, n] or [S, A_1..A_n, S, n].
        """
        T, R = np.asarray(T), np.asarray(R)
        num_states, num_actions = T.shape[0], T.shape[1:-1]
        num_agents = len(num_actions)
        assert T.shape[-1] == num_states
        assert R.shape in ((*T.shape[:-1], num_agents), (*T.shape, num_agents))
        outcomes = {}
        for s in range(num_states):
            for a in itertools.product(*map(range, num_actions)):
                outcomes[s, a] = []
                for t in range(num_states):
                    rewards = R[(s, *a, t)] if R.ndim == T.ndim + 1 else R[(s, *a)]
                    if T[(s, *a, t)] != 0:
                        outcomes[s, a].append((T[(s, *a, t)], t, rewards))
        return cls(outcomes, num_states, num_actions, num_agents)

    def states(self):
        """Returns the range of states."""
        return range(self.num_states)

    def joint_actions(self):
        """Returns all joint actions, as tuples in C order."""
        return list(itertools.product(*map(range, self.num_actions)))

    def transition_kernel(self):
        """Returns T, [S, A_1..A_n, S], outcomes with the same next state added up."""
        T = np.zeros((self.num_states, *self.num_actions, self.num_states))
        for (s, a), outcomes in self.outcomes.items():
            for probability, t, _ in outcomes:
                T[(s, *a, t)] += probability
        return T


def softmax(x):
    """Returns exp(x) / sum(exp(x)); holomorphic where x is complex."""
    x = np.asarray(x)
    weights = np.exp(x - x.real.max())
    return weights / weights.sum()


def maximum(x):
    """Returns the entry of largest real part.

    At an exact tie the value is the tied one and the complex-step derivative (the imaginary part)
    is the mean over the tied branches.
    """
    x = np.asarray(x)
    largest = x.real.max()
    if not np.iscomplexobj(x):
        return largest
    return largest + 1j * x.imag[x.real == largest].mean()


def eps_softmax(row, tau, eps):
    """Returns (1-eps) softmax(row/tau) + eps/A, [A]."""
    return (1 - eps) * softmax(row / tau) + eps / len(row)


@dataclass(frozen=True)
class TableLearner:
    """What learners with one table Q[s,a] and an eps-softmax policy share.

    Attributes:
        alpha: learning rate, inside the increment.
        gamma: discount factor.
        tau: temperature, positive.
        eps: exploration, in [0, 1].
    """

    alpha: float
    gamma: float
    tau: float
    eps: float
    needs_next_action = False

    def num_params(self, game, agent):
        """Returns the size of the agent's flat parameter vector."""
        return game.num_states * game.num_actions[agent]

    def table(self, params, game, agent):
        """Returns Q, [S, A_i]."""
        return np.reshape(params, (game.num_states, game.num_actions[agent]))

    def policy(self, params, game, agent, state):
        """Returns the probability of each own action in `state`, [A_i]."""
        return eps_softmax(self.table(params, game, agent)[state], self.tau, self.eps)

    def next_value(self, params, game, agent, next_state, next_action_own):
        """Returns the learner's value of the next state, a scalar."""
        raise NotImplementedError

    def increment(
        self, params, game, agent, state, joint_action, reward, next_state, next_action_own
    ):
        """Returns the increment of the flat parameter vector for one transition, dense.

        Args:
            params: the agent's parameters.
            game: the game.
            agent: index of the agent.
            state: state s.
            joint_action: joint action a, a tuple.
            reward: the agent's own reward, a scalar.
            next_state: next state s'.
            next_action_own: the agent's own next action; only Sarsa reads it.
        """
        Q = self.table(params, game, agent)
        own = joint_action[agent]
        value = self.next_value(params, game, agent, next_state, next_action_own)
        f = np.zeros_like(Q, dtype=np.result_type(Q, float))
        f[state, own] = self.alpha * (reward + self.gamma * value - Q[state, own])
        return f.ravel()


class QLearning(TableLearner):
    """f[s,a] = alpha (r + gamma max_b Q(s',b) - Q(s,a))."""

    def next_value(self, params, game, agent, next_state, next_action_own):
        return maximum(self.table(params, game, agent)[next_state])


class ExpectedSarsa(TableLearner):
    """f[s,a] = alpha (r + gamma sum_b pi(b|s') Q(s',b) - Q(s,a))."""

    def next_value(self, params, game, agent, next_state, next_action_own):
        policy = self.policy(params, game, agent, next_state)
        return sum(policy * self.table(params, game, agent)[next_state])


class Sarsa(TableLearner):
    """f[s,a] = alpha (r + gamma Q(s',a') - Q(s,a)), a' the next own action."""

    needs_next_action = True

    def next_value(self, params, game, agent, next_state, next_action_own):
        return self.table(params, game, agent)[next_state, next_action_own]


class CounterfactualQLearning(TableLearner):
    """f[s,b] = alpha (E[r_i + gamma max_c Q(s',c) | s, (b, a_-i)] - Q(s,b)) for every own b."""

    def increment(
        self, params, game, agent, state, joint_action, reward, next_state, next_action_own
    ):
        """Returns the dense increment; see `TableLearner.increment`. The reward is not read."""
        Q = self.table(params, game, agent)
        f = np.zeros_like(Q, dtype=np.result_type(Q, float))
        for b in range(game.num_actions[agent]):
            a = (*joint_action[:agent], b, *joint_action[agent + 1 :])
            target = 0
            for probability, t, rewards in game.outcomes[state, a]:
                target += probability * (rewards[agent] + self.gamma * maximum(Q[t]))
            f[state, b] = self.alpha * (target - Q[state, b])
        return f.ravel()


@dataclass(frozen=True)
class ActorCritic:
    """Actor-critic with parameters theta[s,a] in C order, then V[s].

    delta = r + gamma V(s') - V(s);  V(s) += alpha_v delta;
    theta(s,b) += alpha delta w (1{a=b} - p_b),  p = softmax(theta[s]/tau),
    pi = (1-eps) p + eps/A,  w = (1-eps) p_a / (tau pi_a).

    Attributes:
        alpha: actor's learning rate.
        alpha_v: critic's learning rate.
        gamma: discount factor.
        tau: temperature, positive.
        eps: exploration, in [0, 1].
    """

    alpha: float
    alpha_v: float
    gamma: float
    tau: float
    eps: float
    needs_next_action = False

    def num_params(self, game, agent):
        """Returns the size of the agent's flat parameter vector."""
        return game.num_states * (game.num_actions[agent] + 1)

    def tables(self, params, game, agent):
        """Returns theta, [S, A_i], and V, [S]."""
        params, size = np.ravel(params), game.num_states * game.num_actions[agent]
        return params[:size].reshape(game.num_states, game.num_actions[agent]), params[size:]

    def policy(self, params, game, agent, state):
        """Returns the probability of each own action in `state`, [A_i]."""
        return eps_softmax(self.tables(params, game, agent)[0][state], self.tau, self.eps)

    def increment(
        self, params, game, agent, state, joint_action, reward, next_state, next_action_own
    ):
        """Returns the dense increment; see `TableLearner.increment`."""
        theta, V = self.tables(params, game, agent)
        own = joint_action[agent]
        p = softmax(theta[state] / self.tau)
        pi = self.policy(params, game, agent, state)
        weight = (1 - self.eps) * p[own] / (self.tau * pi[own])
        delta = reward + self.gamma * V[next_state] - V[state]
        f_theta = np.zeros_like(theta, dtype=np.result_type(theta, float))
        f_V = np.zeros_like(V, dtype=np.result_type(V, float))
        f_V[state] = self.alpha_v * delta
        for b in range(game.num_actions[agent]):
            f_theta[state, b] = self.alpha * delta * weight * ((own == b) - p[b])
        return np.concatenate([f_theta.ravel(), f_V])


def split(game, learners, flat):
    """Splits a flat vector, [d], into the list of the agents' flat parameter vectors."""
    sizes = [learner.num_params(game, i) for i, learner in enumerate(learners)]
    assert np.shape(flat) == (sum(sizes),)
    return np.split(np.asarray(flat), np.cumsum(sizes)[:-1])


def joint_policy(game, learners, params_list):
    """Returns pi_x(a|s) = prod_i pi_i(a_i|s; x_i), [S, A_1..A_n]."""
    pi = np.ones((game.num_states, *game.num_actions), dtype=np.result_type(float, *params_list))
    for s in game.states():
        policies = [
            learner.policy(params, game, i, s)
            for i, (learner, params) in enumerate(zip(learners, params_list, strict=True))
        ]
        for a in game.joint_actions():
            for i in range(game.num_agents):
                pi[(s, *a)] *= policies[i][a[i]]
    return pi


def state_chain(game, pi):
    """Returns P(s,s') = sum_a pi(a|s) T(s'|s,a), [S, S], for a joint policy [S, A_1..A_n]."""
    P = np.zeros((game.num_states, game.num_states), dtype=pi.dtype)
    for (s, a), outcomes in game.outcomes.items():
        for probability, t, _ in outcomes:
            P[s, t] += pi[(s, *a)] * probability
    return P


def stationary_distribution(P):
    """Returns the law nu with nu P = nu and sum(nu) = 1, [S].

    Real chains: least squares on [P^T - I; 1] nu = [0; 1]. Complex ones (complex step): the balance
    equations add up to zero, so the first is dropped and the square system solved.

    Raises:
        ValueError: if a real chain has more than one stationary law.
    """
    size = len(P)
    A = np.vstack([P.T - np.eye(size), np.ones((1, size))])
    b = np.append(np.zeros(size), 1.0)
    if np.iscomplexobj(P):
        return np.linalg.solve(A[1:], b[1:])
    nu, _, rank, _ = np.linalg.lstsq(A, b, rcond=None)
    if rank < size:
        raise ValueError("the stationary law is not unique")
    return nu


def occupation_measure(game, learners, params_list):
    """Returns mu_x(s,a,s') = nu_x(s) pi_x(a|s) T(s'|s,a), [S, A_1..A_n, S]."""
    pi = joint_policy(game, learners, params_list)
    nu = stationary_distribution(state_chain(game, pi))
    mu = np.zeros((game.num_states, *game.num_actions, game.num_states), dtype=pi.dtype)
    for (s, a), outcomes in game.outcomes.items():
        for probability, t, _ in outcomes:
            mu[(s, *a, t)] += nu[s] * pi[(s, *a)] * probability
    return mu


def expected_rewards(game, learners, params_list):
    """Returns each agent's mean reward per step under the stationary law, [n]."""
    pi = joint_policy(game, learners, params_list)
    nu = stationary_distribution(state_chain(game, pi))
    mean = np.zeros(game.num_agents, dtype=pi.dtype)
    for (s, a), outcomes in game.outcomes.items():
        for probability, _, rewards in outcomes:
            for i in range(game.num_agents):
                mean[i] += nu[s] * pi[(s, *a)] * probability * rewards[i]
    return mean


def joint_increment(game, learners, params_list, s, a, rewards, t, next_action):
    """Returns all agents' increments for one transition as one flat vector, [d].

    `next_action` is the next joint action, or None when no learner reads it.
    """
    return np.concatenate(
        [
            learner.increment(
                params,
                game,
                i,
                s,
                a,
                rewards[i],
                t,
                None if next_action is None else next_action[i],
            )
            for i, (learner, params) in enumerate(zip(learners, params_list, strict=True))
        ]
    )


def drift(game, learners, params_list):
    """Returns the averaged drift F(x) as one flat vector, agent by agent, [d].

    With a Sarsa learner the sum runs over (s, a, s', a') with weight mu(s,a,s') pi(a'|s').
    """
    pi = joint_policy(game, learners, params_list)
    nu = stationary_distribution(state_chain(game, pi))
    sarsa = any(learner.needs_next_action for learner in learners)
    F = 0
    for (s, a), outcomes in game.outcomes.items():
        for probability, t, rewards in outcomes:
            weight = nu[s] * pi[(s, *a)] * probability
            for b in game.joint_actions() if sarsa else [None]:
                f = joint_increment(game, learners, params_list, s, a, rewards, t, b)
                F = F + weight * (pi[(t, *b)] if sarsa else 1) * f
    return F


def drift_full_chain(game, learners, params_list):
    """Returns the same drift from the stationary law of the chain over whole events, [d].

    The chain over E = S x A x S moves from (s,a,s') to (s',a',s'') with probability
    pi(a'|s') T(s''|s',a'). With a Sarsa learner E = S x A x S x A, and (s,a,s',a') is followed by
    (s',a',s'',a'') with probability T(s''|s',a') pi(a''|s''). The law solves one dense |E| x |E|
    problem, so that no product formula for mu enters.
    """
    pi = joint_policy(game, learners, params_list)
    T = game.transition_kernel()
    sarsa = any(learner.needs_next_action for learner in learners)
    next_actions = game.joint_actions() if sarsa else [None]
    events = list(
        itertools.product(game.states(), game.joint_actions(), game.states(), next_actions)
    )
    chain = np.zeros((len(events), len(events)), dtype=pi.dtype)
    for j, (_, _, s1, a1) in enumerate(events):
        for k, (s2, a2, t2, b2) in enumerate(events):
            if s1 != s2 or (sarsa and a1 != a2):
                continue
            policy = pi[(t2, *b2)] if sarsa else pi[(s2, *a2)]
            chain[j, k] = policy * T[(s2, *a2, t2)]
    law = stationary_distribution(chain)

    F = 0
    for weight, (s, a, t, b) in zip(law, events, strict=True):
        for probability, next_state, rewards in game.outcomes[s, a]:
            if next_state == t and probability > 0:  # the reward's law given (s, a, s')
                f = joint_increment(game, learners, params_list, s, a, rewards, t, b)
                F = F + weight * probability / T[(s, *a, t)] * f
    return F


def jacobian(game, learners, params_list, function=drift):
    """Returns DF[i,j] = dF_i/dx_j by the complex step, exact up to rounding, [d, d].

    At an exact tie of Q-learning's max it is the mean over the tied branches.

    Args:
        game: the game.
        learners: one learner per agent.
        params_list: real parameters, one flat vector per agent.
        function: what to differentiate: any of the functions of (game, learners, params_list).
    """
    step = 1e-100
    flat = np.concatenate([np.ravel(params) for params in params_list])
    columns = []
    for j in range(len(flat)):
        moved = flat.astype(complex)
        moved[j] += 1j * step
        columns.append(function(game, learners, split(game, learners, moved)).imag / step)
    return np.stack(columns, axis=-1)


def draw(rng, probabilities):
    """Draws an index by inverting the cumulative distribution function at one uniform."""
    u, cumulative, last = rng.random(), 0.0, None
    for index, probability in enumerate(probabilities):
        if probability > 0:
            cumulative, last = cumulative + probability, index
            if u < cumulative:
                return index
    return last  # u fell in the rounding error at the top


def simulate_scalar(game, learners, params_list, steps, scale, rng, initial_state):
    """Runs one trajectory of X_{k+1} = X_k + f(X_k, g_k)/N, one step at a time.

    The policy that draws a_{k+1} reads X_{k+1}. With a Sarsa learner among them, all agents draw
    a_{k+1} before the update, hence from X_k, and then execute it.

    Args:
        game: the game.
        learners: one learner per agent.
        params_list: X_0, one flat vector per agent.
        steps: number of steps.
        scale: N.
        rng: a `numpy.random.Generator`.
        initial_state: s_0.

    Returns:
        The final parameters (list of flat vectors) and how often each state was acted in, [S]:
        the counts of s_0 .. s_{steps-1}.
    """
    sarsa = any(learner.needs_next_action for learner in learners)
    xs = [np.array(params, dtype=float).ravel() for params in params_list]

    def act(state):
        return tuple(
            draw(rng, learner.policy(x, game, i, state))
            for i, (learner, x) in enumerate(zip(learners, xs, strict=True))
        )

    visits = np.zeros(game.num_states, dtype=int)
    state, action = initial_state, act(initial_state)
    for _ in range(steps):
        visits[state] += 1
        outcomes = game.outcomes[state, action]
        _, next_state, rewards = outcomes[draw(rng, [outcome[0] for outcome in outcomes])]
        next_action = act(next_state) if sarsa else None
        f = joint_increment(game, learners, xs, state, action, rewards, next_state, next_action)
        xs = [x + part / scale for x, part in zip(xs, split(game, learners, f), strict=True)]
        state, action = next_state, next_action if sarsa else act(next_state)
    return xs, visits


def noise(game, learners, params_list):
    """Returns the Poisson solution v at the core states and the noise covariance Sigma, [d, d].

    Everything from the chain over whole events e = (core, outcome, next core), |E| x |E|: with
    centred increments f and `D = sum over k of (P^k - 1 mu)`, Sigma is the sum of all
    autocovariances, `f^T diag(mu) D f` plus its transpose less `f^T diag(mu) f`, and v(c) the mean
    of `D f` over the events from c. Cores are states, or (state, joint action) with a Sarsa
    learner.
    """
    pi = joint_policy(game, learners, params_list)
    sarsa = any(learner.needs_next_action for learner in learners)
    actions = game.joint_actions()
    chance, source, target, increments = [], [], [], []
    for (s, a), outcomes in game.outcomes.items():
        for probability, t, rewards in outcomes:
            for b in actions if sarsa else [None]:
                here, ahead = (s, a), (t, b)
                chance.append(probability * (pi[(t, *b)] if sarsa else pi[(s, *a)]))
                source.append(here if sarsa else s)
                target.append(ahead if sarsa else t)
                increments.append(joint_increment(game, learners, params_list, s, a, rewards, t, b))
    chance, increments = np.array(chance), np.array(increments)
    follows = np.array([[x == y for y in source] for x in target])
    P = follows * chance
    mu = stationary_distribution(P)
    centred = increments - mu @ increments
    size = len(mu)
    D = np.linalg.inv(np.eye(size) - P + np.outer(np.ones(size), mu)) - mu
    ahead = D @ centred
    A = centred.T @ (mu[:, None] * ahead)
    Sigma = A + A.T - centred.T @ (mu[:, None] * centred)
    cores = list(itertools.product(game.states(), actions)) if sarsa else list(game.states())
    v = np.array([sum(chance[e] * ahead[e] for e in range(size) if source[e] == c) for c in cores])
    return v, Sigma
