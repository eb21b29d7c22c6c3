"""A training step with one thread and with two, beside busy processes: python benchmarks/bench_threads.py

What `threads_for` of notebooks/run.py chooses by. Each setting is a process of its own, because OpenMP reads its
variables when it starts; the step is the one of bench_training.py. A busy process counts and never sleeps.
"""

import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial

import side_by_side
import torch
from bench_training import batch_of, our_step

from plg_utils import losses, segmenters

SETTINGS = {"one thread": (1, None), "two threads": (2, None), "two threads, shorter waits": (2, 1000)}
BUSY = (0, 1, 2)  # processes


def times(repeats: int) -> list[float]:
    """Seconds of each step of UniMatch, with the miniature at the demo's size."""
    torch.manual_seed(0)
    model = segmenters.build("deeplabv3plus", 11, encoder="miniature", pretrained=False).train()
    optimiser, loss = torch.optim.SGD(model.parameters(), lr=1e-3), losses.build("unimatch", threshold=0.12)
    step = partial(our_step, model, optimiser, loss, batch_of(96, 4, 11, "cpu") | {"progress": 0.0}, "fp32")
    return side_by_side.seconds({"step": step}, repeats)["step"]


def main() -> None:
    """Measure and write results/bench/threads.json."""
    parser = side_by_side.arguments(__doc__)
    parser.add_argument("--alone", action="store_true", help="only print the seconds of each step in this process")
    options = parser.parse_args()
    if options.alone:
        print(*times(options.repeats))
        return
    found = {}
    for name, (threads, spins) in SETTINGS.items():
        variables = os.environ | {"OMP_NUM_THREADS": str(threads)}
        variables |= {"GOMP_SPINCOUNT": str(spins)} if spins else {}
        command = [sys.executable, __file__, "--alone", "--repeats", str(options.repeats)]
        for busy in BUSY:
            with ExitStack() as stack:
                for _ in range(busy):
                    counting = subprocess.Popen([sys.executable, "-c", "while True: pass"])
                    stack.callback(counting.wait)
                    stack.callback(counting.kill)  # first, as the last callback
                time.sleep(1)
                taken = subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout
            found.setdefault(name, {})[f"{busy} busy"] = statistics.median(map(float, taken.split()))
    side_by_side.report(
        options.write, "threads", "cpu", step=found, unit="seconds a step", n={"steps": options.repeats}
    )


if __name__ == "__main__":
    main()
