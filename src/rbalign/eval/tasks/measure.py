"""How each kind of task turns responses into figures. What failed or is missing stays in the denominator. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rbalign import scorers
from rbalign.errors import UsageError
from rbalign.eval.judges import LlmJudge, Pair, PairwiseJudge
from rbalign.eval.results import rounded
from rbalign.eval.stats import Estimate
from rbalign.eval.tasks.conditions import conditions
from rbalign.eval.tasks.consistency import consistency
from rbalign.eval.tasks.corpus import METRICS, CorpusMetric
from rbalign.eval.tasks.items import TaskItem, columns
from rbalign.eval.tasks.registry import Kind
from rbalign.eval.tasks.sheet import Responses, Sheet
from rbalign.eval.winrate import PRIOR_MEAN, PRIOR_PRECISION, Verdicts, length_controlled
from rbalign.scorers.base import Scorer
from rbalign.scorers.similarity import EMBEDDERS, build_embedder

PARTS = ("closed", "creative", "reasoning")
QA_SCORERS = {"rba": "qa", "ultraeval": "qa-ultraeval", "vocalbench": "qa-vocalbench"}
LOST = "missing and failed answers count as wrong"


@dataclass(frozen=True, slots=True)
class Rules:
    """What the user chose beside the task."""

    scorer: str
    judge: PairwiseJudge | None = None
    """An `LlmJudge` where a kind asks for one."""
    against: Responses | None = None
    opponent: str = ""
    """The name of `against`."""


def measure(sheet: Sheet, rules: Rules) -> None:
    """Fill the sheet: every item's scores, every figure."""
    _KINDS[sheet.task.kind](sheet, rules)


def _llm(rules: Rules) -> LlmJudge | None:
    return rules.judge if isinstance(rules.judge, LlmJudge) else None


# ---- Speech-IFEval ---------------------------------------------------------------------------------------------


def _constraints(sheet: Sheet, rules: Rules) -> None:
    judge = _llm(rules)
    if not any(item.part for item in sheet.data.items):
        _followed(sheet, None)
        whole = sheet.by_unit(sheet.data.items, "followed")
        rule = f"strict constraint checks; {LOST}"
        sheet.figure("rate", "", sheet.bootstrap("", len(whole)).mean(whole), rule)
        _by_constraint(sheet, rule)
        return
    ours = _followed(sheet, judge)
    checked = f"strict constraint checks; {LOST}"
    told = f"{judge.described('reasoning')}; unreadable judgements count as NO; {LOST}" if judge else "no LLM judge"
    for part in PARTS:
        items = _of_part(sheet, part)
        protocol = told if part == "reasoning" else checked
        if part in ours:
            sheet.figure("rate", part, _estimate(sheet, part, items, ours[part]), protocol)
        else:
            sheet.figure("rate", part, None, protocol, note="needs an LLM judge: --judge JUDGE.toml")
    _by_constraint(sheet, checked)
    theirs = None
    if rules.against is not None:
        other = sheet.beside(rules.against)
        theirs = _followed(other, judge)
        sheet.unparsed += other.unparsed
    _if_rate(sheet, ours, theirs, f"mean of three parts' rates; {checked}; reasoning: {told}", rules.opponent)


def _by_constraint(sheet: Sheet, protocol: str) -> None:
    for name in sorted({constraint for item in sheet.data.items for constraint, _ in item.constraints}):
        items = [item for item in sheet.data.items if any(name == own for own, _ in item.constraints)]
        boot = sheet.bootstrap(name, len(items))
        sheet.figure("rate", name, boot.mean(sheet.by_unit(items, "followed")), protocol)


