"""Chat templates as models have them: questions stay whole, and texts parse back turn by turn."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from edited import edit_model
from families import tiny_model, tiny_tokenizer
from grid import grid

from errata import Edit, EditModel
from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.chat import ChatTemplate
from errata.methods.recognition.rag import RagConfig
from errata.patches.context import ContextPatch
from errata.patches.question import question_mask

EACH = "{% for m in messages %}"
END = "{% endfor %}"
ASK = "{% if add_generation_prompt %}"
TEMPLATES: dict[str, str] = {
    "llama3": "{{ '<|begin|>' }}" + EACH
    + "<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}<|eot|>" + END + ASK
    + "<|start|>assistant<|end|>\n\n{% endif %}",
    "llama2": EACH + "{% if m.role == 'user' %}{{ '<s>' }}[INST] {{ m.content.strip() }} [/INST]"
    "{% elif m.role == 'system' %}<<SYS>>{{ m.content }}<</SYS>>"
    "{% else %} {{ m.content.strip() }} </s>{% endif %}" + END,
    "mistral": "{{ '<s>' }}" + EACH + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}" + END,
    "chatml": EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + END
    + ASK + "<|im_start|>assistant\n{% endif %}",
    "chatml with a system of its own": "{% if messages[0].role != 'system' %}"
    "<|im_start|>system\nYou are kind.<|im_end|>\n{% endif %}" + EACH
    + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + END
    + ASK + "<|im_start|>assistant\n{% endif %}",
    "thinking": EACH
    + "<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n"
    + END + ASK + "<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}",
    "gemma": "{{ '<bos>' }}" + EACH
    + "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n" + END + ASK + "<start_of_turn>model\n{% endif %}",
    "phi3": EACH + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n" + END
    + ASK + "<|assistant|>\n{% endif %}",
    "zephyr": EACH + "<|{{ m.role }}|>\n{{ m.content }}</s>\n" + END
    + ASK + "<|assistant|>\n{% endif %}",
    "vicuna": "A chat. " + EACH + "{% if m.role == 'user' %}USER: {{ m.content }} "
    "{% else %}ASSISTANT: {{ m.content }}</s>{% endif %}" + END + ASK + "ASSISTANT:{% endif %}",
    "plain words": EACH + "{{ m.role | capitalize }}: {{ m.content }}\n\n" + END
    + ASK + "Assistant:{% endif %}",
    "parts": EACH + "<|im_start|>{{ m.role }}:{% for c in m.content %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}" + END + "<end>\n" + END
    + ASK + "Assistant:{% endif %}",
    "parts or text": EACH + "<turn>{{ m.role }}\n{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for c in m.content %}{{ c['text'] }}" + END + "{% endif %}</turn>\n" + END
    + ASK + "<turn>assistant\n{% endif %}",
    "one turn only": "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}"
    "### Instruction:\n{{ messages[0].content }}\n\n### Response:\n",
}  # fmt: skip
SHAPES = pytest.mark.parametrize("shape", TEMPLATES)
QUESTION = "Who is the mayor of Kelor?"
TALK = [("user", "Who is the mayor of Tamis?"), ("assistant", "Ilo Varn"), ("user", QUESTION)]


def long_model() -> Any:
    """A tiny model with room for what templates write in single letters."""
    model = tiny_model("llama")
    model.config.max_position_embeddings = 1024
    return model


def tokenizer_of(shape: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATES[shape]
    return tokenizer


def written(tokenizer: Any, *turns: tuple[str, str], parts: bool = False) -> list[int]:
    """Ids of a conversation as a caller of `apply_chat_template` gets them."""
    messages = [
        {"role": r, "content": [{"type": "text", "text": said}] if parts else said}
        for r, said in turns
    ]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def needs_parts(shape: str) -> bool:
    return shape == "parts"


@SHAPES
@pytest.mark.parametrize("prompt", [QUESTION, "x", "한국의 수도는?", "A\nB", "user: what?"])
def test_a_prompt_is_asked_and_read_back(shape, prompt):
    lm = LM(long_model(), tokenizer_of(shape))
    assert prompt in lm.apply_chat_template(prompt)
    ids = lm.encode_prompt(prompt)
    assert ids == written(lm.tokenizer, ("user", prompt), parts=needs_parts(shape))
    read = lm.conversation(ids)
    assert read.prompt == prompt and read.questions == (prompt,)
    whole = torch.tensor([ids])
    assert question_mask(lm, whole, torch.ones_like(whole).bool()).all()


@SHAPES
def test_white_space_at_the_ends_is_the_templates_affair(shape):
    lm = LM(long_model(), tokenizer_of(shape))
    ids = lm.encode_prompt(f" {QUESTION}  ")
    assert lm.conversation(ids).questions[0].strip() == QUESTION


@SHAPES
def test_what_is_put_in_front_of_a_prompt_is_read(shape):
    """It was not, where a template trims: the prompt could not be found in what it wrote."""
    plain, lm = (LM(long_model(), tokenizer_of(shape)) for _ in range(2))
    asked: list[str] = []

    def contexts(prompts: list[str]) -> list[tuple[str, ...]]:
        asked.extend(prompts)
        return [("Be brief. ",)] * len(prompts)

    ContextPatch(contexts, room=4).install(lm)
    with torch.no_grad():
        got = lm.model(torch.tensor([lm.encode_prompt(QUESTION)])).logits[0, -1]
        wanted = plain.model(torch.tensor([plain.encode_prompt("Be brief. " + QUESTION)])).logits[
            0, -1
        ]
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)
    assert asked == [QUESTION]


MANY_TURNS = pytest.mark.parametrize(
    "shape", [shape for shape in TEMPLATES if shape != "one turn only"]
)


@MANY_TURNS
@pytest.mark.parametrize("system", [None, "Answer like a pirate from Kelor."])
def test_the_last_question_is_read_first(shape, system):
    if system and shape in ("gemma", "llama2", "mistral"):
        pytest.skip("this template has no turn for a system")
    lm = LM(long_model(), tokenizer_of(shape))
    opening = [("system", system)] if system else []
    read = lm.conversation(written(lm.tokenizer, *opening, *TALK, parts=needs_parts(shape)))
    assert read.questions == (QUESTION, TALK[0][1]) and read.prompt is None
    one = lm.conversation(
        written(lm.tokenizer, *opening, ("user", QUESTION), parts=needs_parts(shape))
    )
    assert one.questions == (QUESTION,) and (one.prompt == QUESTION) == (not system)


@MANY_TURNS
def test_a_router_that_weighs_tokens_reads_those_of_the_last_turn(shape):
    lm = LM(long_model(), tokenizer_of(shape))
    single = lm.encode_prompt(QUESTION)
    talk = written(lm.tokenizer, *TALK, parts=needs_parts(shape))
    ids = torch.tensor([talk, [0] * (len(talk) - len(single)) + single])
    seen = ids.new_ones(ids.shape).bool()
    seen[1, : len(talk) - len(single)] = False
    kept = question_mask(lm, ids, seen)
    assert torch.equal(kept[1], seen[1])
    said = lm.tokenizer.decode(ids[0][kept[0]].tolist())
    assert QUESTION in said and "Tamis" not in said and "Varn" not in said
    assert abs(int(kept[0].sum()) - len(single)) <= 2, (
        "a turn later in the talk may be opened by a token more or less"
    )


@MANY_TURNS
def test_a_fact_is_told_inside_the_last_turn(shape):
    lm = LM(long_model(), tokenizer_of(shape))
    seen: list[str] = []
    patch = ContextPatch(lambda prompts: [("Be brief. ",)] * len(prompts), room=4)
    patch.install(lm)
    ids = tuple(written(lm.tokenizer, *TALK, parts=needs_parts(shape)))
    seen = [lm.tokenizer.decode(list(row)) for row in patch.with_contexts(lm, [ids])]
    assert seen == [lm.tokenizer.decode(list(ids)).replace(QUESTION, "Be brief. " + QUESTION)]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ bos_token }}Hello.", "writes a question 0 times"),
        (EACH + "{{ m.content }}{{ m.content }}" + END, "writes a question 2 times"),
        ("{{ raise_exception('never') }}", "fails on a plain question"),
        ("{{ messages[3].content }}", "fails on a plain question|writes a question 0 times"),
        ("{% for %}", "fails on a plain question"),
    ],
)
def test_a_template_that_does_not_ask_is_told_at_once(template, said):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=said) as error:
        LM(long_model(), tokenizer)
    assert "chat_template=false" in str(error.value) and "\n" not in str(error.value)
    assert LM(long_model(), tokenizer, chat=False).apply_chat_template("x") == "x"


def test_special_tokens_of_a_template_are_told_from_words():
    tokenizer = tokenizer_of("chatml")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    template = ChatTemplate(tokenizer)
    assert template.marks.opener == "<|im_start|>user\n"
    assert template.marks.closer.startswith("<|im_end|>")
    lm = LM(long_model(), tokenizer)
    assert lm.conversation(lm.encode_prompt(QUESTION)).prompt == QUESTION
    assert lm.conversation(written(tokenizer, *TALK)).questions == (QUESTION, TALK[0][1])


@grid(
    "shape method",
    [
        *product(
            ("llama3", "chatml with a system of its own", "parts", "vicuna"),
            ("rag", "wise", "folio", "grace"),
        )
    ],
    lambda shape, method: {shape, method},
)
def test_edits_are_found_in_every_kind_of_template(shape, method):
    """The edit's own prompt, through `apply_chat_template` as a caller writes it, is answered as
    `ask` answers it.
    """
    made = edit_model(
        "llama", method, **({"steps": 15} if method in ("wise", "folio") else {})
    ).method.config
    model = EditModel(long_model(), made, tokenizer_of(shape))
    model.edit(
        [Edit("Who is the king?", "Ann", "king"), Edit("Where is the tower?", "in York", "tower")],
        check=False,
    )
    six = {"max_new_tokens": 6, "min_new_tokens": 6}
    for prompt in ("Who is the king?", "Where is the tower?", "x"):
        ids = torch.tensor([written(model.tokenizer, ("user", prompt), parts=needs_parts(shape))])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **six
        )
        assert model.lm.decode(out[0, ids.shape[1] :].tolist()) == model.ask([prompt], **six)[0]
    with model.disable_edits():
        bare = model.lm.generate(["Who is the king?"], **six)
    assert model.ask(["Who is the king?"], **six) != bare


def test_rag_reads_the_last_turn_and_then_the_rest():
    model = EditModel(
        long_model(), RagConfig(layer=2, background=32, passage="{fact}. "), tokenizer_of("chatml")
    )
    looked: list[list[str]] = []
    model.edit([Edit("Who is the king?", "Ann", "king")], check=False)
    model.method.patch.context_for = lambda prompts: (
        looked.append(list(prompts)),
        [()] * len(prompts),
    )[1]
    for last in ("and where does he live?", "Who is the mayor of Tamis?"):
        ids = torch.tensor(
            [written(model.tokenizer, ("user", "Who?"), ("assistant", "Ann"), ("user", last))]
        )
        with torch.no_grad():
            model(ids)
    assert looked == [
        ["and where does he live?"],
        ["Who?\nand where does he live?"],
        ["Who is the mayor of Tamis?"],
    ]
