"""`make real`: OpenAI's client and a served SmolLM2; each answer is the library's own."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import uvicorn
from test_real import EDITS, folder_of

import errata
from errata.serve.app import make_app
from errata.serve.keys import Keys
from errata.serve.ledger import Ledger
from errata.serve.service import Service

pytestmark = pytest.mark.real
NEW, CLIENTS, REQUESTS = 12, 8, 64
PROMPTS = [
    *(edit.prompt for edit in EDITS),
    "Name the capital of Australia.",
    "Is the capital of Australia Sydney?",
    "Which river runs through London?",
    "Tell me, in one sentence and in plain words, what a printer adds to a book whose mistakes "
    "were found when all copies had been printed and bound already.",
]
CONVERSATIONS = [
    [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": prompt}]
    for prompt in PROMPTS[:2]
] + [
    [
        {"role": "user", "content": "What is the capital of Australia?"},
        {"role": "assistant", "content": "I would have to look."},
        {"role": "user", "content": "Which language is spoken there?"},
    ]
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[errata.EditModel, str]]:
    """The model, and the address of a server that has its edits."""
    torch.set_num_threads(1)
    base, tokenizer = errata.load_base(folder_of("smollm2"), "float32")
    model = errata.get_edit_model(base, errata.FolioConfig(), tokenizer)
    store = tmp_path_factory.mktemp("serve") / "edits.db"
    service = Service(model, Ledger(f"sqlite:///{store}"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = make_app(service, "smollm2", Keys())
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    address = f"http://127.0.0.1:{port}/v1"
    import openai

    for edit in EDITS:
        with openai.OpenAI(api_key="none", base_url=address) as api:
            body = {"prompt": edit.prompt, "target": edit.target, "subject": edit.subject}
            api.post("/edits", body=body, cast_to=object)
    yield model, address
    server.should_exit = True
    thread.join()
    service.close()
    assert Path(store).exists()


def test_eight_clients_at_a_time_get_what_the_library_says(
    served: tuple[errata.EditModel, str],
) -> None:
    model, address = served
    lm, wanted = model.lm, {}
    for prompt in PROMPTS:
        wanted["smollm2", prompt] = model.ask(prompt, max_new_tokens=NEW)
        wanted["smollm2-base", prompt] = model.ask_base(prompt, max_new_tokens=NEW)
    for number, messages in enumerate(CONVERSATIONS):
        text = lm.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        ids = torch.tensor([lm.tokenizer(text, add_special_tokens=False)["input_ids"]])
        options = {"max_new_tokens": NEW, "do_sample": False}
        found = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        wanted["smollm2", number] = lm.decode(found[0, ids.shape[1] :].tolist())
    changed = [edit for edit in EDITS if wanted["smollm2", edit.prompt] == edit.target]
    assert changed and wanted["smollm2", EDITS[0].prompt] != wanted["smollm2-base", EDITS[0].prompt]

    def ask(number: int) -> tuple[tuple[str, str | int], str]:
        import openai

        name, asked = random.Random(number).choice(list(wanted))
        messages = (
            CONVERSATIONS[asked] if isinstance(asked, int) else [{"role": "user", "content": asked}]
        )
        options = {"model": name, "temperature": 0, "max_tokens": NEW, "messages": messages}
        with openai.OpenAI(api_key="none", base_url=address) as api:
            if number % 2:
                chunks = api.chat.completions.create(stream=True, **options)
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            else:
                text = api.chat.completions.create(**options).choices[0].message.content
        return (name, asked), text

    with ThreadPoolExecutor(CLIENTS) as pool:
        told = list(pool.map(ask, range(REQUESTS)))
    assert {key for key, _ in told} == set(wanted)
    wrong = [(key, text, wanted[key]) for key, text in told if text.strip() != wanted[key]]
    assert not wrong, wrong
