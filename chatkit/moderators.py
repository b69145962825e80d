"""Which scorer moderates: part of the composition root."""

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from chatkit.protocols import Encoder, Scorer
from chatkit.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chatkit.judging import Question
    from chatkit.models.judge_process import ProcessJudge


def open_scorer(settings: Settings, encoder: Encoder, stack: AsyncExitStack | None = None) -> Scorer:
    """Open what scores text, as the settings say; a model that runs here is loaded when this returns.

    Args:
        encoder: that the head was fitted on.
        stack: closes what was opened; None leaves that to the end of the process.

    Raises:
        ModelError: the model was not pulled, or cannot be used.
        ConfigError: the settings do not fit it, or a library is missing (MissingExtra).
        EngineFailed: its process did not start.
    """
    scorer = _model_scorer(settings, encoder, stack)
    if not settings.personal_data:
        return scorer
    from chatkit.moderation.personal import PersonalData, WithPersonalData

    return WithPersonalData(scorer, PersonalData())


def _model_scorer(settings: Settings, encoder: Encoder, stack: AsyncExitStack | None) -> Scorer:
    from chatkit.moderation.head import HeadScorer

    if settings.moderator == "head":
        return HeadScorer(encoder, None)
    if settings.moderator != "cascade":
        return _large(settings, stack)
    from chatkit.moderation.cascade import CascadeScorer

    low, high = settings.cascade_low, settings.cascade_high
    return CascadeScorer(HeadScorer(encoder, None), _large(settings, stack), low=low, high=high)


def _large(settings: Settings, stack: AsyncExitStack | None) -> Scorer:
    """Open GPT-JT or a guard model."""
    from chatkit.moderation import gpt_jt, guard, guard_templates

    if settings.moderator == "gpt-jt" or settings.moderation_template == "gpt-jt" or _is_gpt_jt(settings):
        return gpt_jt.ModerationModel(_here(settings, stack, gpt_jt.SAMPLES))
    template = guard_templates.chosen(settings.moderation_template, settings.moderation_model)
    if not settings.moderation_endpoint:
        return guard.LikelihoodGuard(_here(settings, stack, template.samples()), template)
    from chatkit.models.upstream_auth import Key
    from chatkit.models.upstream_judge import UpstreamJudge

    judge = UpstreamJudge(
        settings.moderation_endpoint,
        settings.moderation_model,
        Key(str(settings.moderation_key or "")),
        seconds=settings.moderation_timeout_s,
        proxy=settings.moderation_proxy,
    )
    if stack is not None:
        stack.push_async_callback(judge.close)
    return guard.ReplyGuard(judge, template)


def _is_gpt_jt(settings: Settings) -> bool:
    """Whether the cascade's second model is GPT-JT, by its name."""
    return settings.moderator == "cascade" and "gpt-jt" in settings.moderation_model.lower()


def _here(
    settings: Settings, stack: AsyncExitStack | None, samples: "Sequence[tuple[Question, Question]]"
) -> "ProcessJudge":
    """Load a model in a process of its own."""
    from chatkit.judging import called
    from chatkit.models import sources
    from chatkit.models.judge_process import JudgeOptions, ProcessJudge

    folder = sources.resolve(settings.moderation_model, models_dir=settings.models)
    options = JudgeOptions(
        device=settings.moderation_device,
        dtype=settings.moderation_dtype,
        quantize=settings.moderation_quantize,
        threads=settings.threads,
        answer_s=settings.moderation_timeout_s,
    )
    judge = ProcessJudge(folder, options, name=called(settings.moderation_model), samples=samples)
    if stack is not None:
        stack.push_async_callback(judge.close)
    judge.start()
    return judge
