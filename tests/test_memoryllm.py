"""MemoryLLM against plain forward passes, its forgetting against theory, M+, and checkpoints."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from edited import EDITS, EXAMPLES, PROMPTS, edit_model, edited_model, same_state
from families import HIDDEN, N_LAYERS, TWELVE, tiny_model, tiny_tokenizer
from safetensors.torch import save_file

import errata
from errata import EditModel
from errata.errors import ConfigError
from errata.lm.encoding import Row
from errata.methods.association.memoryllm.learning import Learning, _shared
from errata.methods.association.memoryllm.patch import MemoryTokens
from errata.methods.association.memoryllm.pool import Pool, after_updates
from errata.patches.layout import Layout

N, K = 6, 2
PLUS = {"recalled_tokens": 4, "retriever_width": 8}


def untrained(family="llama", **settings):
    config = errata.method_class("memoryllm").config_class.from_dict(
        {"memory_tokens": N, "new_tokens": K, "training_steps": 3, **settings}
    )
    return EditModel(tiny_model(family), config, tiny_tokenizer())


def awake(network):
    """A network whose adapters do something, unlike those before training."""
    draw = torch.Generator().manual_seed(5)
    for parameter in network.parameters.values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)


def by_hand(model, adapters, memory, ids, mark=None, recall=None):
    """Logits (tokens, vocabulary) of one text, and each block's output for memory and text, from
    the model's blocks called one after another.
    """
    body, outputs = model.base.model, []
    with torch.no_grad(), adapters.on(model.lm):
        hidden = body.embed_tokens(torch.tensor([ids]))
        n = memory[0].shape[0] + (0 if recall is None else recall[0].shape[0])
        places = torch.arange(-n, len(ids))[None]
        angles = body.rotary_emb(hidden, places)
        seen = torch.full((n + len(ids),) * 2, -torch.inf).triu(1)[None, None]
        for layer, block in enumerate(body.layers):
            own = memory[layer]
            if recall is not None:
                own = torch.cat([own[:1], recall[layer], own[1:]])
            both = torch.cat([own[None], hidden], dim=1)
            if mark is not None:
                both[:, -K:] += mark
            out = block(both, attention_mask=seen, position_ids=places, position_embeddings=angles)
            out = out[0] if isinstance(out, tuple) else out
            outputs.append(out[0])
            hidden = out[:, n:]
        return model.base.lm_head(body.norm(hidden))[0], torch.stack(outputs)


# the memory


def test_attention_sees_the_memory_of_its_layer_and_then_the_text():
    model = edited_model("llama", "memoryllm", EDITS[:2])
    network, lm = model.method.network, model.lm
    awake(network)
    with model.disable_edits():
        patch = network.tokens(model.method.pool.vectors)
        rows = [lm.encode_prompt(prompt) for prompt in PROMPTS[:4]]
        wanted = [by_hand(model, network.reader, patch.states, ids)[0] for ids in rows]
        for side in ("left", "right"):
            batch = lm.prompt_batch(PROMPTS[:4], side)
            with patch.on(lm), torch.no_grad():
                logits = lm.run(batch).logits
            for row, mask, expected in zip(logits, batch.prompt_mask, wanted, strict=True):
                torch.testing.assert_close(row[mask], expected, rtol=0, atol=1e-4)


def test_a_text_becomes_the_last_outputs_of_each_block():
    """Shorter ones than K take outputs of the memory before them."""
    model = edited_model("llama", "memoryllm", EDITS[:2])
    network, pool = model.method.network, model.method.pool
    awake(network)
    memory = torch.cat([network.sink, pool.vectors[:, -K:]], dim=1)
    with model.disable_edits():
        for ids in (model.lm.encode_prompt(PROMPTS[0]), [7]):
            _, outputs = by_hand(model, network.writer, memory, ids, mark=network.mark)
            new = network.written(Row(tuple(ids), len(ids)), pool)
            torch.testing.assert_close(new, outputs[:, -K:], rtol=1e-4, atol=1e-4)


def test_an_edit_changes_no_old_vector_but_drops_some():
    model = edit_model("llama", "memoryllm", EDITS[:1])
    for edit in EDITS[1:]:
        before, row = model.method.pool.vectors.clone(), model.method
        with model.disable_edits():
            new = row.network.written(row.encode(edit), row.pool)
        model.edit([edit], check=False)
        after = model.method.pool.vectors
        assert after.shape == before.shape and torch.equal(after[:, -K:], new)
        for old, kept in zip(before, after[:, :-K], strict=True):
            places = [
                next(i for i, vector in enumerate(old) if torch.equal(vector, each))
                for each in kept
            ]
            assert places == sorted(set(places))


def test_what_an_edit_drops_is_drawn_from_the_seed_its_place_and_the_edit():
    one, other = (untrained(seed=seed).method for seed in (0, 1))
    draws = [
        method._draw_of(edit, place).initial_seed()
        for method, edit, place in (
            (one, EDITS[0], 0), (other, EDITS[0], 0), (one, EDITS[1], 0), (one, EDITS[0], 1)
        )
    ]  # fmt: skip
    assert len(set(draws)) == len(draws)
    assert one._draw_of(EDITS[0], 0).initial_seed() == draws[0]


@pytest.mark.parametrize("times", [1, 5, 20, 50])
def test_what_is_left_of_an_edit_after_more_of_them_is_what_theory_says(times):
    """(1 - K / N)^t of the vectors, within four standard deviations of as many coins."""
    layers, size, new = 100, 240, 8
    draw = torch.Generator().manual_seed(times)
    vectors = torch.arange(float(size)).expand(layers, size)[..., None]
    pool = Pool(vectors, vectors[:, :0])
    for i in range(times):
        later = torch.full((layers, new, 1), 1000.0 + i)
        pool = pool.updated(later, draw, keep_dropped=False)
    left = (pool.vectors[..., 0] >= size - new).logical_and(pool.vectors[..., 0] < size)
    share, theory = left.float().sum().item() / (layers * new), (1 - new / size) ** times
    assert abs(share - theory) < 4 * (theory * (1 - theory) / (layers * new)) ** 0.5
    drawn = after_updates(layers, size, new, times, torch.Generator().manual_seed(times))
    wanted = torch.where(
        drawn < size, drawn, 1000 + torch.div(drawn - size, new, rounding_mode="floor")
    )
    assert torch.equal(wanted.float(), pool.vectors[..., 0])


def test_undo_is_as_if_the_edit_had_never_been():
    model = edited_model("llama", "memoryllm", EDITS[:4])
    model.undo([EDITS[1].id])
    same_state(model, edit_model("llama", "memoryllm", [EDITS[0], *EDITS[2:4]]))


# training


@pytest.mark.parametrize("opening", ["", PROMPTS[0]])
def test_what_is_read_once_for_all_rows_is_what_stands_in_front_of_each(opening):
    model = untrained(**PLUS)
    network, lm = model.method.network, model.lm
    awake(network)
    learning, memory = Learning(lm, network, EXAMPLES), network.filled().vectors
    texts = [lm.encode_prompt(f"{opening} {prompt}".strip()) for prompt in PROMPTS]
    batch = lm.batch([Row(tuple(ids), len(ids)) for ids in texts], "right")
    assert (_shared(batch) > 2) == bool(opening)
    with torch.no_grad():
        logits, inputs = learning._logits(batch, memory)
        with network.tokens(memory).on(lm):
            wanted = lm.run(batch).logits
    mask = batch.prompt_mask
    torch.testing.assert_close(logits[mask], wanted[mask], rtol=0, atol=1e-4)
    assert len(inputs) == N_LAYERS and inputs[0].shape == (*mask.shape, HIDDEN)


@pytest.mark.parametrize("family", TWELVE)
def test_what_is_made_of_the_memory_is_left_out_and_nothing_changes(family, monkeypatch):
    model = untrained(family)
    network, lm = model.method.network, model.lm
    awake(network)
    vectors = network.filled().vectors
    batch = lm.batch([Row(tuple(ids), len(ids)) for ids in map(lm.encode_prompt, PROMPTS)])
    read = []
    monkeypatch.setattr(
        Layout, "narrowed", lambda layout, x, own=Layout.narrowed: read.append(1) or own(layout, x)
    )
    with torch.no_grad():
        with network.tokens(vectors).on(lm):
            logits = lm.run(batch).logits
        some = len(read)
        monkeypatch.setattr(MemoryTokens, "_narrow", lambda *_: None)
        monkeypatch.setattr(MemoryTokens, "_widen", lambda *_: None)
        with network.tokens(vectors).on(lm):
            wanted = lm.run(batch).logits
    mask = batch.attention_mask.bool()
    torch.testing.assert_close(logits[mask], wanted[mask], rtol=0, atol=1e-4)
    assert (some > len(read) - some) == (family != "opt")  # whose block has no such module


@pytest.mark.long
def test_training_moves_all_that_is_trained_and_goes_on_where_it_was_stopped():
    models = [untrained(**PLUS, contexts=4) for _ in range(2)]
    before = models[0].method.network.state()

    class Stopped(Exception):
        pass

    def stop(_):
        raise Stopped

    models[0].prepare(EXAMPLES)
    with pytest.raises(Stopped):
        models[1].prepare(EXAMPLES, stop)
    assert models[1].method.steps_left == 2
    resumed = copy.deepcopy(models[1])
    resumed.prepare(EXAMPLES)
    same_state(resumed, models[0], atol=1e-6)
    after = models[0].method.network.state()
    still = {name for name, each in before.items() if torch.equal(each, after[name])}
    assert not still
    assert not any(each.requires_grad for each in models[0].method.network.parameters.values())


@pytest.mark.long
@pytest.mark.parametrize("written", ["outputs", "inputs"])
def test_broken_off_it_goes_on_to_the_byte(tmp_path, written):
    """Of `inputs`, the last block's writer makes nothing that is read, and has no moments."""
    unbroken, model = (untrained(contexts=4, written=written) for _ in range(2))
    made = []
    unbroken.prepare(EXAMPLES)

    def progress(count):
        made.append(count)
        if len(made) == 2:
            model.save_pretrained(tmp_path / "a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.prepare(EXAMPLES, progress)
    with pytest.raises(ConfigError, match="memoryllm is not trained for this model yet"):
        model.edit(EDITS[:1])
    model = EditModel.from_pretrained(tiny_model("llama"), tmp_path / "a", tiny_tokenizer())
    model.prepare(EXAMPLES)
    for each, name in ((model, "a"), (unbroken, "b")):
        each.save_pretrained(tmp_path / name)
    for file in ("edit_config.json", "edit_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


@pytest.mark.long
def test_trained_on_atlas_it_says_what_it_was_told():
    from errata.atlas import make_cases, training_cases
    from errata.evaluation import evaluate
    from errata.presets import preset_for

    cases = make_cases(10, seed=3)
    base, tokenizer = errata.load_base("atlas", "float32")
    settings = preset_for("memoryllm", base.config).settings
    config = errata.method_class("memoryllm").config_class.from_dict(settings)
    model = errata.get_edit_model(base, config, tokenizer)
    model.prepare([case.example() for case in training_cases(1000, cases)])
    model.edit([case.edit for case in cases])
    figures = evaluate(model, cases).to_dict()["teacher_forced"]
    assert figures["reliability"] > 0.6 and figures["generalization"] > 0.5


# M+


@pytest.mark.long
def test_what_is_dropped_is_kept_and_recalled_by_the_prompt_alone():
    model = edit_model("llama", "memoryllm", EDITS, **PLUS)
    method, lm = model.method, model.lm
    assert method.pool.dropped.shape == (N_LAYERS, len(EDITS) * K, HIDDEN)
    assert method.patch.count == 1 + 4 + N
    chosen = []
    recall = method.patch.recall

    def listening(layer, hidden, prompt):
        chosen.append(recall(layer, hidden, prompt))
        return chosen[-1]

    method.patch.recall = listening

    def asked(batch, mask):
        chosen.clear()
        with errata.lm.prompt_tokens(mask), torch.no_grad():
            model.base(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
            )
        return torch.stack(chosen)

    with model.disable_edits(), method.patch.on(lm):
        batch = lm.batch([lm.encode(prompt, "two brothers") for prompt in PROMPTS])
        together = asked(batch, batch.prompt_mask)
        for i, prompt in enumerate(PROMPTS):
            alone = asked(*[(each := lm.prompt_batch(prompt)), each.prompt_mask])
            torch.testing.assert_close(together[:, i], alone[:, 0], rtol=0, atol=1e-6)
    assert not torch.equal(together[:, 0], together[:, 1])


# released checkpoints

SIZES = {"memory_tokens": N, "new_tokens": K, "rank": 3, "alpha": 6.0}
TARGETS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")


def written_checkpoint(folder, long_term=False, two=True):
    """A random checkpoint of the published layout on the tiny Llama; its tensors."""
    draw = torch.Generator().manual_seed(3)
    random = lambda *shape: torch.randn(*shape, generator=draw) * 0.3  # noqa: E731
    base = {name: each.clone() for name, each in tiny_model("llama").state_dict().items()}
    tensors = {
        "memory": random(N_LAYERS, N, HIDDEN),
        "bos_embedding": random(N_LAYERS, 1, HIDDEN),
        "new_memory_positional_emb": random(1, 1, HIDDEN),
        "initialized": torch.ones((), dtype=torch.uint8),
    }
    for name, weight in base.items():
        path = name.removesuffix(".weight")
        if not path.endswith(TARGETS):
            tensors[name] = weight
            continue
        tensors[f"{path}.base_layer.weight"] = weight
        for adapter in ("default", "decoder_adapter")[: 1 + two]:
            tensors[f"{path}.lora_A.{adapter}.weight"] = random(3, weight.shape[1])
            tensors[f"{path}.lora_B.{adapter}.weight"] = random(weight.shape[0], 3)
    config = {
        "num_tokens": K,
        "num_blocks": N // K + 2 * long_term,
        "lora_config": {"r": 3, "lora_alpha": 6, "target_modules": list(TARGETS)},
    }
    if long_term:
        config |= {"num_ltm_blocks": 2, "selector_hidden_dim": 8, "num_selector_layers": 2}
        for layer in range(N_LAYERS):
            tensors[f"ltm.{layer}"] = random(5 + layer, HIDDEN)
            tensors[f"ltm_keys.{layer}"] = random(5 + layer, 8)
            for kind in ("query", "key"):
                at = f"model.layers.{layer}.self_attn.{kind}_proj"
                tensors |= {f"{at}.0.weight": random(16, HIDDEN), f"{at}.2.weight": random(8, 16)}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    for part in range(2):  # in shards
        shard = {name: tensors[name].contiguous() for name in names[part::2]}
        save_file(shard, folder / f"model-0000{part + 1}-of-00002.safetensors")
    return tensors


def adapted(tensors, adapter):
    """The tiny Llama with an adapter of a checkpoint in its weights."""
    model = tiny_model("llama")
    for name, weight in model.state_dict().items():
        path = name.removesuffix(".weight")
        if f"{path}.lora_A.{adapter}.weight" in tensors:
            down, up = (tensors[f"{path}.lora_{which}.{adapter}.weight"] for which in "AB")
            weight += 6 / 3 * up @ down
    return model


class Nothing:
    """Adapters that are in the weights."""

    def on(self, _):
        from contextlib import nullcontext

        return nullcontext()


@pytest.mark.parametrize("two", [True, False])
def test_a_released_checkpoint_reads_and_writes_as_published(tmp_path, two):
    tensors = written_checkpoint(tmp_path / "released", two=two)
    model = untrained(**SIZES, checkpoint=str(tmp_path / "released"))
    model.edit(EDITS[:1], check=False)
    method, lm = model.method, model.lm
    front = torch.cat([tensors["bos_embedding"], tensors["memory"][:, -K:]], dim=1)
    with model.disable_edits():
        row = method.encode(EDITS[0])
    writing = EditModel(adapted(tensors, "default"), method.config, tiny_tokenizer())
    mark = tensors["new_memory_positional_emb"]
    _, outputs = by_hand(writing, Nothing(), front, row.ids, mark=mark)
    torch.testing.assert_close(method.pool.vectors[:, -K:], outputs[:, -K:], rtol=1e-4, atol=1e-4)

    weights = adapted(tensors, "decoder_adapter" if two else "default")
    reading = EditModel(weights, method.config, tiny_tokenizer())
    memory = torch.cat([tensors["bos_embedding"], method.pool.vectors], dim=1)
    ids = lm.encode_prompt(PROMPTS[0])
    wanted, _ = by_hand(reading, Nothing(), memory, ids)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "edited")
    (tmp_path / "released").rename(tmp_path / "elsewhere")  # what was read is in the folder
    again = EditModel.from_pretrained(tiny_model("llama"), tmp_path / "edited", tiny_tokenizer())
    same_state(again, model)
    again.undo(EDITS[0].id)
    assert torch.equal(again.method.pool.vectors, tensors["memory"])


def test_a_released_store_is_searched_as_published(tmp_path):
    tensors = written_checkpoint(tmp_path, long_term=True)
    plus = {"recalled_tokens": 2 * K, "retriever_width": 8}
    model = untrained(**{**SIZES, **plus}, checkpoint=str(tmp_path))
    model.edit(EDITS[:1], check=False)
    method, lm = model.method, model.lm
    dropped = method.pool.dropped
    assert dropped.shape[1] == 5 + K
    for layer in range(N_LAYERS):
        assert torch.equal(dropped[layer, :5], tensors[f"ltm.{layer}"][-5:])
    ids, layer = lm.encode_prompt(PROMPTS[0]), 2
    hidden = torch.randn(1, len(ids), HIDDEN, generator=torch.Generator().manual_seed(0))
    norm = model.base.model.layers[layer].input_layernorm

    def mapped(kind, states):
        at = f"model.layers.{layer}.self_attn.{kind}_proj"
        inner, outer = tensors[f"{at}.0.weight"], tensors[f"{at}.2.weight"]
        return torch.nn.functional.silu(norm(states) @ inner.T) @ outer.T

    with torch.no_grad():
        found = (mapped("query", hidden[0]) @ mapped("key", dropped[layer]).T).sigmoid().mean(0)
    wanted = dropped[layer][found.topk(2 * K).indices.sort().values]
    prompt = torch.ones(1, len(ids), dtype=torch.bool)
    assert torch.equal(method.patch.recall(layer, hidden, prompt)[0], wanted)


@pytest.mark.parametrize(
    ("spoil", "settings", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), {}, "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{}"), {}, "lacks 'num_blocks'"),
        (lambda folder: None, {"rank": 4}, "is for other settings: rank=3"),
        (lambda folder: None, {"memory_tokens": 8}, "other settings: memory_tokens=6"),
        (
            lambda folder: save_file({"memory": torch.zeros(1)}, folder / "model-3.safetensors"),
            {}, "'memory'",
        ),
        (
            lambda folder: save_file(
                {"model.layers.0.self_attn.q_proj.base_layer.weight": torch.zeros(32, 32)},
                folder / "model-3.safetensors",
            ),
            {}, "is of another base model",
        ),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_of_this_model_is_told(tmp_path, spoil, settings, message):
    written_checkpoint(tmp_path)
    for path in tmp_path.glob("model-0*"):
        path.rename(path.with_name(path.name.replace("0000", "1000")))
    spoil(tmp_path)
    with pytest.raises((ConfigError, ValueError), match=message):
        untrained(**{**SIZES, **settings}, checkpoint=str(tmp_path)).edit(EDITS[:1], check=False)


def test_settings_that_say_nothing():
    with pytest.raises(ConfigError, match="cannot become more vectors than the memory has"):
        untrained(new_tokens=8)
