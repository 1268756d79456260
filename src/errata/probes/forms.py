"""Turns a question into a sentence to be completed, and such a sentence into a question.

A few rules of English, on the words around the subject. Where none fits, the whole prompt is
wrapped in a sentence of its own, so that every prompt has the other form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

_S = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Stands for the subject while rules are applied."""
_BE = "is|was|are|were"
_NOUN = r"\w[\w-]*(?: (?:of )?\w[\w-]*(?<!ly))??"
"""A noun of one word or two, as few as fit."""
_IRREGULAR = {
    "has": "have", "had": "have", "does": "do", "did": "do", "goes": "go", "went": "go",
    "wrote": "write", "made": "make", "spoke": "speak", "sang": "sing", "held": "hold",
    "led": "lead", "won": "win", "found": "find", "took": "take", "began": "begin", "ran": "run",
    "lost": "lose", "died": "die", "lies": "lie", "used": "use", "debuted": "debut",
    "declares": "declare", "premieres": "premiere", "passes": "pass", "teaches": "teach",
    "originates": "originate", "originated": "originate", "practised": "practise",
}  # fmt: skip
_PAST = r"\w+ed|made|wrote|built|ran|sang|led|won|founded"

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

_COMPLETIONS: tuple[Rule, ...] = (
    # The genus S is a part of what family?
    (r"(.+) (?:what|which) (\w+)", r"\1 the \2"),
    (rf"(.+ (?:by|{_BE})) (?:whom?|what)", r"\1"),
    # Whom is S named after?  Who is S's father?  What is S's birthplace?
    (rf"(?:what|whom?|which) ({_BE}) ((?:the )?{_S}) ((?!'|in\b|of\b).+)", r"\2 \1 \3"),
    (rf"(?:what|who|which) ({_BE}) ((?:the )?{_S}['’]s? .+)", r"\2 \1"),
    # What is the native tongue of S?  Which was the record label for S?
    (rf"(?:what|who|which) ({_BE}) (the .+)", r"\2 \1"),
    # Who developed S?
    (rf"who ({_PAST}) ((?:the )?{_S})", lambda m: f"{m[2]} was {_participle(m[1])} by"),
    # What original network is S on?  What type of submarine was S classified as?
    (rf"(?:what|which) ({_NOUN}(?: \w+)?) ({_BE}) ((?:the )?{_S}) (?!['’])(.+)",
     r"the \1 \3 \2 \4 is"),
    # What constellation is home to S?  What label was responsible for S?
    (rf"(?:what|which) ({_NOUN}(?: \w+)?) ({_BE}) (?!{_S}|the {_S})(.+)", r"the \1 that \2 \3 is"),
    # What company produced S?
    (rf"(?:what|which) ({_NOUN}) ((?:\w+ly )?(?:{_PAST})) (.+)", r"the \1 that \2 \3 is"),
    # What team does S play for?  Which school did S attend?
    (rf"(?:what|which) ({_NOUN}) does ((?:the )?{_S}) (\w+)(.*)",
     lambda m: f"the {m[1]} {m[2]} {_third(m[3])}{m[4]} is"),
)  # fmt: skip

_STATEMENTS: tuple[Rule, ...] = (
    # S, who holds the position of -> S holds the position of
    (rf"({_S}), (?:who|which|that) (.+)", r"\1 \2"),
    (rf"({_S}), whose (.+?)(?: that of)?", r"\1's \2"),
    (rf"({_S}), a product (of|(?:\w+ed) by)", r"\1 is a product \2"),
    (rf"({_S}), (located .+)", r"\1 is \2"),
    (rf"({_S}), ((?:\w+ed|named|written|built) (?:by|in|at|for|after))", r"\1 was \2"),
    (rf"({_S}), ((?:an?|from|in|by|at) .+ (?:by|of|from|in|at)|from|in|by|at)", r"\1 is \2"),
    (rf"({_S}), (perform|play)ing (.+)", r"\1 \2s \3"),
)

