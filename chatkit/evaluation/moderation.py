"""`chatkit eval moderation`: how well the moderator tells labelled texts apart, and what its policy does to them."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from chatkit import release, wiring
from chatkit.errors import InvalidRequest
from chatkit.evaluation.moderation_picture import Curve, picture
from chatkit.evaluation.report import Report
from chatkit.moderation import figures
from chatkit.protocols import Moderator
from chatkit.settings import Settings
from chatkit.types import CATEGORIES, HARM, Direction, ModerationResult

Progress = Callable[[int, int], Any]  # texts judged, texts in all
DIRECTIONS: tuple[str, ...] = get_args(Direction)
# Shares of harmless texts, in per cent, at which the recall is told.
RATES = (1, 2, 5)


@dataclass(frozen=True, slots=True)
class Labelled:
    """One line of a set.

    Attributes:
        flagged: 1 for harmful, 0 for harmless, None where only categories are known.
        categories: of CATEGORIES → 1 or 0; one that is absent, or None, is not known.
    """

    set: str
    text: str
    flagged: int | None = None
    categories: dict[str, int] = field(default_factory=dict)
    direction: Direction = "input"


@dataclass(frozen=True, slots=True)
class _Judged:
    """A line and what was said of it; `score` ranks it, which means nothing where the check could not run."""

    row: Labelled
    result: ModerationResult
    score: float
    ms: float


def read_set(path: Path) -> list[Labelled]:
    """Return the lines of a file of JSON lines; its name without the ending is the name of the set.

    Raises:
        InvalidRequest: it cannot be read, or a line is wrong, naming it.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{str(path)!r} cannot be read: {error}; expected JSON lines in UTF-8") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(_labelled(json.loads(line), path.stem))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise InvalidRequest(
                    f'line {number} of {str(path)!r} is wrong: {error}; expected {{"text": "…", "flagged": 0, 1 or '
                    f'null, "categories": {{…}}, "direction": "input"}}'
                ) from error
    if not rows:
        raise InvalidRequest(f"{str(path)!r} has no lines, expected one JSON object a line")
    return rows


def _labelled(table: dict[str, Any], name: str) -> Labelled:
    text, flagged, direction = table["text"], table.get("flagged"), table.get("direction", "input")
    if not isinstance(text, str):
        raise TypeError(f"text is {text!r:.40}, expected a string")
    text.encode()  # half a character is no text
    if direction not in DIRECTIONS:
        raise ValueError(f"direction is {direction!r:.40}, expected one of {', '.join(DIRECTIONS)}")
    known = {key: value for key, value in (table.get("categories") or {}).items() if value is not None}
    for key, value in {**known, "flagged": flagged}.items():
        if value not in (0, 1) and not (key == "flagged" and value is None):
            raise ValueError(f"{key} is {value!r:.40}, expected 0 or 1")
    if unknown := known.keys() - set(CATEGORIES):
        raise ValueError(f"categories has {min(unknown)!r:.40}, expected of {', '.join(CATEGORIES)}")
    return Labelled(
        name,
        text,
        None if flagged is None else int(flagged),
        {key: int(value) for key, value in known.items()},
        cast(Direction, direction),
    )


def eval_moderation(
    settings: Settings, files: Sequence[Path], *, drawn: Path | None = None, progress: Progress | None = None
) -> Report:
    """Judge every text of the sets, one at a time, and return the figures.

    Args:
        settings: which moderator, under which policy.
        files: JSON lines.
        drawn: where the curves are drawn, as SVG.
        progress: called after each text.

    Raises:
        InvalidRequest: a set is wrong or cannot be told from another, or the picture cannot be written.
        ModelError: the moderator's model was not pulled.
    """
    _told_apart(files)
    rows = [row for path in files for row in read_set(path)]
    judged = asyncio.run(_judge_all(settings, rows, progress or (lambda done, total: None)))
    model = next((each.result.model for each in judged if each.result.model), "")
    told = {"policy": settings.policy, "model": model, "sets": [path.name for path in files]}
    if drawn is not None:
        _draw(judged, drawn, f"{model}, {told['policy']}")
    return Report("eval moderation", told, _figures(judged), [_told(each) for each in judged])


def _told_apart(files: Sequence[Path]) -> None:
    """Refuse names of sets that the figures could not tell apart."""
    names = [path.stem for path in files]
    for path in files if len(files) > 1 else ():
        if names.count(path.stem) > 1 or path.stem in (*CATEGORIES, *DIRECTIONS):
            raise InvalidRequest(
                f"the set {str(path)!r} has the name of another set, a category or a direction; rename the file"
            )


async def _judge_all(settings: Settings, rows: Sequence[Labelled], progress: Progress) -> list[_Judged]:
    with closing(wiring.moderation_encoder(settings)) as encoder:
        async with AsyncExitStack() as stack:
            moderator = wiring.open_moderator(settings, encoder, stack)
            return await _judge(moderator, rows, settings.check_timeout_s, progress)


