"""Several processes: strong and weak scaling, and what a grid of pricing games would take.

Every process is one of a job that `jax.distributed` connects, has one core, and runs the same
script. Strong scaling: the same runs, on more processes. Weak scaling: as many runs for each. The
baseline is one process without a job, measured in the same way on the same core. Each time is the
best of five of a whole call, that of the slowest process: by the clock, and what the process was
busy, by which scaling is judged, since other work on the machine adds to the former.

Then a model, and no measurement: a 100 x 100 grid of learning rates and exploration decays with
1000 runs each of the pricing game of Calvano et al. (2020; 225 states, 15 prices), 2 million steps
a run, 2e13 steps in all, on 1, 8 and 64 devices. It divides the steps by the speed of one device,
measured here or given. It assumes that every grid point runs as fast as that one, and that a device
does whole grid points (so some wait at the end, which is counted). Meetings of processes, one every
10 seconds, as long as the table says, are left out.

Usage: python benchmarks/scaling.py [--quick] [--rate STEPS_PER_SECOND_OF_ONE_DEVICE]
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time

_CORES = sorted(os.sched_getaffinity(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--rate", type=float, default=None, help="steps/s of one device, measured")
    parser.add_argument("--worker", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        return work(**json.loads(options.worker))
    steps = 2_000 if options.quick else 20_000
    counts = [n for n in (1, 2, 4, 8, 16) if n <= len(_CORES)]
    from _common import machine, table

    print(f"Scaling over processes of one core each.\n{machine()}\n")
    rows = []
    for kind in ("strong", "weak"):
        base = None
        for count in (None, *counts):
            runs = 1024 * ((count or 1) if kind == "weak" else 1)
            found = job(count, runs, steps)
            seconds, busy = (max(one[name] for one in found) for name in ("seconds", "busy"))
            base = busy if base is None else base
            ideal = base / (count or 1) if kind == "strong" else base
            rows.append(
                [
                    *(kind, "none" if count is None else str(count), str(runs)),
                    *(f"{seconds:.2f}", f"{busy:.2f}", f"{runs * steps / busy / 1e6:.2f}"),
                    *(f"{ideal / busy:.0%}", f"{max(o['meeting'] for o in found) * 1e3:.1f}"),
                ]
            )
    header = ["scaling", "processes of a job", "runs", "s", "busy s", "million steps/busy s"]
    print(table([*header, "of ideal", "ms per meeting"], rows))
    print()
    rate, source = options.rate, "given"
    if rate is None:
        rate, source = job(None, 512, 200 if options.quick else 2000, "pricing")[0]["rate"], "here"
    print(
        f"Model of 2e13 steps of the pricing game at {rate:.3g} steps/s of one device ({source}):\n"
    )
    print(table(["devices", "grid points of each, at most", "hours", "of ideal"], model(rate)))


def model(rate: float) -> list[list[str]]:
    """Hours for 10^4 grid points of 1000 runs of 2 million steps."""
    rows = []
    for devices in (1, 8, 64):
        points = -(-10_000 // devices)
        seconds = points * 1000 * 2e6 / rate
        ideal = 2e13 / rate / devices
        rows.append([str(devices), str(points), f"{seconds / 3600:.3g}", f"{ideal / seconds:.1%}"])
    return rows


def job(count: int | None, runs: int, steps: int, game: str = "dilemma") -> list[dict]:
    """What the processes of a job report; None: one process without a job."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = []
    for number in range(count or 1):
        told = {"count": count, "number": number, "address": address, "runs": runs, "steps": steps}
        words = [sys.executable, __file__, "--worker", json.dumps(told | {"game": game})]
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
    return [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]


def work(count, number: int, address: str, runs: int, steps: int, game: str) -> None:
    """One process: warms up, then measures, and prints what it found."""
    os.sched_setaffinity(0, {_CORES[number % len(_CORES)]})
    import jax

    jax.config.update("jax_num_cpu_devices", 1)
    from ergodax.base.processes import connect, find_team, gather

    if count is not None:
        connect(address, count, number)
    import ergodax as ex
    from _common import golden, q_learners

    wrapped = q_learners(golden("pd"))
    if game == "pricing":
        fading = ex.schedules.exponential(1.0, rate=4e-6)
        learner = ex.QLearning(0.15, 0.95, ex.EpsilonGreedy(fading))
        wrapped = ex.WrappedGame(ex.games.bertrand(), [learner] * 2)

    def simulate(seed: int):
        key = jax.random.key(seed)
        return ex.simulate(wrapped, wrapped.init(), [float(steps)], runs=runs, key=key)

    team = find_team()
    simulate(0)
    gather(team, 0)
    seconds, busy = [], []
    for seed in range(1, 6):
        started, used = time.perf_counter(), time.process_time()
        simulate(seed)
        seconds.append(time.perf_counter() - started)
        busy.append(time.process_time() - used)
    before = time.perf_counter()
    for _ in range(10):
        gather(team, 0)
    meeting = (time.perf_counter() - before) / 10
    found = {"seconds": min(seconds), "busy": min(busy), "meeting": meeting}
    print(json.dumps(found | {"rate": runs * steps / min(busy)}))


if __name__ == "__main__":
    main()
