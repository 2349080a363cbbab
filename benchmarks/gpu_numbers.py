"""A GPU's numbers against the processor's; `gpu.py` prints them."""

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

import ergodax as ex
from ergodax.simulation import block, job, pool, steps


def interpret_kernels() -> None:
    """Has this processor taken for a GPU whose kernels are interpreted."""
    steps.take_steps = functools.partial(steps.take_steps, interpret=True)
    for module in (steps, block, job, pool):
        module.is_gpu = lambda mesh: True


OPERATIONS: dict[str, Callable] = {
    "exp(x)": lambda x, y: jnp.exp(x),
    "log(y)": lambda x, y: jnp.log(y),
    "x / y": lambda x, y: x / y,
    "1 / y": lambda x, y: 1 / y,
    "x * y + x": lambda x, y: x * y + x,
}


def rounding(dry: bool) -> Iterable[list[str]]:
    """Rows of the table: XLA and Triton against NumPy in more digits, and against the processor."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-20, 0, 2**20), rng.uniform(0.1, 10, 2**20)
    processor = jax.devices("cpu")[0]
    for dtype in (np.float32, np.float64):
        given = [jnp.asarray(array, dtype) for array in (x, y)]
        more = [np.asarray(array, np.longdouble) for array in given]
        wider = {"exp(x)": np.exp(more[0]), "log(y)": np.log(more[1]), "x / y": more[0] / more[1]}
        wider |= {"1 / y": 1 / more[1], "x * y + x": more[0] * more[1] + more[0]}
        for name, operation in OPERATIONS.items():
            nearest = wider[name].astype(dtype)
            with jax.default_device(processor):
                usual = np.asarray(jax.jit(operation)(*jax.device_put(given, processor)))
            ways = {"XLA": jax.jit(operation), "Triton": functools.partial(tried, operation, dry)}
            for by, way in ways.items():
                found = np.asarray(way(*given))
                error = np.abs(found.astype(np.longdouble) - wider[name]) / np.spacing(abs(nearest))
                row = [name, np.dtype(dtype).name, by, f"{error.max():.3g}"]
                yield [*row, *(f"{np.mean(found != other):.2%}" for other in (nearest, usual))]


def tried(operation: Callable, dry: bool, *arrays: jax.Array) -> jax.Array:
    """An operation on numbers in a kernel made by Triton."""
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    def body(*refs):
        *inputs, output = refs
        output[:] = operation(*(ref[:] for ref in inputs))

    block_of = pallas.BlockSpec((2**17 if dry else 128,), lambda i: (i,))
    return pallas.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype),
        grid=(arrays[0].size // block_of.block_shape[0],),
        in_specs=[block_of] * len(arrays),
        out_specs=block_of,
        interpret=dry,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
    )(*arrays)


def compared(games: dict[str, ex.WrappedGame], device, dry: bool) -> Iterable[list[str]]:
    """Rows of the table: where the same runs stand on both, from the same random numbers."""
    soft = ex.EpsilonSoftmax(0.5, 0.01)
    game = ex.games.prisoners_dilemma()
    learners = {
        "Sarsa, dilemma": ex.Sarsa(0.1, 0.8, soft, 10.0),
        "ActorCritic, dilemma": ex.ActorCritic(0.05, 0.1, 0.7, soft),
        "ProjectedGradient, dilemma": ex.ProjectedGradient(0.01),
        "greedy QLearning, dilemma": ex.QLearning(0.1, 0.8, ex.EpsilonGreedy(0.1), 10.0),
    }
    cases = {name: ex.WrappedGame(game, [learner] * 2) for name, learner in learners.items()}
    cases |= {f"QLearning, {name}": wrapped for name, wrapped in games.items()}
    for name, wrapped in cases.items():
        for dtype in ("float32",) if dry else ("float32", "float64"):
            taken = 8 if dry else 256

            def on(device, wrapped=wrapped, dtype=dtype, taken=taken):
                return ex.simulate(
                    wrapped,
                    wrapped.init(),
                    [float(taken)],
                    runs=64,
                    key=jax.random.key(0),
                    dtype=dtype,
                    devices=[device],
                )

            ran, other = on(device), on(jax.devices("cpu")[0])
            states = np.mean(ran.final.state == other.final.state)
            pairs = [
                (np.asarray(a, float), np.asarray(b, float))
                for a, b in zip(
                    *map(jax.tree.leaves, (ran.final.params, other.final.params)), strict=True
                )
            ]
            alike = np.mean(np.concatenate([(a == b).ravel() for a, b in pairs]))
            largest = max(np.max(np.abs(a - b)) for a, b in pairs)
            row = [name, dtype, str(taken), f"{states:.1%}", f"{alike:.1%}", f"{largest:.2g}"]
            yield [*row, ran.compiler]
