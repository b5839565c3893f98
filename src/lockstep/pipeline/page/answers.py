"""The answers at the top of the page: each to a question, with what it rests on."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from lockstep.pipeline.groups import (
    VALIDATION,
    cautions,
    draws,
    for_person,
    groups,
    listed,
    names_of,
    warnings,
)
from lockstep.pipeline.page import judge, ranking
from lockstep.pipeline.page.collect import Check, Found, check_of
from lockstep.pipeline.page.facts import (
    core_seconds,
    counted,
    figure_of,
    megabytes,
    same_models,
    value_of,
)
from lockstep.progress import duration

FLAT = "A learning rate that falls to 0 flattens any loss: that says nothing of a longer training."
TIMES = " \N{MULTIPLICATION SIGN} "
# What is said of several runs, each of which has a reason with other numbers in it.
SHORT = {
    "the middle half of its epochs": "epochs are uneven",
    "a load of": "cores were busy before the runs began",
}


def answers(found: Sequence[Found], checks: Mapping[str, Check]) -> list[dict[str, Any]]:
    """Return the questions that the top of the page answers: an answer, and what it rests on."""
    done = [one for one in found if one.metrics]
    trained = [one for one in found if one.training]
    if not trained:
        return []
    return [
        *([_how_good(done)] if done else []),
        *([_which_bits(trained)] if len(trained) > 1 else []),
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
    if len(done) > 1 and ranking.is_validated(done):
        return _best_by_validation(done)
    ends = (end(finite, key=lambda name: finite[name]) for end in (min, max))
    low, high = (
        figure_of(one, judge.headline(one)) for end in ends for one in done if one.name == end
    )
    said = f"{title} {low}" + (f" to {high}" if low != high else "") + _on(done[0])
    if len(done) == 1:
        more = [*_interval(done[0]), *_baseline(done)]
        return _answer("runs", "How good?", "plain", said, more)
    found = judge.worse(done)
    if found is None:
        more = ["The table has the interval of each."] if _interval(done[0]) else []
        more.append(f"No test of ties: nothing is recorded of single {kind.unit}.")
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
    if kind.classes and (samples := _samples(done[0])):
        apart = round((max(finite.values()) - min(finite.values())) * samples)
        more.append(f"Best and worst are {apart:,} of {samples:,} {kind.unit} apart.")
    return _answer("runs", "How good?", "plain", f"{verdict}: {said}", [*more, *_baseline(done)])


def _best_by_validation(done: Sequence[Found]) -> dict[str, Any]:
    """Return which setting the validation part says is best, and what that one does with the test
    set: of the others that is not compared, for a figure that was chosen by is too good."""
    kind, runs = done[0].kind, ranking.table_of(done)
    table = groups(runs, kind)
    best = ranking.runs_of(table, 0, done)
    values = [value_of(one, judge.headline(one)) for one in best]
    if len(best) == 1:
        figure = figure_of(best[0], judge.headline(best[0]))
        spread = _interval(best[0])
    else:
        ends = (statistics.mean(values), statistics.stdev(values))
        figure = " ± ".join(kind.text(kind.main, value) for value in ends)
        if kind.beside:
            mean = statistics.mean(value_of(one, judge.headline(one), kind.beside) for one in best)
            figure += f" ({kind.title(kind.beside)} {kind.text(kind.beside, mean)})"
        spread = [f"Mean ± standard deviation over {len(best)} seeds."]
    said = f"{kind.title(kind.main)} {figure}{_on(best[0])}"
    if len(table) == 1:
        return _answer("runs", "How good?", "plain", said, [*spread, *warnings(runs, kind)])
    losses = [str(loss) for loss in for_person(table, kind)[VALIDATION]]
    names = names_of(runs, table)
    means = [*table[f"{VALIDATION}_mean"]]
    equal = [name for name, mean in zip(names, means, strict=True) if mean == means[0]][1:]
    first = listed([names[0], *equal], most=3)
    order = f"Ranked by the loss on the validation part: {first} ({losses[0]})"
    if len(equal) + 1 < len(names):
        order += f", then {names[len(equal) + 1]} ({losses[len(equal) + 1]})"
    models, apart = draws(runs, kind)
    more = [
        *spread,
        f"{order}.",
        *cautions(apart, names_of(models, apart), kind),
        "The test set chose nothing, so this figure of it is not flattered by a choice.",
        *warnings(runs, kind),
    ]
    verdict = f"best by validation {'are' if equal else 'is'} {first}"
    return _answer("runs", "How good?", "plain", f"{verdict}: {said}", more)


def _on(found: Found) -> str:
    samples = _samples(found)
    return f" on {samples:,} {found.kind.unit} of the test set" if samples else " on the test set"


def _interval(found: Found) -> list[str]:
    kind, between = found.kind, judge.interval(found, judge.headline(found))
    if not between:
        return []
    return [f"95 % interval: {' to '.join(kind.text(kind.main, end) for end in between)}."]


def _baseline(done: Sequence[Found]) -> list[str]:
    return warnings(ranking.table_of(done), done[0].kind)


def _which_bits(trained: Sequence[Found]) -> dict[str, Any]:
    models = same_models(trained)
    shared = {letter: runs for letter, runs in models.items() if len(runs) > 1}
    count = f"{len(models)} {'model' if len(models) == 1 else 'different models'}"
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
        verdict, why[one.name] = judge.rest(one.history, judge.flattened(one))
        if verdict == "past" and one.training and one.training.configuration.keep == "best":
            verdict = "kept"
            why[one.name] += ": the result is that epoch's (keep: best)"
        of.setdefault(verdict, []).append(one.name)
    words = {
        "diverged": "diverged",
        "no": "still falling",
        "past": "past {} lowest validation loss",
        "kept": "kept {} best epoch",
        "short": "too short to tell",
        "flat": "flat, as the learning rate fell to 0",
        "yes": "at rest",
    }
    alike = len(of) == 1
    words = {
        key: word.format("its" if alike or len(of.get(key, [])) == 1 else "their")
        for key, word in words.items()
    }
    found = [(words[key], of[key]) for key in words if key in of]
    if len(found) == 1:
        said = {"yes": "yes: ", "no": "no: "}.get(next(iter(of)), "") + found[0][0]
        said += " in every run" if len(trained) > 1 else ""
        alone = why[trained[0].name]
        more = [f"{alone[:1].upper()}{alone[1:]}."] if len(trained) == 1 else []
    else:
        said = ", ".join(f"{len(names)} {word}" for word, names in found)
        more = [
            f"{words[key].capitalize()}: {listed(of[key])}."
            for key in words
            if key in of and key not in ("flat", "kept", "yes")
        ]
    if len(trained) > 1:
        validated = {"validation_loss" in one.history for one in trained}
        which = "loss on the validation part" if True in validated else "training loss"
        which += ", or where there is none in training" if len(validated) > 1 else ""
        more.append(f"By the {which}, in the last fifth of the epochs.")
    if len(trained) > 1 and "flat" in of:
        more.append(FLAT)
    if "past" in of:
        more.append("With keep: best the epoch with the lowest one is the result.")
    mood = "good" if {*of} <= {"yes", "kept"} else "warn" if {"no", "past"} & of.keys() else "plain"
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
            # Each has a number of its own, which the table says.
            short = next((short for begin, short in SHORT.items() if reason.startswith(begin)), "")
            reasons.setdefault(short if short and len(trained) > 1 else reason, []).append(name)
    more += [
        f"{reason[0].upper()}{reason[1:]}"
        + (f": {counted(names, len(trained))}." if len(trained) > 1 else ".")
        for reason, names in reasons.items()
    ]
    return _answer("speed", question, "warn", said, more)


def _cost(trained: Sequence[Found]) -> dict[str, Any]:
    seconds = sum(one.training.seconds for one in trained if one.training)
    core = sum(core_seconds(one) for one in trained)
    sent = sum(sum(one.training.bytes_sent) for one in trained if one.training)
    said = f"{duration(seconds)} of training"
    times = TIMES.join(("seconds", "ranks", "threads"))
    more = [f"{duration(core)} of core time ({times}), {megabytes(sent)} MB sent."]
    return _answer("runs", "What did it cost?", "plain", said, more)


def _samples(found: Found) -> int | None:
    wrong = judge.errors(found, "last")
    return None if wrong is None else len(wrong)
