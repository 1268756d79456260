"""Measures edits in other engines: the same corrections, the same questions, one table.

    python benchmarks/engines.py prepare MODEL.gguf --data FOLDER --out DIR [--edits 50]
    python benchmarks/engines.py run transformers MODEL.gguf --out DIR
    PYTHONPATH=src ENGINE/bin/python benchmarks/engines.py run llama.cpp MODEL.gguf --out DIR
    OMP_NUM_THREADS=1 ENGINE/bin/python benchmarks/engines.py run vllm DIR/base --out DIR
    python benchmarks/engines.py table --out DIR [--record]

`prepare` writes corrections of CounterFact with Folio, saves and exports them; what is asked goes
into DIR as token ids, so that every engine reads the same. `run` asks in an engine, once without
and once with the edits; llama.cpp's environment needs llama-cpp-python, numpy and regex, and reads
the quantized file itself; vLLM's has errata installed (`pip install --no-deps .`), so that vLLM
finds the plug-in, and reads the dequantized checkpoint that `prepare` writes. Answers are free,
greedy, of 24 tokens at most:

    reliability, generalization   share of the edits' prompts, and of their paraphrases, that are
                                  answered with the target
    neighbour, same subject       share of the other prompts, about other things and about the
                                  edited subject, whose answer is the engine's own without edits
    tokens per second             with the edits, as a share of those without, in turns, at prompts
                                  of neighbours, 64 tokens each

The row `folio` is the edited model itself, whose router sees the states in the middle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST, LONG, ROUNDS = 24, 64, 7
"""Tokens of an answer; and of one that is timed; and how often."""
EACH = 2
"""Other prompts of each kind that are asked for an edit."""
AT_ONCE = 16
"""Requests that an engine which serves many at once is asked together."""
Ask = Callable[[list[int], int, bool], list[int]]
"""Answers token ids: prompt, most new tokens, with the edits or without; gives the new ones."""
AskAll = Callable[[list[list[int]], int, bool], list[list[int]]]
"""Answers several prompts."""


def prepare(options: argparse.Namespace) -> None:
    """Write the edits, their export, and what is asked."""
    import errata
    from errata.bench.task import find_task, load
    from errata.engines.exporting import export_edits

    cases = load(find_task("counterfact-nested"), options.data).cases[: options.edits]
    base, tokenizer = errata.load_base(options.model, "float32")
    model = errata.get_edit_model(base, errata.FolioConfig(), tokenizer)
    base.save_pretrained(options.out / "base")
    tokenizer.save_pretrained(options.out / "base")
    model.edit([case.edit for case in cases], check=False)
    model.save_pretrained(options.out / "edited")
    export_edits(model, options.out / "export")
    asked = []
    for case in cases:
        kinds = [("reliability", case.edit.prompt)]
        kinds += [("generalization", text) for text in case.rephrases]
        for kind in dict.fromkeys(probe.kind for probe in case.locality):
            mine = [probe.prompt for probe in case.locality if probe.kind == kind]
            kinds += [(kind, prompt) for prompt in mine[:EACH]]
        asked += [
            {"kind": kind, "ids": model.lm.encode_prompt(prompt), "target": case.edit.target}
            for kind, prompt in kinds
        ]
    texts = {"ends": list(model.lm.end_ids), "asked": asked}
    (options.out / "asked.json").write_text(json.dumps(texts))


def in_transformers(options: argparse.Namespace) -> Ask:
    """Answer with transformers' generate; the file is dequantized."""
    import torch

    import errata
    from errata.engines.processor import EditProcessor
    from errata.engines.transformers import EditLogits

    torch.set_num_threads(options.threads)
    base, tokenizer = errata.load_base(options.model, "float32")
    lm, edits = errata.LM(base, tokenizer), EditProcessor.load(options.out / "export")

    def ask(ids: list[int], most: int, edited: bool) -> list[int]:
        row = torch.tensor([ids])
        out = base.generate(
            row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=most,
            pad_token_id=lm.pad_id, min_new_tokens=most if most == LONG else None,
            logits_processor=[EditLogits(edits)] if edited else None,
        )  # fmt: skip
        return list(out[0, len(ids) :].tolist())

    return ask


def with_folio(options: argparse.Namespace) -> Ask:
    """Answer with the edited model itself."""
    import torch

    import errata

    torch.set_num_threads(options.threads)
    model = errata.load(options.out / "edited", "float32")

    def ask(ids: list[int], most: int, edited: bool) -> list[int]:
        row = torch.tensor([ids])
        settings = {
            "attention_mask": torch.ones_like(row), "do_sample": False, "max_new_tokens": most,
            "pad_token_id": model.lm.pad_id, "min_new_tokens": most if most == LONG else None,
        }  # fmt: skip
        if edited:
            out = model.generate(row, **settings)
        else:
            with model.disable_edits():
                out = model.generate(row, **settings)
        return list(out[0, len(ids) :].tolist())

    return ask