def _followed(sheet: Sheet, judge: LlmJudge | None) -> dict[str, np.ndarray]:
    """Scores of every item; part -> draws of its rate. Reasoning is absent without a judge."""
    checked = [item for item in sheet.data.items if item.part != "reasoning"]
    values = scorers.build("constraints")(
        [item.request for item in checked],
        [sheet.text(item) for item in checked],
        [[]] * len(checked),
        **columns(checked),
    )
    for item, value in zip(checked, values, strict=True):
        sheet.put(item, "followed", value)
    reasoning = _of_part(sheet, "reasoning")
    said = [item for item in reasoning if sheet.text(item).strip()]
    told = judge.reasons([item.request for item in said], [sheet.text(item) for item in said]) if judge else []
    for item in reasoning:
        sheet.put(item, "followed", 0.0 if judge else None)
    for item, verdict in zip(said, told, strict=False):
        sheet.put(item, "followed", float(verdict is True))
        sheet.unparsed += verdict is None
    draws = {}
    for part in PARTS:
        items = _of_part(sheet, part)
        if part != "reasoning" or judge:
            draws[part] = sheet.bootstrap(part, len(items)).means(sheet.by_unit(items, "followed"))
    return draws


def _if_rate(
    sheet: Sheet,
    ours: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray] | None,
    protocol: str,
    reference: str,
) -> None:
    """IF rate, and delta against the text reference."""
    n = len(sheet.data.items)
    boot = sheet.bootstrap("closed", len(_of_part(sheet, "closed")))
    if len(ours) < len(PARTS):
        for metric in ("if_rate",) if theirs is None else ("if_rate", "delta"):
            sheet.figure(metric, "", None, protocol, note="reasoning is not judged: its rate is unscored, not zero")
        return
    own = np.mean([ours[part] for part in PARTS], axis=0)
    sheet.figure("if_rate", "", boot.estimate(own, n), protocol)
    if theirs is not None:
        other = np.mean([theirs[part] for part in PARTS], axis=0)
        sheet.figure(f"if_rate@{reference}", "", boot.estimate(other, n), f"{protocol}; of {reference}")
        with np.errstate(invalid="ignore", divide="ignore"):
            delta = (own - other) / other
        sheet.figure(
            "delta", "", boot.estimate(delta, n), f"(IF rate - reference's) / reference's, {reference}; {protocol}"
        )


def _of_part(sheet: Sheet, part: str) -> list[TaskItem]:
    return [item for item in sheet.data.items if item.part == part]


def _estimate(sheet: Sheet, part: str, items: Sequence[TaskItem], draws: np.ndarray) -> Estimate:
    return sheet.bootstrap(part, len(items)).estimate(draws, len(items))


# ---- win rate --------------------------------------------------------------------------------------------------


def _preference(sheet: Sheet, rules: Rules) -> None:
    if rules.judge is None or rules.against is None:
        raise UsageError(f"{sheet.task.name} is a comparison", "give --against OPPONENT.jsonl and a --judge")
    other = sheet.beside(rules.against)
    items = sorted(sheet.data.items, key=lambda item: item.id)
    verdicts = _both_orders(sheet, other, items, rules.judge)
    labels = verdicts.labels()
    own = np.array([len(sheet.text(item).strip()) for item in items], dtype=np.float64)
    others = np.array([len(other.text(item).strip()) for item in items], dtype=np.float64)
    for place, item in enumerate(items):
        sheet.put(item, "win", float(labels[place]))
        sheet.extra[item.id] = {
            "verdicts": [verdicts.first[place], verdicts.second[place]],
            "characters": [int(own[place]), int(others[place])],
        }
    sheet.unparsed = verdicts.unparsed
    for part in sorted({"", *(item.part for item in items)}):
        places = [place for place, item in enumerate(items) if part in ("", item.part)]
        first, second = ([order[place] for place in places] for order in (verdicts.first, verdicts.second))
        _winrates(sheet, rules, part, Verdicts(first, second), (own[places], others[places]))