async def _judge(moderator: Moderator, rows: Sequence[Labelled], timeout_s: float, progress: Progress) -> list[_Judged]:
    await release.checked(
        moderator, "The first check opens what is slow to open.", direction="input", timeout=timeout_s
    )
    judged = []
    for row in rows:
        started = time.perf_counter()
        result = await release.checked(moderator, row.text, direction=row.direction, timeout=timeout_s)
        ms = 1000 * (time.perf_counter() - started)
        judged.append(_Judged(row, result, _score(result.scores, row.direction), ms))
        progress(len(judged), len(rows))
    return judged


def _score(scores: dict[str, float], direction: Direction) -> float:
    """Return what ranks a text: `harm` where the moderator has it, else its highest category.

    A passage is ranked by `injection`, which is what policies act on there.
    """
    if direction == "passage":
        return scores.get("injection", 0.0)
    return scores[HARM] if HARM in scores else max(scores.values(), default=0.0)


def _figures(judged: Sequence[_Judged]) -> dict[str, float]:
    """Return the figures of all together; of each set, direction and category with its name before them."""
    found = _of(judged)
    found["ms_per_text"] = sum(each.ms for each in judged) / len(judged)
    found["unavailable"] = sum(each.result.unavailable for each in judged) / len(judged)
    groups: dict[str, list[_Judged]] = {}
    for each in judged:
        groups.setdefault(each.row.set, []).append(each)
    for name, part in groups.items() if len(groups) > 1 else ():
        found |= {f"{name}.{figure}": value for figure, value in _of(part).items()}
    directions = {each.row.direction for each in judged}
    for direction in sorted(directions) if len(directions) > 1 else ():
        part = [each for each in judged if each.row.direction == direction]
        found |= {f"{direction}.{figure}": value for figure, value in _of(part).items()}
    for category in CATEGORIES:
        known = [each for each in judged if category in each.row.categories and not each.result.unavailable]
        truth = [each.row.categories[category] for each in known]
        told = _ranked(truth, [each.result.scores.get(category, 0.0) for each in known])
        found |= {f"{category}.{figure}": value for figure, value in told.items()}
    return found


def _of(judged: Sequence[_Judged]) -> dict[str, float]:
    """Return the figures of some lines; one whose check could not run is in no ranking, and counts as blocked."""
    known = [each for each in judged if each.row.flagged is not None]
    found = _ranked(*_ranking(known))
    for name, kind in (("harmful", 1), ("benign", 0)):
        part = [each for each in known if each.row.flagged == kind]
        if part:
            found[f"blocked_{name}"] = sum(each.result.flagged or each.result.unavailable for each in part) / len(part)
            found[f"noted_{name}"] = sum(each.result.done != "allow" for each in part) / len(part)
    return found


def _ranking(judged: Sequence[_Judged]) -> tuple[list[int], list[float]]:
    """Return labels and scores of the lines that have both."""
    known = [each for each in judged if each.row.flagged is not None and not each.result.unavailable]
    return [int(each.row.flagged or 0) for each in known], [each.score for each in known]


def _ranked(truth: list[int], scores: list[float]) -> dict[str, float]:
    """Return the figures of a ranking; none where all texts are of one kind."""
    if len(set(truth)) < 2:
        return {}
    positive = [score for kind, score in zip(truth, scores, strict=True) if kind]
    negative = [score for kind, score in zip(truth, scores, strict=True) if not kind]
    return {
        "auprc": figures.auprc(truth, scores),
        "roc_auc": figures.roc_auc(truth, scores),
        "best_f1": figures.best_f1(truth, scores),
        **{f"recall@fpr{rate}": figures.recall_at(rate / 100, positive, negative) for rate in RATES},
    }


def _told(each: _Judged) -> dict[str, Any]:
    """Return a row of the report; without the text, which nobody wants in a log."""
    return {
        "set": each.row.set,
        "direction": each.row.direction,
        "flagged": each.row.flagged,
        "score": None if each.result.unavailable else round(each.score, 5),
        "action": each.result.done,
        "label": each.result.label,
        "category": each.result.category,
    }


def _draw(judged: Sequence[_Judged], file: Path, title: str) -> None:
    curves = []
    for name in dict.fromkeys(each.row.set for each in judged):
        truth, scores = _ranking([each for each in judged if each.row.set == name])
        if len(set(truth)) == 2:
            curves.append(Curve(name, figures.operating_points(truth, scores), figures.roc_auc(truth, scores)))
    if not curves:
        raise InvalidRequest("no set has harmful and harmless texts, expected both to draw a curve")
    try:
        file.write_text(picture(curves, title), encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"--picture {str(file)!r} cannot be written: {error.strerror}") from error