def in_llama_cpp(options: argparse.Namespace) -> Ask:
    """Answer with llama.cpp, on the file as it is."""
    from llama_cpp import Llama, LogitsProcessorList

    from errata.engines.llama_cpp import edits_for, logits_processor

    threads = {"n_threads": options.threads, "n_threads_batch": options.threads}
    model = Llama(str(options.model), n_ctx=1024, verbose=False, **threads)
    edits = edits_for(model, str(options.out / "export"))
    ends = set(json.loads((options.out / "asked.json").read_text())["ends"])

    def ask(ids: list[int], most: int, edited: bool) -> list[int]:
        processors = LogitsProcessorList([logits_processor(edits)]) if edited else None
        said: list[int] = []
        model.reset()  # else what another call read is not read again: other sums, other seconds
        for token in model.generate(ids, temp=0.0, repeat_penalty=1.0, logits_processor=processors):
            said.append(int(token))
            if len(said) == most or (said[-1] in ends and most != LONG):
                break
        return said

    return ask


def in_vllm(options: argparse.Namespace) -> AskAll:
    """Answer with vLLM, which finds the plug-in by itself."""
    import os

    os.environ["ERRATA_EDITS"] = str(options.out / "export")
    from vllm import LLM, SamplingParams

    model = LLM(
        str(options.model), dtype="float32", max_model_len=1024, max_num_seqs=AT_ONCE,
        enforce_eager=True, enable_prefix_caching=False, async_scheduling=False,
        gpu_memory_utilization=0.4,  # of the CPU's memory, where there is no GPU
    )  # fmt: skip

    def ask(prompts: list[list[int]], most: int, edited: bool) -> list[list[int]]:
        settings = SamplingParams(
            temperature=0, max_tokens=most, ignore_eos=most == LONG, detokenize=False,
            extra_args={"errata": edited},
        )  # fmt: skip
        rows = [{"prompt_token_ids": ids} for ids in prompts]
        found = model.generate(rows, settings, use_tqdm=False)
        return [list(out.outputs[0].token_ids) for out in found]

    return ask


def one_by_one(engine: Callable[[argparse.Namespace], Ask]) -> Callable[..., AskAll]:
    """Ask an engine that answers one prompt."""

    def start(options: argparse.Namespace) -> AskAll:
        ask = engine(options)
        return lambda prompts, most, edited: [ask(ids, most, edited) for ids in prompts]

    return start


ENGINES: dict[str, Callable[[argparse.Namespace], AskAll]] = {
    "folio": one_by_one(with_folio),
    "transformers": one_by_one(in_transformers),
    "llama.cpp": one_by_one(in_llama_cpp),
    "vllm": in_vllm,
}


def run(options: argparse.Namespace) -> None:
    """Ask in an engine, and write what it said."""
    from errata.engines.processor import EditProcessor

    texts = EditProcessor.load(options.out / "export").texts
    found = json.loads((options.out / "asked.json").read_text())
    ask, ends = ENGINES[options.engine](options), set(found["ends"])

    def said(asked: list[dict[str, Any]], edited: bool) -> list[str]:
        texts_of = []
        for tokens in ask([each["ids"] for each in asked], MOST, edited):
            stop = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
            texts_of.append(texts.read(tokens[:stop])[0].strip())
        return texts_of

    rows, asked = [], found["asked"]
    for start in range(0, len(asked), 2 * AT_ONCE):
        print(f"{options.engine}: {start} of {len(asked)}", flush=True)
        some = asked[start : start + 2 * AT_ONCE]
        for each, before, after in zip(some, said(some, False), said(some, True), strict=True):
            rows.append({**each, "before": before, "after": after})
    calm = [each["ids"] for each in found["asked"] if each["kind"] == "neighbour"]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(ROUNDS):
        for edited in (False, True):
            began = time.perf_counter()
            count = len(ask([calm[turn]], LONG, edited)[0])
            seconds[edited].append((time.perf_counter() - began) / count)
    speeds = {str(edited): 1 / statistics.median(each) for edited, each in seconds.items()}
    result = {"engine": options.engine, "rows": rows, "speeds": speeds}
    (options.out / f"{options.engine}.json").write_text(json.dumps(result, ensure_ascii=False))


def table(options: argparse.Namespace) -> None:
    """Print a line for each engine that was run; record them if that is wanted."""
    lines = []
    for engine in ENGINES:
        file = options.out / f"{engine}.json"
        if not file.exists():
            continue
        found = json.loads(file.read_text())
        shares: dict[str, list[bool]] = {}
        for row in found["rows"]:
            if row["kind"] in ("reliability", "generalization"):
                right = row["after"].strip(" .") == row["target"].strip(" .")
            else:
                right = row["after"] == row["before"]
            shares.setdefault(row["kind"], []).append(right)
        speeds = found["speeds"]
        line: dict[str, Any] = {"engine": engine}
        line |= {kind: f"{sum(each) / len(each):.2f}" for kind, each in shares.items()}
        line |= {
            "tokens/s": f"{speeds['True']:.1f}",
            "with / without": f"{speeds['True'] / speeds['False']:.3f}",
        }
        lines.append(line)
        print(line)
    if options.record:
        import results

        results.write("engines", lines)


def main() -> None:
    """Run one of the steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    for name, step in (("prepare", prepare), ("run", run), ("table", table)):
        each = steps.add_parser(name)
        each.set_defaults(call=step)
        if name == "run":
            each.add_argument("engine", choices=list(ENGINES))
        if name != "table":
            each.add_argument("model", type=Path)
        each.add_argument("--out", type=Path, required=True)
        each.add_argument("--data", type=Path)
        each.add_argument("--edits", type=int, default=50)
        each.add_argument("--threads", type=int, default=1)
        each.add_argument("--record", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    options.call(options)


if __name__ == "__main__":
    main()