def _both_orders(sheet: Sheet, other: Sheet, items: Sequence[TaskItem], judge: PairwiseJudge) -> Verdicts:
    """Preference for our answers; who has none loses without being judged."""
    first: list[float | None] = [None] * len(items)
    second: list[float | None] = [None] * len(items)
    asked: list[int] = []
    for place, item in enumerate(items):
        here, there = (one.status(item) == "answered" for one in (sheet, other))
        if here and there:
            asked.append(place)
        else:
            first[place] = second[place] = 0.5 + 0.5 * (here - there)
    shown = [(items[place], sheet.text(items[place]), other.text(items[place])) for place in asked]
    for order, pairs in (
        (first, [Pair(item.request, own, their, item.reference) for item, own, their in shown]),
        (second, [Pair(item.request, their, own, item.reference) for item, own, their in shown]),
    ):
        for place, told in zip(asked, judge.prefer(pairs), strict=True):
            order[place] = told if told is None or order is first else 1.0 - told
    return Verdicts(first, second)


def _winrates(
    sheet: Sheet, rules: Rules, part: str, verdicts: Verdicts, characters: tuple[np.ndarray, np.ndarray]
) -> None:
    """Of a part, "" for all items: the win rate and, fitted to the part alone, the one at equal length."""
    assert rules.judge is not None
    labels, (own, others) = verdicts.labels(), characters
    boot, raw = sheet.bootstrap(part, len(labels)), f"winrate@{rules.opponent}"
    agreement = verdicts.agreement()
    shared: dict[str, Any] = {
        "characters": rounded(float(own.mean())),
        "opponent_characters": rounded(float(others.mean())),
        "wins": int((labels > 0.5).sum()),
        "ties": int((labels == 0.5).sum()),
        "losses": int((labels < 0.5).sum()),
        "orders_agree": rounded(agreement),
    }
    protocol = (
        f"against {rules.opponent}; {rules.judge.protocol}; both orders, mean of the two; "
        "unreadable judgements are ties; who has no answer loses"
    )
    sheet.figure(raw, part, boot.mean(labels), protocol, **shared)
    if not rules.judge.llm:
        note = "the prior on length is LLM judges' own: no length control for this judge"
        sheet.figure(f"lc_{raw}", part, None, protocol, note=note, **shared)
        return
    estimate, found = length_controlled(boot, labels, own, others)
    prior = f"prior on length N({PRIOR_MEAN:g}, precision {PRIOR_PRECISION:g} n)"
    sheet.figure(
        f"lc_{raw}",
        part,
        estimate,
        f"{protocol}; most probable logistic fit at equal length, {prior}",
        phi=rounded(found.phi),
        **shared,
    )


# ---- accepted answers, translation -----------------------------------------------------------------------------


def _answers(sheet: Sheet, rules: Rules) -> None:
    protocol = score_answers(sheet, rules)
    values = sheet.by_unit(sheet.data.items, "accuracy")
    unscored = sum(sheet.scores[item.id]["accuracy"] is None for item in sheet.data.items)
    estimate = sheet.headline("accuracy", values)
    sheet.figure("accuracy", "", estimate, f"{protocol}; text responses; {LOST}", unscored=unscored)


def score_answers(sheet: Sheet, rules: Rules, metric: str = "accuracy") -> str:
    """Right or wrong for every item by the named scorer, None without a usable accepted answer; its protocol line."""
    items, texts = list(sheet.data.items), [sheet.text(item) for item in sheet.data.items]
    if rules.scorer != "judge":
        scorer: Scorer = scorers.build(QA_SCORERS[rules.scorer])
        values = scorer([item.request for item in items], texts, [[]] * len(items), **columns(items))
        for item, value in zip(items, values, strict=True):
            sheet.put(item, metric, value)
        return str(getattr(scorer, "protocol", scorer.name))
    judge = _llm(rules)
    if judge is None:
        raise UsageError("--scorer judge needs an LLM judge", "give --judge JUDGE.toml, or another --scorer")
    if not all(item.request for item in items):
        raise UsageError("--scorer judge needs the questions' text, which this data has not", "give another --scorer")
    said = [item for item in items if sheet.text(item).strip() and item.aliases]
    told = judge.right(
        [item.request for item in said], [sheet.text(item) for item in said], [item.aliases for item in said]
    )
    for item in items:
        sheet.put(item, metric, 0.0 if item.aliases else None)
    for item, verdict in zip(said, told, strict=True):
        sheet.put(item, metric, float(verdict is True))
        sheet.unparsed += verdict is None
    return f"{judge.described('answer')}; unreadable judgements count as wrong"


