"""Measures what editing a pretrained model costs, in forward passes of the same model.

    python benchmarks/real.py cost MODEL ... [--methods folio wise] [--edits 20] [--device cuda]

MODEL is a folder, a GGUF file or a hub name. The unit is one pass of a 40-token prompt, measured in
the same process before and after: as generation reads a prompt (logits of the last token only), and
as `model(input_ids)` does it (logits of all). Each method has a process of its own, with an empty
cache. On a processor seconds are those of the process, on one thread (`--threads` for more, then by
the clock); on a GPU by the clock, synchronized.

    cold    from a model never seen before to the first edit's beginning
    warm    the same for a new artifact on a model that was seen before
    edit    one edit more, looked up for conflicts and written, the median
    steps   of which the method's own gradient steps take so much (trained memories only)
    last    an edit behind so many others, over one of the first
    undo    of one edit
    memory  peak above the loaded model, in MiB
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PROMPT, PASSES = 40, 5
COLUMNS = ("cold", "warm", "edit", "steps", "last", "undo", "memory")


class Clock:
    """Seconds of work: of the process, or by the clock where several threads or a GPU do it."""

    def __init__(self, device: str, threads: int) -> None:
        self.on_gpu = device.startswith("cuda")
        self._now = time.perf_counter if self.on_gpu or threads > 1 else time.process_time

    def __call__(self, work: Callable[[], Any]) -> float:
        """Return the seconds that a call takes."""
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()
        began = self._now()
        work()
        if self.on_gpu:
            torch.cuda.synchronize()
        return self._now() - began


def passes(base: Any, clock: Clock, **options: Any) -> float:
    """Return the median seconds of a forward pass of a 40-token prompt."""
    import torch

    ids = torch.arange(100, 100 + PROMPT, device=base.device)[None]
    with torch.no_grad():
        base(input_ids=ids, **options)
        return statistics.median(
            clock(lambda: base(input_ids=ids, **options)) for _ in range(PASSES)
        )


@contextlib.contextmanager
def timed_steps(clock: Clock) -> Iterator[list[float]]:
    """Time all passes of a model's tail and their gradients."""
    import torch

    from errata.lm.tail import Tail

    seconds: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result: list[Any] = []
            seconds.append(clock(lambda: result.append(function(*args, **kwargs))))
            return result[0]

        return call

    logits, grad = Tail.logits, torch.autograd.grad
    Tail.logits, torch.autograd.grad = timed(logits), timed(grad)  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        Tail.logits, torch.autograd.grad = logits, grad  # type: ignore[method-assign]


def peak_memory(on_gpu: bool, restart: bool = False) -> float:
    """Return the peak memory of this process (or of its GPU) so far, in MiB."""
    if on_gpu:
        import torch

        if restart:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 2**20
    if restart:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) / 1024


def measure(model: str, method: str, edits: int, device: str, threads: int, out: Any) -> None:
    """Measure one method on one model; put (pass, pass with all logits, figures) into `out`."""
    import torch
    from transformers.utils import logging

    import errata
    from errata.atlas import make_cases

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    clock = Clock(device, threads)
    base, tokenizer = errata.load_base(model, "float32", device)
    short, whole = passes(base, clock, logits_to_keep=1), passes(base, clock)
    stream = [case.edit for case in make_cases(edits, 0)]
    config = errata.method_class(method).config_class
    loaded = peak_memory(clock.on_gpu, restart=True)
    figures: dict[str, float] = {}

    def made() -> Any:
        return errata.get_edit_model(base, config(), tokenizer)

    def ready() -> Any:
        """A model whose method has all that it looks at once: no conflict is asked of the first."""
        one = made()
        begin = getattr(one.method, "calibrate", None) or (lambda: one.method.writer)
        begin()
        return one

    figures["cold"] = clock(ready)
    figures["warm"] = clock(ready)
    edited, each = ready(), []
    with timed_steps(clock) as steps:
        for edit in stream:
            each.append(clock(lambda edit=edit: edited.edit([edit], check=False)))
    figures["edit"] = statistics.median(each)
    if steps:
        figures["steps"] = sum(steps) / len(each)
    tenth = max(1, len(each) // 10)
    figures["last"] = statistics.median(each[-tenth:]) / statistics.median(each[:tenth])
    figures["undo"] = clock(lambda: edited.undo(stream[0].id))
    figures["memory"] = peak_memory(clock.on_gpu) - loaded
    short = statistics.median([short, passes(base, clock, logits_to_keep=1)])
    out.put((short, whole, figures))


def cost(options: argparse.Namespace) -> None:
    """Print a table of the methods' costs on each model."""
    print(f"| model | method | pass, s | {' | '.join(COLUMNS)} |")
    print(f"|{'---|' * (3 + len(COLUMNS))}", flush=True)
    context = multiprocessing.get_context("spawn")
    for model in options.models:
        for method in options.methods:
            with tempfile.TemporaryDirectory() as folder:
                os.environ["ERRATA_CACHE"] = folder
                out = context.Queue()
                settings = options.edits, options.device, options.threads, out
                process = context.Process(target=measure, args=(model, method, *settings))
                process.start()
                while process.is_alive() and out.empty():
                    process.join(1)
                if out.empty():
                    print(f"| {model} | {method} | failed |", flush=True)
                    continue
                short, whole, figures = out.get()
                process.join()
            cells = [
                "-"
                if name not in figures
                else f"{figures[name]:.0f}"
                if name == "memory"
                else f"{figures[name]:.2f}"
                if name == "last"
                else f"{figures[name] / short:.1f} ({figures[name] / whole:.1f})"
                for name in COLUMNS
            ]
            name = Path(model).name or model
            print(
                f"| {name} | {method} | {short:.4f} ({whole:.4f}) | {' | '.join(cells)} |",
                flush=True,
            )
    print("In brackets: in passes with the logits of all tokens.")


def main() -> None:
    """Parse the command and run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("cost", help="what editing costs, in forward passes")
    verb.add_argument("models", nargs="+")
    verb.add_argument("--methods", nargs="+", default=["folio", "wise"])
    verb.add_argument("--edits", type=int, default=20)
    verb.add_argument("--device", default="cpu")
    verb.add_argument("--threads", type=int, default=1)
    verb.set_defaults(run=cost)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