_QUESTIONS: tuple[Rule, ...] = (
    # What is the twin city of S? It is
    (r"((?:what|where|who|which)\b[^?]*)\?.*", r"\1"),
    # In S, an official language is
    (rf"in ({_S}), (?:an|the) (.+) (is)", r"what \3 the \2 in \1"),
    # The headquarters of S are in  /  The mother tongue of S is  /  S's profession is a
    (rf"the (.+) ({_BE})(?: in| at)", r"where \2 the \1"),
    (rf"({_S}['’]s .+) ({_BE})(?: in| at)", r"where \2 \1"),
    (rf"the (.+?),? ({_BE})(?: an?| the)?", r"what \2 the \1"),
    (rf"({_S}['’]s .+?),? ({_BE})(?: an?| the)?", r"what \2 \1"),
    # S writes in  /  S has a citizenship from  /  S lost their life at  /  S can be found in
    (rf"({_S}) (is|was) written in", r"in which language \2 \1 written"),
    (rf"({_S}) writes in", r"in which language does \1 write"),
    (rf"({_S}) (?:has|holds) a citizenship from", r"which country is \1 a citizen of"),
    (rf"({_S}) lost (his|her|its|their) life (?:in|at)", r"where did \1 lose \2 life"),
    (rf"({_S}) can be found (?:in|at)", r"where can \1 be found"),
    (rf"({_S}) works for", r"who does \1 work for"),
    # S is a product created by
    (rf"({_S}) is a product (\w+ed) by", r"who was \1 \2 by"),
    # S is located in the country of  /  S is a part of the continent of
    (rf"({_S}) ({_BE}) (.+ )?(in|on|of|at) the (\w+)(?: of)?", r"which \5 \2 \1 \3\4"),
    # S was born in  /  S is from  /  S is produced by  /  S was named for
    (rf"({_S}) ({_BE}) (.*?) ?(?:in|at)", r"where \2 \1 \3"),
    (rf"({_S}) ({_BE}) (.*?) ?from", r"where \2 \1 \3 from"),
    (rf"({_S}) ({_BE}) (.+ by|by)", r"who \2 \1 \3"),
    (rf"({_S}) ({_BE}) (.+ (?:of|for|after|to|as|on|with))(?: the)?", r"what \2 \1 \3"),
    # S died in the city of  /  S follows the religion of  /  S died in  /  S plays the
    (rf"({_S}) (\w+) (?:(in|to|for|on|at|with|from) )?(?:the|an?) (\w+(?: \w+)?) of",
     lambda m: f"which {m[4]} {_did(m[2], m[1])}{_after(m[3])}"),
    (rf"({_S}['’]s \w+) (\w+ed|lies) (?:in|at)", lambda m: f"where {_did(m[2], m[1])}"),
    (rf"({_S}) (\w+(?: away)?) (?:in|at)(?: the city of)?", lambda m: f"where {_did(m[2], m[1])}"),
    (rf"({_S}) used to (\w+) (?:in|at)", r"where did \1 use to \2"),
    (rf"({_S}) (\w+s|\w+ed)(?: (in|to|for|on|as|with|from))?(?: the (\w+)| the)?",
     lambda m: f"{'which ' + m[4] if m[4] else 'what'} {_did(m[2], m[1])}{_after(m[3])}"),
    (rf"({_S}['’]s [\w ]+?),?", r"what is \1"),
)  # fmt: skip


def is_question(text: str) -> bool:
    """Return whether a prompt asks a question, rather than begins a sentence."""
    return text.rstrip().endswith("?")


def as_completion(question: str, subject: str | None = None) -> str:
    """Return a sentence that the question's answer completes."""
    found = _apply(_COMPLETIONS, question.strip().rstrip("?").strip(), subject)
    return found or f'The answer to the question "{question.strip()}" is'


def as_question(completion: str, subject: str | None = None) -> str:
    """Return a question whose answer completes the sentence."""
    text = _apply(_STATEMENTS, completion.strip(), subject) or completion.strip()
    found = _apply(_QUESTIONS, text, subject)
    return f"{found}?" if found else f'How does this sentence go on: "{completion.strip()} ..."?'


def _apply(rules: Iterable[Rule], text: str, subject: str | None) -> str | None:
    """Return a text as the first rule that fits all of it makes it; None where none does."""
    named = re.search(rf"{re.escape(subject)}(?: \([^)]*\))?", text) if subject else None
    masked = text.replace(named[0], _S, 1) if named else text
    for pattern, result in rules:
        if match := re.fullmatch(pattern, masked, re.IGNORECASE):
            made = match.expand(result) if isinstance(result, str) else result(match)
            made = " ".join(made.split()).replace(_S, named[0] if named else _S)
            return made[:1].upper() + made[1:]
    return None


def _third(verb: str) -> str:
    """Return a verb's third person: play, plays."""
    known = {"have": "has", "do": "does", "go": "goes"}
    return known.get(verb, verb + ("es" if re.search("(s|sh|ch|x|z)$", verb) else "s"))


def _did(verb: str, subject: str) -> str:
    """Return a verb behind its subject, as a question has them: died, S -> did S die."""
    first, *rest = verb.split()
    past = first in ("had", "did", "went", "held", "led", "won", "took", "began", "ran", "lost")
    past = past or first.endswith("ed") or first in ("wrote", "made", "spoke", "sang", "found")
    return " ".join(["did" if past else "does", subject, _plain_form(first), *rest])


def _plain_form(verb: str) -> str:
    if verb in _IRREGULAR:
        return _IRREGULAR[verb]
    if verb.endswith(("ied", "ies")):
        return verb[:-3] + "y"
    if verb.endswith("ed"):
        return verb[:-1] if re.search("(at|v|u|c|s(?<!ss))ed$", verb) else verb[:-2]
    return verb.removesuffix("s")


def _participle(verb: str) -> str:
    return {"wrote": "written", "ran": "run", "sang": "sung"}.get(verb, verb)


def _after(word: str | None) -> str:
    return f" {word.strip()}" if word and word.strip() else ""
