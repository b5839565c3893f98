"""The answers at the top of the page: each to a question, with what it rests on."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lockstep.pipeline.page import judge
from lockstep.pipeline.page.collect import Check, Found, check_of
from lockstep.pipeline.page.facts import (
    core_seconds,
    duration,
    listed,
    megabytes,
    same_models,
    value_of,
)

JUDGED = "By the loss on the validation part, or else in training, in the last fifth of the epochs."


def answers(found: Sequence[Found], checks: Mapping[str, Check]) -> list[dict[str, Any]]:
    """Return the questions that the top of the page answers: an answer, and what it rests on."""
    done = [one for one in found if one.metrics]
    trained = [one for one in found if one.training]
    if not trained:
        return []
    return [
        *([_how_good(done)] if done else []),
        _which_bits(trained),
        _at_rest(trained),
        _speeds(trained, checks),
        _cost(trained),
    ]


def _answer(
    anchor: str, question: str, mood: str, said: str, more: Sequence[str]
) -> dict[str, Any]:
    said = said[:1].upper() + said[1:]
    return {"to": anchor, "question": question, "mood": mood, "said": said, "more": [*more]}


def _how_good(done: Sequence[Found]) -> dict[str, Any]:
    kind = done[0].kind
    values = {one.name: value_of(one, judge.headline(one)) for one in done}
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    title, more = kind.title(kind.main), []
    if not finite:
        return _answer("errors", "How good?", "bad", f"no {title} is a number", [])
    low, high = (kind.text(kind.main, end(finite.values())) for end in (min, max))
    samples = _samples(done[0])
    on = f" on {samples:,} {kind.unit} of the test set" if samples else " on the test set"
    said = f"{title} {low}" + (f" to {high}" if low != high else "") + on
    if len(done) == 1:
        between = judge.interval(done[0], judge.headline(done[0]))
        if between:
            ends = " to ".join(kind.text(kind.main, end) for end in between)
            more.append(f"95 % interval: {ends}")
        return _answer("runs", "How good?", "plain", said, [*more, *_baseline(done)])
    found = judge.worse(done)
    if found is None:
        more.append("No interval and no test: nothing is recorded of single samples.")
        return _answer("runs", "How good?", "plain", said, more)
    best, p = found
    behind = [name for name, value in p.items() if value < judge.LEVEL]
    test = "McNemar's exact test" if kind.classes else "a paired t-test of squared errors"
    lowest = min(p.values())
    rule = f"{test} on the same {kind.unit} against {best.name}, Holm's correction for {len(p)}"
    if not behind:
        verdict = "A tie"
        more.append(
            f"No run is shown to be worse than the best: {rule}, smallest p = {lowest:.2g}."
        )
    else:
        verdict = f"{best.name} is best" if len(behind) == len(p) else "Not all alike"
        more.append(f"Shown to be worse than {best.name}: {listed(behind)} ({rule}, p < 0.05).")
        tied = [name for name in p if name not in behind]
        if tied:
            more.append(f"Tied with it: {listed(tied)}.")
    if kind.classes and samples:
        apart = round((max(finite.values()) - min(finite.values())) * samples)
        more.append(f"Best and worst are {apart:,} of {samples:,} {kind.unit} apart.")
    return _answer("runs", "How good?", "plain", f"{verdict}: {said}", [*more, *_baseline(done)])


def _baseline(done: Sequence[Found]) -> list[str]:
    kind = done[0].kind
    poor = []
    for one in done:
        assert one.metrics
        least = getattr(one.metrics.last, kind.baseline, None) if kind.baseline else None
        if least is not None and value_of(one, "last") <= least:
            poor.append(one.name)
    return [f"No better than always the largest class: {listed(poor)}."] if poor else []


def _which_bits(trained: Sequence[Found]) -> dict[str, Any]:
    models = same_models(trained)
    shared = {letter: runs for letter, runs in models.items() if len(runs) > 1}
    count = f"{len(models)} {'model' if len(models) == 1 else 'different models'}"
    if len(trained) == 1:
        said = "One run, one model"
        more = ["The command at the end says whether its bits come again."]
    else:
        said = f"{len(trained)} runs gave {count}"
        more = [f"{letter}: {listed(runs, ' = ')}" for letter, runs in shared.items()]
        if not shared:
            more = ["No two runs have the same bits."]
        elif len(models) > len(shared):
            alone = [runs[0] for runs in models.values() if len(runs) == 1]
            more.append(f"With bits of their own: {listed(alone)}.")
    return {**_answer("runs", "Which bits agree?", "plain", said, more), "chips": True}


def _at_rest(trained: Sequence[Found]) -> dict[str, Any]:
    of: dict[str, list[str]] = {}
    why = {}
    for one in trained:
        verdict, why[one.name] = judge.rest(one.history)
        of.setdefault(verdict, []).append(one.name)
    words = {
        "diverged": "diverged",
        "no": "still falling",
        "past": "past its lowest validation loss",
        "short": "too short to tell",
        "yes": "at rest",
    }
    found = [(words[key], of[key]) for key in words if key in of]
    if len(found) == 1:
        said = {"yes": "yes: ", "no": "no: "}.get(next(iter(of)), "") + found[0][0]
        said += " in every run" if len(trained) > 1 else ""
        more = [f"{trained[0].name}: {why[trained[0].name]}." if len(trained) == 1 else JUDGED]
    else:
        said = ", ".join(f"{len(names)} {word}" for word, names in found)
        more = [
            f"{word.capitalize()}: {listed(names)}." for word, names in found if word != "at rest"
        ]
    mood = "good" if {*of} == {"yes"} else "warn" if {"no", "past"} & of.keys() else "plain"
    mood = "bad" if "diverged" in of else mood
    return _answer("learning", "Converged?", mood, said, more)


def _speeds(trained: Sequence[Found], checks: Mapping[str, Check]) -> dict[str, Any]:
    doubted = {one.name: judge.doubts(one, check_of(one, checks)) for one in trained}
    doubted = {name: why for name, why in doubted.items() if why}
    question = "Can the speeds be believed?"
    rates = {one.name: rate for one in trained if (rate := judge.rates(one))}
    kind = trained[0].kind
    fast = max(rates, key=lambda name: rates[name][0], default=None)
    more = []
    if fast:
        middle, low, high = rates[fast]
        of = f"Fastest: {fast}, " if len(trained) > 1 else ""
        more.append(
            f"{of}{middle:,.0f} {kind.unit}/s in the median epoch, half of them from {low:,.0f} to "
            f"{high:,.0f}."
        )
    if not doubted:
        said = "Yes: steady epochs, and cores enough"
        return _answer("speed", question, "good", said, more)
    if len(trained) == 1:
        said = "Not as they are"
    else:
        few = f"not those of {len(doubted)} of {len(trained)} runs"
        said = f"{'no' if len(doubted) == len(trained) else few}: do not rank runs by them"
    if all(why == [judge.UNSEEN] for why in doubted.values()):
        said = "not known"
    reasons: dict[str, list[str]] = {}
    for name, why in doubted.items():
        for reason in why:
            # Each has a share of its own, which the table says.
            several = "epochs" in reason and len(trained) > 1
            reasons.setdefault("epochs are uneven" if several else reason, []).append(name)
    more += [
        f"{reason[0].upper()}{reason[1:]}" + (f": {listed(names)}." if len(trained) > 1 else ".")
        for reason, names in reasons.items()
    ]
    return _answer("speed", question, "warn", said, more)


def _cost(trained: Sequence[Found]) -> dict[str, Any]:
    seconds = sum(one.training.seconds for one in trained if one.training)
    core = sum(core_seconds(one) for one in trained)
    sent = sum(sum(one.training.bytes_sent) for one in trained if one.training)
    said = f"{duration(seconds)} of training"
    more = [f"{duration(core)} of cores (seconds x ranks x threads), {megabytes(sent)} MB sent."]
    return _answer("runs", "What did it cost?", "plain", said, more)


def _samples(found: Found) -> int | None:
    wrong = judge.errors(found, "last")
    return None if wrong is None else len(wrong)
