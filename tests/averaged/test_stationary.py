import itertools
from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

import ergodax as ex
import oracle
from ergodax.averaged.stationary import (
    closed_classes,
    is_reducible,
    mixing_time,
    mixing_time_on_host,
    poisson_solver,
    stationary_law,
)
from ergodax.model.game import padding
from helpers import (
    assert_close,
    central_difference,
    make_learner,
    random_case,
    random_kernel,
    random_specs,
    unflatten,
)

SIZES = [5, 8, 9, 14]  # loops are written out up to 8 states


def exact_law(chain):
    """Stationary law of a float chain in rational arithmetic.

    Diagonal entries are taken to be one minus the others of their row.
    """
    size = len(chain)
    P = [[Fraction(float(p)) for p in row] for row in chain]
    # Columns of the balance equations, the first of them replaced by the normalisation.
    rows = [[P[i][j] for i in range(size)] + [Fraction(0)] for j in range(size)]
    for j in range(size):
        rows[j][j] = -sum(P[j][k] for k in range(size) if k != j)
    rows[0] = [Fraction(1)] * (size + 1)
    for k in range(size):
        pivot = next(i for i in range(k, size) if rows[i][k])
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [value / rows[k][k] for value in rows[k]]
        for i in range(size):
            if i != k and rows[i][k]:
                factor = rows[i][k]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    return np.array([float(row[-1]) for row in rows])


def dyadic_chain(rng, size, density=1.0):
    """A random chain whose entries are multiples of 2^-10: its rows sum to one exactly."""
    chain = np.zeros((size, size))
    for s in range(size):
        support = np.flatnonzero(rng.random(size) < density)
        support = np.unique([*support, (s + 1) % size])
        cuts = np.sort(rng.choice(np.arange(1, 2**10), size=len(support) - 1, replace=False))
        chain[s, support] = np.diff([0, *cuts, 2**10]) / 2**10
    return chain


def random_chains(rng, count, size):
    """Random sparse chains with one closed class, and which of their states are transient."""
    chains = rng.random((3 * count, size, size)) * (rng.random((3 * count, size, size)) < 0.3)
    empty = chains.sum(axis=-1) == 0
    chains[empty, rng.integers(size, size=empty.sum())] = 1.0
    chains /= chains.sum(axis=-1, keepdims=True)
    reach = (
        np.linalg.matrix_power(((chains > 0) | np.eye(size, dtype=bool)).astype(float), size) > 0
    )
    recurrent = reach.all(axis=1)  # reached from everywhere: the one closed class
    single = recurrent.any(axis=1)
    return chains[single][:count], ~recurrent[single][:count]


def zero_sum_direction(rng, chain):
    """A random direction on the support of a chain, in proportion to it, that keeps row sums."""
    noise = rng.normal(size=chain.shape)
    return chain * (noise - np.sum(chain * noise, axis=-1, keepdims=True))


def chain_game(chain, names=None):
    """A game whose state chain is the given one: a single agent with a single action."""
    chain = np.asarray(chain, dtype=float)
    rewards = np.zeros((len(chain), 1, 1))
    game = ex.MarkovGame.from_dense(chain[:, None, :], rewards, state_names=names)
    wrapped = ex.WrappedGame(game, [ex.QLearning()])
    return wrapped, wrapped.init()


@pytest.mark.parametrize("size", [1, 2, 3, 8, 9, 12])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_law_equals_rational_arithmetic(size, density):
    chain = dyadic_chain(np.random.default_rng(size), size, density=density)
    np.testing.assert_allclose(stationary_law(jnp.asarray(chain)), exact_law(chain), rtol=2e-13)


@pytest.mark.parametrize("size", [5, 8, 9])
def test_thousands_of_sparse_chains_equal_the_oracle(size):
    chains, transient = random_chains(np.random.default_rng(size), 5000 if size == 5 else 500, size)
    assert len(chains) == len(transient) >= 500
    assert transient.any(axis=1).sum() > 50
    laws = np.asarray(jax.jit(jax.vmap(stationary_law))(jnp.asarray(chains)))
    expected = np.array([oracle.stationary_distribution(chain) for chain in chains])
    np.testing.assert_allclose(laws, expected, atol=1e-11)
    assert (laws[transient] == 0).all()
    assert (laws[~transient] > 0).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("period", [2, 3])
