import re

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
import oracle
from ergodax.model.learner import accumulate


class Fields(ex.AbstractExploration):
    """An exploration rule that only declares hyper-parameters."""

    required: jax.Array = ex.hyper(within="[0, 1)")
    positive: jax.Array = ex.hyper(1.0, within="(0, inf)")
    free: jax.Array = ex.hyper(-2.0)
    table: jax.Array = ex.hyper(0.0, within="[0, 1]", scalar=False)

    def __call__(self, values):
        return values


def test_hyper_fields_hold_float_arrays():
    fields = Fields(0, 2, 1, np.array([0, 1]))
    for value in (fields.required, fields.positive, fields.free, fields.table):
        assert isinstance(value, jax.Array)
        assert value.dtype == jnp.float64
        assert not value.weak_type
    assert fields.table.shape == (2,)


def test_hyper_defaults():
    fields = Fields(0.5)
    assert (fields.required, fields.positive, fields.free) == (0.5, 1.0, -2.0)
    with pytest.raises(TypeError, match="required"):
        Fields()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"required": -0.1}, "Fields.required must be finite and in [0, 1); found -0.1."),
        ({"required": 1.0}, "Fields.required must be finite and in [0, 1); found 1.0."),
        ({"positive": 0.0}, "Fields.positive must be finite and in (0, inf); found 0.0."),
        ({"positive": np.inf}, "Fields.positive must be finite and in (0, inf); found inf."),
        ({"free": np.nan}, "Fields.free must be finite and in (-inf, inf); found nan."),
        ({"free": np.array([0.1, 0.2])}, "Fields.free must be a scalar"),
        ({"table": np.array([0.5, 1.5])}, "Fields.table must be finite and in [0, 1]"),
    ],
)
def test_hyper_values_outside_their_interval_are_refused(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Fields(**({"required": 0.5} | values))


def test_closed_ends_of_intervals_are_allowed():
    fields = Fields(0.0, table=np.array([0.0, 1.0]))
    assert fields.required == 0.0


def test_shape_of_a_hyper_parameter_is_checked_under_a_trace():
    with pytest.raises(ValueError, match=r"must be a scalar .*found an array of shape \(2,\)"):
        jax.jit(lambda x: Fields(x).required)(np.array([0.1, 0.2]))


def test_traced_hyper_values_are_not_checked():
    assert jax.jit(lambda x: Fields(x).required)(3.0) == 3.0


def test_hyper_parameters_do_not_retrace():
    @eqx.filter_jit
    @chex.assert_max_traces(n=1)
    def probabilities(rule, values):
        return rule(values)

    values = jnp.array([0.0, 1.0])
    for temperature, epsilon in [(1, 0), (0.5, 0.1), (np.float32(2), 1.0)]:
        probabilities(ex.EpsilonSoftmax(temperature, epsilon), values)


@pytest.mark.parametrize(
    ("temperature", "epsilon", "message"),
    [
        (0.0, 0.1, "EpsilonSoftmax.temperature must be finite and in (0, inf); found 0.0"),
        (-1.0, 0.1, "EpsilonSoftmax.temperature must be finite and in (0, inf); found -1.0"),
        (np.nan, 0.1, "EpsilonSoftmax.temperature must be finite"),
        (1.0, -0.01, "EpsilonSoftmax.epsilon must be finite and in [0, 1]; found -0.01"),
        (1.0, 1.01, "EpsilonSoftmax.epsilon must be finite and in [0, 1]; found 1.01"),
        (np.ones(2), 0.0, "EpsilonSoftmax.temperature must be a scalar"),
    ],
)
def test_bad_exploration_is_refused(temperature, epsilon, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ex.EpsilonSoftmax(temperature, epsilon)


@pytest.mark.parametrize("temperature", [0.05, 0.7, 3.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_softmax_is_the_formula(temperature, epsilon):
    values = np.random.default_rng(0).normal(size=5)
    found = ex.EpsilonSoftmax(temperature, epsilon)(jnp.asarray(values))
    expected = oracle.eps_softmax(values, temperature, epsilon)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_epsilon_softmax_survives_huge_values():
    rule = ex.EpsilonSoftmax(1e-3, 0.1)
    np.testing.assert_allclose(rule(jnp.array([1e6, 1e6 + 1, -1e6])), [0.1 / 3, 2.8 / 3, 0.1 / 3])
    slope = jax.jacobian(rule)(jnp.array([1e6, 1e6 + 1, -1e6]))
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_epsilon_softmax_is_compiled_rightly_for_tiny_temperatures(optimised, dtype):
    rule = jax.tree.map(lambda leaf: leaf.astype(dtype), ex.EpsilonSoftmax(1e-9, 0.2))
    size = 1.0 if dtype == np.float32 else 2.0**30
    values = jnp.asarray(size * np.random.default_rng(0).uniform(10, 20, (512, 2)), dtype)
    expected = np.where(values == values.max(axis=1, keepdims=True), 0.9, 0.1)
    np.testing.assert_allclose(jax.jit(jax.vmap(rule))(values), expected, rtol=1e-6)
    best = values.argmax(axis=1)
    scores = jax.jit(jax.vmap(rule.score))(values, best)
    np.testing.assert_array_equal(scores, 0)


def test_epsilon_one_is_uniform_and_one_action_is_certain():
    rule = ex.EpsilonSoftmax(0.5, 1.0)
    np.testing.assert_allclose(rule(jnp.array([1.0, 5.0, -3.0, 0.0])), 0.25)
    np.testing.assert_allclose(ex.EpsilonSoftmax(0.5, 0.3)(jnp.array([7.0])), [1.0])


def test_epsilon_softmax_is_continuous():
    assert ex.EpsilonSoftmax().continuous


TABLE = np.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("events", [1, 7, 6000], ids=["one", "few", "many"])
def test_accumulate_adds_every_event(depth, events):
    rng = np.random.default_rng(depth)
    index = tuple(rng.integers(size, size=events) for size in TABLE.shape[:depth])
    value = rng.normal(size=(events, *TABLE.shape[depth:]))
    batch = ex.At(tuple(jnp.asarray(i) for i in index), jnp.asarray(value))
    expected = TABLE.copy()
    np.add.at(expected, index, value)
    np.testing.assert_allclose(accumulate(jnp.asarray(TABLE), batch), expected, rtol=1e-12)


def test_accumulate_of_mixed_integer_types():
    index = (jnp.array([0, 1, 1], dtype=jnp.int32), jnp.array([2, 0, 0], dtype=jnp.int64))
    found = accumulate(jnp.zeros((2, 3)), ex.At(index, jnp.array([1.0, 2.0, 4.0])))
    np.testing.assert_array_equal(found, [[0, 0, 1], [6, 0, 0]])


@pytest.mark.parametrize("events", [5, 6000], ids=["few", "many"])
def test_accumulate_is_linear_in_its_values(events):
    rng = np.random.default_rng(0)
    index = (jnp.asarray(rng.integers(4, size=events)),)
    weights = jnp.asarray(rng.normal(size=(4, 3)))

    def loss(value):
        return jnp.sum(weights * accumulate(jnp.zeros((4, 3)), ex.At(index, value)))

    slope = jax.grad(loss)(jnp.asarray(rng.normal(size=(events, 3))))
    np.testing.assert_allclose(slope, weights[index[0]], rtol=1e-12)


def test_transition_needs_no_next_action_and_no_lottery():
    assert ex.Transition._field_defaults == {"next_action": None, "lottery": None}


def test_learner_contract_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        ex.AbstractLearner()
    with pytest.raises(TypeError, match="abstract"):
        ex.AbstractExploration()


def test_a_plain_number_in_a_learner_is_refused():
    class Plain(ex.QLearning):
        weight: float = 2.0

    game = ex.games.prisoners_dilemma()
    with pytest.raises(ValueError, match=r"agent 1: Plain\.weight is the plain Python number 2\.0"):
        ex.WrappedGame(game, [ex.QLearning(), Plain()])


def test_learner_with_array_per_agent_is_refused():
    with pytest.raises(ValueError, match=r"QLearning.discount must be a scalar"):
        ex.QLearning(0.1, np.array([0.9, 0.8]))