def _translation(sheet: Sheet, rules: Rules) -> None:
    items = sorted(sheet.data.items, key=lambda item: item.id)
    texts, references = [sheet.text(item) for item in items], [item.reference or "" for item in items]
    units = sorted({item.unit for item in items})
    place = {unit: number for number, unit in enumerate(units)}
    rows = np.array([place[item.unit] for item in items])
    boot = sheet.bootstrap("", len(units))
    target = sheet.task.languages[1] if sheet.task.languages else ""  # of what ships, words stand between spaces
    for name in METRICS:
        metric = CorpusMetric(name, target)
        own = metric.statistics(texts, references)
        sums = np.zeros((len(units), own.shape[1]))
        np.add.at(sums, rows, own)
        for item, counts in zip(items, own, strict=True):
            sheet.put(item, name, metric.sentence(counts))
            sheet.extra.setdefault(item.id, {}).setdefault("statistics", {})[name] = [int(count) for count in counts]
        protocol = f"sacreBLEU {metric.signature()}; plain text; missing and failed answers are empty translations"
        sheet.draws[name] = metric.draws(boot, sums)
        sheet.figure(name, "", boot.estimate(sheet.draws[name], len(units)), protocol, unit="")


def _conditions(sheet: Sheet, rules: Rules) -> None:
    chrf = rules.scorer == "chrf"
    protocol = _to_reference(sheet, "chrf", "score") if chrf else score_answers(sheet, rules, "score")
    _require_scores(sheet, "score", rules.scorer)
    conditions(sheet, f"{protocol}; {LOST}")


def _consistency(sheet: Sheet, rules: Rules) -> None:
    metric = "chrf" if rules.scorer == "chrf" else "accuracy"
    protocol = _to_reference(sheet, "chrf", metric) if metric == "chrf" else score_answers(sheet, rules, metric)
    _require_scores(sheet, metric, rules.scorer)
    consistency(sheet, metric, f"{protocol}; {LOST}", {name: build_embedder(name) for name in EMBEDDERS})


def _require_scores(sheet: Sheet, metric: str, scorer: str) -> None:
    """Refuse a dataset in which this scorer finds nothing to hold answers against."""
    if all(own[metric] is None for own in sheet.scores.values()):
        lacks = "reference" if scorer == "chrf" else "accepted answers"
        cure = "give a dataset with answers" if scorer == "chrf" else "--scorer chrf compares with references"
        raise UsageError(f"no example of this dataset has {lacks}", cure)


def _open(sheet: Sheet, rules: Rules) -> None:
    """Nearness to a reference; with an opponent and a judge, the win rate, too."""
    protocol = _to_reference(sheet, rules.scorer, rules.scorer)
    values = sheet.by_unit(sheet.data.items, rules.scorer)
    estimate = sheet.headline(rules.scorer, values)
    sheet.figure(rules.scorer, "", estimate, f"{protocol}; missing and failed answers are empty", unit="")
    if rules.judge is not None and rules.against is not None:
        _preference(sheet, rules)


def _to_reference(sheet: Sheet, name: str, metric: str) -> str:
    """Each answer's nearness to its reference by chrF or an embedder's cosine; the protocol line."""
    items = list(sheet.data.items)
    resources = {} if name == "chrf" else {"embedder": name}
    scorer = scorers.build("chrf" if name == "chrf" else "similarity", against="reference", **resources)
    texts = [sheet.text(item) for item in items]
    values = scorer([item.request for item in items], texts, [[]] * len(items), **columns(items))
    for item, value in zip(items, values, strict=True):
        sheet.put(item, metric, value)
    return f"{'sentence chrF' if name == 'chrf' else f'{name} cosine'} to the independent reference"


_KINDS: Mapping[Kind, Callable[[Sheet, Rules], None]] = {
    "constraints": _constraints,
    "preference": _preference,
    "open": _open,
    "answers": _answers,
    "translation": _translation,
    "conditions": _conditions,
    "accents": _conditions,
    "consistency": _consistency,
}
