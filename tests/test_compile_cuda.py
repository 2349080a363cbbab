"""Programs for a GPU that need not be there: what JAX hands to the compiler, and what that makes.

The latter needs the wheels of the extra `cuda-compile`, but neither a card nor its driver.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from ergodax.simulation.steps import UNWATCHED
from helpers import assert_close
from test_gpu import TS, large

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_model.py"
IN_KERNEL = "225 states x 15 actions, until at rest"
STEP_BY_STEP = "225 states x 15 actions, step by step"


@pytest.fixture(scope="module")
def programs():
    """What the compiler for an H100 tells of some programs."""
    command = [sys.executable, SCRIPT, "--json", IN_KERNEL, STEP_BY_STEP, "gradients"]
    # Without the suite's own settings of the compiler.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "nothing can be compiled" in ended.stderr:
        pytest.skip(ended.stderr.strip())
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.slow
def test_kernels_keep_their_numbers_in_registers(programs):
    for told in programs.values():
        assert told["kernels"] > 5
        assert told["spilled"] <= 64


@pytest.mark.slow
def test_a_simulations_steps_are_one_kernel_without_spills(programs):
    (kernel,) = programs[IN_KERNEL]["steps"]
    assert kernel["spilled"] == 0
    assert 100 < kernel["looped"] < 2000
    # The host waits where `simulate_until` looks how many runs go on, after many steps.
    assert [loop["waits"] for loop in programs[IN_KERNEL]["loops"]] == [0, 1]
    assert programs[IN_KERNEL]["temporaries"] < 2000


@pytest.mark.slow
def test_steps_by_themselves_take_ten_launches_and_no_wait(programs):
    told = programs[STEP_BY_STEP]
    assert told["steps"] == []
    (steps,) = [loop for loop in told["loops"] if loop["depth"] == 2]
    assert steps["waits"] == 0
    assert steps["launches"] * steps["trips"] <= 10 * UNWATCHED


@pytest.mark.slow
def test_gradients_of_many_sets_fit_and_leave_what_is_done(programs):
    """A loop that puts back the path of every set would move 300 kB of each in every round."""
    told = programs["gradients"]
    assert told["temporaries"] < 40_000
    whole, *loops = told["loops"]
    assert whole["bytes"] < 60_000
    assert all(loop["bytes"] < 30_000 for loop in loops)


class Dense(ex.QLearning):
    """Q-learning whose increments are whole tables."""

    def update(self, params, transition, game, agent):
        sparse = ex.QLearning.update(self, params, transition, game, agent)
        return jnp.zeros_like(params).at[sparse.index].set(sparse.value)


# What JAX computes with if it is not told to use float64, as most programs for GPUs do.
SINGLE = """
    import json, sys
    import jax, jax.numpy as jnp, numpy as np
    import ergodax as ex
    from ergodax.simulation import block
    from ergodax.simulation.recorders import Tally
    from ergodax.simulation.step import words_of
    from ergodax.simulation.streams import run_keys
    from jax.sharding import Mesh

    sys.path.insert(0, {tests!r})
    from test_compile_cuda import Dense
    from test_gpu import TS, build, large

    def lower(function, *args):
        return jax.export.export(jax.jit(function), platforms=["cuda"])(*args).mlir_module()

    def loss(tau):
        return ex.solve(*build({{"tau": tau}}), TS).params[0][-1].sum()

    def simulate(case):
        wrapped, params0 = case
        setting = block.Setting(
            wrapped, jnp.asarray(1.0), lambda x: x, (Tally(),), True, False, 1, 64,
            Mesh(np.array(jax.devices()), ("runs",)),
        )
        keys = run_keys(jax.random.key(0), jnp.arange(64, dtype=jnp.uint32))
        every = lambda leaf: jnp.broadcast_to(leaf, (64, *leaf.shape))
        def program(keys):
            runs = block.start(
                setting, keys, jax.tree.map(every, params0), every(wrapped.game.initial)
            )
            lengths, due = jnp.array([3, 4], jnp.int32), jnp.ones(2, bool)
            live = jnp.ones(64, bool)
            return block.advance.__wrapped__(
                setting, keys, runs, live, words_of(0), lengths, due
            )
        return lower(program, keys)

    import warnings
    warnings.filterwarnings("ignore", message="solving in float32")
    case, tau = build({{}}), jnp.asarray(0.5)
    dense = ex.WrappedGame(case[0].game, [Dense(), Dense()])
    programs = {{
        "simulate, small": simulate(case),
        "simulate, large": simulate(large()),
        "dense drift": lower(lambda x: ex.drift(dense, x), dense.init()),
        "law": lower(lambda x: ex.stationary_distribution(case[0], x), case[1]),
        "jacobian": lower(lambda x: ex.jacobian(large()[0], x), large()[1]),
        "occupation": lower(lambda x: ex.occupation_measure(case[0], x), case[1]),
        "rest point": lower(lambda x: ex.rest_point(case[0], x).params, case[1]),
        "gradient": lower(jax.grad(loss), tau),
        "sensitivities": lower(
            lambda tau: ex.sensitivities(build, {{"tau": tau}}, TS).derivatives, tau
        ),
    }}
    rough = {{
        name: [line.strip() for line in program.splitlines()
               if "stablehlo.dot_general" in line and "HIGHEST" not in line]
        for name, program in programs.items()
    }}
    products = sum(program.count("stablehlo.dot_general") for program in programs.values())
    ran = ex.simulate(*large(), TS, runs=64, key=jax.random.key(1))
    states, means = ran.final.state.tolist(), [leaf.tolist() for leaf in jax.tree.leaves(ran.mean)]
    print(json.dumps({{"rough": rough, "products": products, "states": states, "means": means}}))
"""


@pytest.mark.slow
def test_without_x64_programs_compile_for_cuda_in_full_precision():
    """Programs are lowered for CUDA, which needs no GPU, in a process that knows no float64.

    On a GPU, products of float32 matrices are rounded to ten bits unless the program forbids it.
    Runs are the same whether sums over them are in float32 or in float64.
    """
    code = textwrap.dedent(SINGLE).format(tests=os.path.dirname(__file__))
    # Equinox' checks inside compiled code are calls to the host, which need a real GPU.
    environment = {**os.environ, "EQX_ON_ERROR": "nan", "JAX_ENABLE_X64": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["products"] > 0
    assert all(lines == [] for lines in found["rough"].values()), found["rough"]
    expected = ex.simulate(*large(), TS, runs=64, key=jax.random.key(1), dtype="float32")
    assert found["states"] == expected.final.state.tolist()
    for one, other in zip(found["means"], jax.tree.leaves(expected.mean), strict=True):
        assert_close(np.array(one), other, 1e-5)