def test_periodic_chains_have_their_law(size, period):
    rng = np.random.default_rng(period)
    classes = np.arange(size) % period
    chain = rng.random((size, size)) * (classes == (classes[:, None] + 1) % period)
    chain /= chain.sum(axis=1, keepdims=True)
    law = stationary_law(jnp.asarray(chain))
    np.testing.assert_allclose(law, exact_law(chain), rtol=1e-13)
    by_class = [law[classes == c].sum() for c in range(period)]
    np.testing.assert_allclose(by_class, 1 / period, rtol=1e-13)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("absorbing", ["first", "middle", "last"])
def test_an_absorbing_state_carries_all(size, absorbing):
    state = {"first": 0, "middle": size // 2, "last": size - 1}[absorbing]
    chain = np.random.default_rng(size).dirichlet(np.ones(size), size=size)
    chain[state] = np.eye(size)[state]
    np.testing.assert_array_equal(stationary_law(jnp.asarray(chain)), np.eye(size)[state])


@pytest.mark.parametrize("closed", [[0, 3], [1, 2], [2, 4], [4]])
def test_transient_states_have_no_weight(closed):
    rng = np.random.default_rng(0)
    chain = rng.dirichlet(np.ones(5), size=5)
    chain[closed] = 0
    chain[np.ix_(closed, closed)] = rng.dirichlet(np.ones(len(closed)), size=len(closed))
    law = stationary_law(jnp.asarray(chain))
    np.testing.assert_allclose(law, exact_law(chain), rtol=1e-13)
    assert set(np.flatnonzero(law)) == set(closed)


def test_one_state_has_all_the_weight():
    np.testing.assert_array_equal(stationary_law(jnp.ones((1, 1))), [1.0])


def two_blocks(coupling, block=3):
    """Two classes of states joined by rare transitions, three times rarer in one direction."""
    rng = np.random.default_rng(5)
    chain = np.zeros((2 * block, 2 * block))
    chain[:block, :block], chain[block:, block:] = (
        dyadic_chain(rng, block),
        dyadic_chain(rng, block),
    )
    for source, target, rate in [(0, 2 * block - 1, coupling), (block, 1, 3 * coupling)]:
        chain[source, target] = rate
        chain[source, source] -= rate
    assert (chain >= 0).all()
    return chain


@pytest.mark.parametrize("block", [3, 6])
@pytest.mark.parametrize("power", [10, 20, 30, 40])
def test_law_is_accurate_on_nearly_reducible_chains(power, block):
    chain = two_blocks(2.0**-power, block)
    np.testing.assert_array_equal(chain.sum(axis=1), 1)
    expected = exact_law(chain)
    assert 0.05 < expected[:block].sum() < 0.95
    np.testing.assert_allclose(stationary_law(jnp.asarray(chain)), expected, rtol=1e-14)


@pytest.mark.parametrize("block", [3, 6])
def test_law_is_accurate_in_single_precision(block):
    chain = two_blocks(2.0**-20, block)
    law = stationary_law(jnp.asarray(chain, dtype=jnp.float32))
    assert law.dtype == jnp.float32
    np.testing.assert_allclose(law, exact_law(chain), rtol=2e-6)


@pytest.mark.parametrize("size", SIZES)
def test_law_is_accurate_in_its_smallest_entries(size):
    up, down = 2.0**-12, 0.5
    chain = np.diag(np.full(size - 1, up), 1) + np.diag(np.full(size - 1, down), -1)
    chain += np.diag(1 - chain.sum(axis=1))
    law = stationary_law(jnp.asarray(chain))
    np.testing.assert_allclose(law[1:] / law[:-1], up / down, rtol=1e-14)
    np.testing.assert_allclose(law, exact_law(chain), rtol=1e-14)


def deviation_matrix(chain):
    """D = sum over k of (P^k - 1 nu^T), by one inverse."""
    law = exact_law(chain)
    return np.linalg.inv(np.eye(len(chain)) - chain + law) - law


@pytest.mark.parametrize("size", [1, *SIZES])
@pytest.mark.parametrize("density", [0.2, 1.0])
def test_poisson_solver_inverts_on_vectors_of_sum_zero(size, density):
    rng = np.random.default_rng(size)
    chain = dyadic_chain(rng, size, density=density)
    law = stationary_law(jnp.asarray(chain))
    solve = poisson_solver(jnp.asarray(chain), law)
    for _ in range(3):
        b = rng.normal(size=size)
        b -= b.mean()
        x = np.asarray(solve(jnp.asarray(b)))
        np.testing.assert_allclose(x, b @ deviation_matrix(chain), rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(x @ (np.eye(size) - chain), b, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(x.sum(), 0, atol=1e-13)


def test_poisson_solver_on_thousands_of_sparse_chains():
    rng = np.random.default_rng(2)
    chains, transient = random_chains(rng, 1000, 6)
    assert transient[:, 0].any()
    rights = rng.normal(size=(1000, 6))
    rights -= rights.mean(axis=1, keepdims=True)

    def solve(chain, b):
        return poisson_solver(chain, stationary_law(chain))(b)

    found = np.asarray(jax.jit(jax.vmap(solve))(jnp.asarray(chains), jnp.asarray(rights)))
    laws = [oracle.stationary_distribution(chain) for chain in chains]
    matrices = [np.eye(6) - P + law for P, law in zip(chains, laws, strict=True)]
    expected = np.stack([np.linalg.solve(M.T, b) for M, b in zip(matrices, rights, strict=True)])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def exact_time(chain):
    chain = jnp.asarray(chain)
    return mixing_time(chain, stationary_law(chain))


@pytest.mark.parametrize("size", [1, *SIZES])
def test_mixing_time_is_the_size_of_the_deviation_matrix(size):
    chain = dyadic_chain(np.random.default_rng(size), size, density=0.5)
    expected = np.abs(deviation_matrix(chain)).sum(axis=1).max()
    np.testing.assert_allclose(exact_time(chain), expected, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(mixing_time_on_host(chain), expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("power", [4, 9, 20, 40, 60, 900])
def test_both_mixing_times_agree_on_nearly_reducible_chains(power):
    rate = 2.0**-power
    lazy = rate * dyadic_chain(np.random.default_rng(0), 9) + (1 - rate) * np.eye(9)
    for chain in (lazy, two_blocks(rate / 4)):
        exact, found = float(exact_time(chain)), mixing_time_on_host(chain)
        assert is_reducible(jnp.asarray(found)) == is_reducible(jnp.asarray(exact)) == (power > 50)
        if power < 50:
            np.testing.assert_allclose(found, exact, rtol=4 * np.finfo(float).eps * exact)


def test_mixing_time_of_a_slow_chain():
    a, b = 2.0**-20, 2.0**-22
    chain = jnp.array([[1 - a, a], [b, 1 - b]])
    # P^k - 1 nu^T decays as (1 - a - b)^k; its first row at k = 0 is (nu_1, -nu_1).
    np.testing.assert_allclose(exact_time(chain), 2 * a / (a + b) / (a + b), rtol=1e-13)
    assert not is_reducible(exact_time(chain))


@pytest.mark.parametrize("size", SIZES)
def test_mixing_time_is_no_less_than_the_inverse_gap(size):
    chain = dyadic_chain(np.random.default_rng(size), size)
    distances = np.sort(np.abs(1 - np.linalg.eigvals(chain)))  # the first is the simple 1 itself
    assert exact_time(chain) >= 1 / distances[1] * (1 - 1e-12)


@pytest.mark.parametrize(
    "chain",
    [np.eye(2), np.eye(9), np.kron(np.eye(2), np.full((3, 3), 1 / 3)), two_blocks(2.0**-50)],
)
def test_a_reducible_chain_is_seen_in_its_mixing_time(chain):
    assert is_reducible(exact_time(chain))


@pytest.mark.parametrize("size", SIZES)
def test_derivative_of_the_law_equals_differences(size):
    rng = np.random.default_rng(size)
    law = jax.jit(stationary_law)
    forward = jax.jit(lambda P, D: jax.jvp(stationary_law, (P,), (D,)))
    weights = jnp.asarray(rng.normal(size=size))
    reverse = jax.jit(jax.grad(lambda P: weights @ stationary_law(P)))
    for density in (0.2, 0.5, 1.0):
        chain = dyadic_chain(rng, size, density=density)
        direction = zero_sum_direction(rng, chain)
        primal, tangent = forward(chain, direction)
        np.testing.assert_allclose(primal, law(chain), rtol=1e-15)
        assert_close(tangent, central_difference(law, chain, direction, step=1e-3), 1e-9)
        slope = np.sum(reverse(chain) * direction)
        np.testing.assert_allclose(slope, weights @ tangent, rtol=1e-11)


def test_derivative_of_the_law_with_transient_states_equals_differences():
    rng = np.random.default_rng(0)
    chains, transient = random_chains(rng, 200, 6)
    directions = zero_sum_direction(rng, chains)
    law = jax.jit(jax.vmap(stationary_law))
    forward = jax.jit(jax.vmap(lambda P, D: jax.jvp(stationary_law, (P,), (D,))[1]))
    found = forward(chains, directions)
    assert transient.any(axis=1).sum() > 20
    assert_close(found, central_difference(law, chains, directions, step=1e-3), 1e-8)
    np.testing.assert_allclose(np.asarray(found)[transient], 0, atol=1e-15)


@pytest.mark.parametrize("size", [5, 9])
def test_second_derivative_of_the_law_equals_differences(size):
    rng = np.random.default_rng(size)
    chain = dyadic_chain(rng, size)
    first, second = zero_sum_direction(rng, chain), zero_sum_direction(rng, chain)

    def slope(P):
        return jax.jvp(stationary_law, (P,), (jnp.asarray(first),))[1]

    found = jax.jit(lambda P, D: jax.jvp(slope, (P,), (D,))[1])(chain, second)
    assert_close(found, central_difference(jax.jit(slope), chain, second, step=1e-3), 1e-9)


def test_second_derivatives_of_the_law_agree_in_all_modes():
    rng = np.random.default_rng(0)
    logits, weights = jnp.asarray(rng.normal(size=(5, 5))), jnp.asarray(rng.normal(size=5))

    def by_elimination(logits):
        return weights @ stationary_law(jax.nn.softmax(logits, axis=1))

    def by_lapack(logits):
        chain = jax.nn.softmax(logits, axis=1)
        return weights @ jnp.linalg.solve((jnp.eye(5) - chain + 1).T, jnp.ones(5))

    expected = jax.jit(jax.hessian(by_lapack))(logits)
    modes = jax.jacfwd, jax.jacrev
    for outer, inner in itertools.product(modes, modes):
        found = jax.jit(outer(inner(by_elimination)))(logits)
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("size", [5, 9])
def test_law_and_derivative_work_in_batches(size):
    rng = np.random.default_rng(size)
    chains = np.stack([dyadic_chain(rng, size, density=0.5) for _ in range(6)])
    weights = jnp.asarray(rng.normal(size=size))

    def law_and_gradient(P):
        return stationary_law(P), jax.grad(lambda P: weights @ stationary_law(P))(P)

    laws, gradients = jax.jit(jax.vmap(law_and_gradient))(chains)
    single = jax.jit(law_and_gradient)
    for k in range(6):
        law, gradient = single(chains[k])
        np.testing.assert_allclose(laws[k], law, rtol=1e-13)
        assert_close(gradients[k], gradient, 1e-13)


def test_closed_classes_and_transient_states_are_found():
    chain = np.zeros((6, 6))
    chain[0, [1, 3]] = 0.5
    chain[1, 4] = chain[4, 1] = chain[2, 2] = chain[3, 0] = chain[5, 2] = 1
    assert closed_classes(chain) == ([[1, 4], [2]], [0, 3, 5])
    assert closed_classes(np.ones((1, 1))) == ([[0]], [])


def test_closed_classes_of_random_chains():
    chains, transient = random_chains(np.random.default_rng(1), 300, 5)
    for chain, expected in zip(chains, transient, strict=True):
        closed, found = closed_classes(chain)
        assert closed == [np.flatnonzero(~expected).tolist()]
        assert found == np.flatnonzero(expected).tolist()


def test_closed_classes_are_the_strongly_connected_ones_that_nothing_leaves():
    draw = np.random.default_rng(2)
    several = 0
    for _ in range(300):
        size = draw.integers(1, 12)
        chain = draw.uniform(size=(size, size)) < draw.uniform(0.5, 2.5) / size
        count, label = connected_components(chain, connection="strong")
        classes = [np.flatnonzero(label == k) for k in range(count)]
        expected = [c for c in classes if not np.delete(chain[c], c, axis=1).any()]
        closed, transient = closed_classes(chain)
        assert closed == sorted(c.tolist() for c in expected)
        assert transient == np.setdiff1d(np.arange(size), np.concatenate(expected)).tolist()
        several += len(closed) > 1
    assert several > 50


@pytest.mark.parametrize("case", ["pd", "random", "mixed"])
def test_stationary_distribution_equals_golden(golden, wrapped_games, case):
    wrapped, values = wrapped_games[case], golden[case]
    found = ex.stationary_distribution(wrapped, unflatten(wrapped, values["x0"]))
    assert_close(found, values["nu0"], 1e-10)


@pytest.mark.parametrize("num_states", [3, 8, 9, 11])
def test_stationary_distribution_equals_the_oracle(num_states):
    case = random_case(num_states, num_states, (2, 3), ("q", "actor_critic"))
    joint = oracle.joint_policy(case.game, case.learners, case.flat)
    expected = oracle.stationary_distribution(oracle.state_chain(case.game, joint))
    found = ex.stationary_distribution(case.wrapped, case.params)
    assert_close(found, expected, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("num_states", [3, 9])
def test_stationary_distribution_is_differentiable_by_everything(num_states):
    case = random_case(num_states, num_states, (2, 3), ("q", "actor_critic"))
    weights = np.random.default_rng(0).normal(size=num_states)
    leaves, treedef = jax.tree.flatten((case.wrapped.learners, case.params))
    direction = [np.random.default_rng(1).normal(size=leaf.shape) for leaf in leaves]

    @jax.jit
    def loss(step):
        moved = [leaf + step * d for leaf, d in zip(leaves, direction, strict=True)]
        learners, params = jax.tree.unflatten(treedef, moved)
        wrapped = ex.WrappedGame(case.wrapped.game, learners)
        return weights @ ex.stationary_distribution(wrapped, params)

    reverse = jax.jit(jax.grad(loss))(0.0)
    assert_close(reverse, central_difference(loss, 0.0, 1.0, step=1e-3), 1e-8)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(loss))(0.0), reverse, rtol=1e-11)


def weighted_law(num_states, num_actions):
    """A scalar function of the kernel of a game with random learners, by `from_dense`."""
    rng = np.random.default_rng(num_states)
    n = len(num_actions)
    learners = [make_learner(spec) for spec in random_specs(rng, ("q",) * n)]
    rewards = rng.normal(size=(num_states, *num_actions, n))
    weights = rng.normal(size=num_states)
    tables = tuple(jnp.asarray(rng.normal(size=(num_states, count))) for count in num_actions)

    @jax.jit
    def loss(kernel):
        wrapped = ex.WrappedGame(ex.MarkovGame.from_dense(kernel, rewards), learners)
        return weights @ ex.stationary_distribution(wrapped, tables)

    return loss


@pytest.mark.parametrize("num_states", [3, 9])
def test_derivative_by_the_kernel_equals_differences_that_keep_rows(num_states):
    loss = weighted_law(num_states, (2, 2))
    rng = np.random.default_rng(0)
    kernel = random_kernel(rng, num_states, (2, 2))
    gradient = jax.jit(jax.grad(loss))(kernel)
    np.testing.assert_allclose(gradient.sum(axis=-1), 0, atol=1e-14)
    for _ in range(3):
        direction = zero_sum_direction(rng, kernel)
        difference = central_difference(loss, kernel, direction, step=1e-4)
        assert_close(np.sum(gradient * direction), difference, 1e-8)


@pytest.mark.parametrize("num_states", [4, 9])
def test_derivative_by_a_deterministic_kernel_equals_one_sided_differences(num_states):
    loss = weighted_law(num_states, (2, 2))
    rng = np.random.default_rng(1)
    next_state = rng.integers(num_states, size=(num_states, 2, 2))
    next_state[:, 0, 0] = (np.arange(num_states) + 1) % num_states
    kernel = np.eye(num_states)[next_state]
    gradient = jax.jit(jax.grad(loss))(kernel)
    for _ in range(3):
        # Every row gives a little of its certain outcome to all others.
        direction = rng.dirichlet(np.ones(num_states), size=kernel.shape[:-1]) - kernel
        steps = 1e-3 * np.array([1, 2, 4])
        rises = np.array([loss(kernel + step * direction) for step in steps]) - loss(kernel)
        difference = np.array([8, -6, 1]) / 3 @ (rises / steps) * 1.0
        assert_close(np.sum(gradient * direction), difference, 1e-5)


def test_derivatives_by_padding_are_exactly_zero():
    case = random_case(4, 4, (2, 2), ("q", "q"), density=0.4)
    weights = jnp.arange(4.0)

    def loss(game):
        wrapped = ex.WrappedGame(game, case.wrapped.learners)
        return weights @ ex.stationary_distribution(wrapped, case.params)

    game = case.wrapped.game
    gradient = eqx.filter_grad(loss)(game).probabilities
    assert 0 < padding(game).sum() < padding(game).size
    assert (gradient[padding(game)] == 0).all()
    assert (gradient[~padding(game)] != 0).any()
    np.testing.assert_allclose(gradient.sum(axis=-1), 0, atol=1e-14)


AVERAGED = {
    "stationary_distribution": ex.stationary_distribution,
    "occupation_measure": ex.occupation_measure,
    "drift": ex.drift,
    "jacobian": ex.jacobian,
    "solve": lambda wrapped, params: ex.solve(wrapped, params, jnp.array([1.0])),
}


@pytest.fixture(params=AVERAGED)
def averaged(request):
    """Each function of the averaged side."""
    return AVERAGED[request.param]


def test_two_closed_classes_are_refused_and_named(averaged):
    chain = [[0, 1, 0, 0], [1, 0, 0, 0], [0.5, 0, 0, 0.5], [0, 0, 0, 1]]
    wrapped, params = chain_game(chain, names=["ab", "cd", "ef", "gh"])
    with pytest.raises(ValueError, match=r"2 closed classes, \{ab, cd\}; \{gh\}: "):
        averaged(wrapped, params)


def test_many_closed_classes_are_refused_and_named():
    with pytest.raises(ValueError, match=r"3 closed classes, \{0\}; \{1\}; \{2\}: "):
        ex.stationary_distribution(*chain_game(np.eye(3)))


def test_a_periodic_chain_is_accepted_in_silence():
    law = ex.stationary_distribution(*chain_game(np.roll(np.eye(4), 1, axis=1)))
    np.testing.assert_allclose(law, 0.25, rtol=1e-15)


@pytest.mark.parametrize("averaged", [ex.drift, ex.jacobian])
def test_transient_states_are_named_in_a_warning(averaged):
    chain = [[0, 0.5, 0.5, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    wrapped, params = chain_game(chain, names=["ab", "cd", "ef", "gh"])
    with pytest.warns(UserWarning, match="states ab, cd are transient") as record:
        averaged(wrapped, params)
    assert len(record) == 1


def test_an_absorbing_state_is_accepted_with_a_warning():
    chain = [[0.5, 0.5, 0], [0.2, 0.3, 0.5], [0, 0, 1]]
    with pytest.warns(UserWarning, match="states 0, 1 are transient"):
        law = ex.stationary_distribution(*chain_game(chain))
    np.testing.assert_array_equal(law, [0, 0, 1])


@pytest.mark.parametrize("averaged", [ex.drift, ex.jacobian])
def test_a_nearly_reducible_chain_is_accepted_with_a_warning(averaged):
    wrapped, params = chain_game(two_blocks(2.0**-20))
    with pytest.warns(UserWarning, match=r"nearly reducible: .*about \de\+06 steps") as record:
        averaged(wrapped, params)
    assert len(record) == 1


def stayers(temperature, epsilon=0.0):
    """A game of two states in which the agent chooses the next, and prefers to stay."""
    next_state = np.array([[0, 1], [0, 1]])
    game = ex.MarkovGame.deterministic(
        next_state, np.zeros((2, 2, 1)), state_names=["left", "right"]
    )
    wrapped = ex.WrappedGame(
        game, [ex.QLearning(0.1, 0.9, ex.EpsilonSoftmax(temperature, epsilon))]
    )
    return wrapped, (jnp.eye(2),)


def test_a_numerically_reducible_chain_is_refused(averaged):
    with pytest.raises(ValueError, match=r"numerically reducible: .*higher temperature or a pos"):
        averaged(*stayers(temperature=0.028))


def test_probabilities_that_underflow_are_refused(averaged):
    with pytest.raises(ValueError, match=r"2 closed classes, \{left\}; \{right\}"):
        averaged(*stayers(temperature=0.001))


def test_epsilon_makes_a_small_temperature_possible():
    law = ex.stationary_distribution(*stayers(temperature=0.001, epsilon=0.1))
    np.testing.assert_allclose(law, 0.5, rtol=1e-14)


def test_a_policy_that_jumps_is_refused(averaged):
    class Argmax(ex.AbstractExploration):
        @property
        def continuous(self):
            return False

        def __call__(self, values):
            return jax.nn.one_hot(jnp.argmax(values), values.shape[-1])

    game = ex.games.prisoners_dilemma()
    wrapped = ex.WrappedGame(game, [ex.QLearning(), ex.QLearning(exploration=Argmax())])
    with pytest.raises(ValueError, match=r"(?s)agent 1: the policy of .*is not continuous"):
        averaged(wrapped, wrapped.init())


def test_chains_are_not_checked_under_a_trace():
    wrapped, params = chain_game(np.eye(2))
    law = jax.jit(ex.stationary_distribution)(wrapped, params)
    assert law.shape == (2,)
