"""Which engine runs the chat model: part of the composition root, one function an engine."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import fields
from typing import TYPE_CHECKING

from chatkit.prompts import PASSAGE_HEADER
from chatkit.protocols import LanguageModel
from chatkit.settings import Settings

if TYPE_CHECKING:
    from chatkit.models.chat import ChatModel

log = logging.getLogger(__name__)


async def open_model(settings: Settings, stack: AsyncExitStack) -> LanguageModel:
    """Start the engine for the chat model; `stack` stops it.

    Raises:
        ModelError: the model was not pulled, or cannot be used.
        EngineFailed: the engine did not start.
    """
    for name, engines in unused(settings):
        log.warning("%s is set, but not for the engine %s: it belongs to %s", name, settings.engine, engines)
    return await _ENGINES[settings.engine](settings, stack)


def use_of_passages(settings: Settings) -> tuple[str, int]:
    """Return what the model is told to do with passages, and how many sentences of each it is given, 0 for all."""
    from chatkit.models import sources

    told, sentences = "", 0
    if settings.engine != "openai":  # what a server runs is not known here
        told, sentences = sources.use_of_passages(settings.chat_model, settings.profile)
    if settings.source_sentences >= 0:
        sentences = settings.source_sentences
    return settings.source_prompt or told or PASSAGE_HEADER, sentences


def unused(settings: Settings) -> list[tuple[str, str]]:
    """Return the settings that are not at their default though the engine has no use for them, and whose they are."""
    found = []
    for spec in fields(Settings):
        engines = ("openai",) if spec.name.startswith("upstream_") else _SETTINGS_OF.get(spec.name, ())
        if engines and settings.engine not in engines and getattr(settings, spec.name) != spec.default:
            found.append((spec.name, " and ".join(engines)))
    return found


async def _open_local(settings: Settings, stack: AsyncExitStack) -> LanguageModel:
    from chatkit.models import local, sources

    file = sources.resolve(settings.chat_model, models_dir=settings.models, role="chat", profile=settings.profile)
    options = local.LocalOptions(
        device=settings.device,
        precision=settings.precision,
        threads=settings.threads,
        kv_cache_gb=settings.kv_cache_gb,
        max_running=settings.max_running,
        max_queue=settings.max_queue,
        prefix_cache=settings.prefix_cache,
        prompt_format=settings.prompt_format,
    )
    cache = sources.derived_dir(file, models_dir=settings.models)
    name = sources.name_of(settings.chat_model, "chat", settings.profile)
    model = await asyncio.to_thread(local.open_local, file, cache=cache, options=options, name=name)
    stack.push_async_callback(model.close)
    await model.start()
    return model


async def _open_transformers(settings: Settings, stack: AsyncExitStack) -> LanguageModel:
    model = await asyncio.to_thread(_chat_model, settings)
    stack.push_async_callback(model.close)
    await model.start()
    return model


def _chat_model(settings: Settings) -> "ChatModel":
    from chatkit.models import chat, sources

    path = sources.resolve(settings.chat_model, models_dir=settings.models, role="chat", profile=settings.profile)
    options = chat.ChatOptions(
        dtype=settings.dtype,
        quantize=settings.quantize,
        gpu_memory=chat.parse_memory(settings.gpu_memory),
        cpu_memory=settings.cpu_memory,
        offload_dir=str(settings.offload),
        tensor_parallel=settings.tensor_parallel,
        threads=settings.threads,
        kv_cache_gb=settings.kv_cache_gb,
        max_running=settings.max_running,
        max_queue=settings.max_queue,
        prefix_cache=settings.prefix_cache,
        cuda_graphs=settings.cuda_graphs,
        prompt_format=settings.prompt_format,
    )
    cache = sources.derived_dir(path, models_dir=settings.models)
    name = sources.name_of(settings.chat_model, "chat", settings.profile)
    return chat.open_chat(path, cache=cache, options=options, name=name)


def follow(settings: Settings) -> None:
    """Become a rank that follows rank 0, where torchrun or mpirun started this process as one; else return.

    Raises:
        ModelError: the model cannot be used.
        ConfigError: the settings do not fit it, or the launcher's variables are wrong.
    """
    if settings.engine != "transformers":
        return
    from chatkit.models import parallel

    place = parallel.place_of(os.environ)
    if place is not None and place.rank > 0:
        command = _chat_model(settings).command
        os.execv(command[0], command)


async def _open_openai(settings: Settings, stack: AsyncExitStack) -> LanguageModel:
    from chatkit.models import upstream, upstream_auth, upstream_format

    key = str(settings.upstream_key or "") if settings.upstream_auth == "bearer" else ""
    options = upstream.UpstreamOptions(
        url=settings.upstream_url,
        proxy=settings.upstream_proxy,
        model=settings.upstream_model,
        context=settings.upstream_context,
        systems=settings.upstream_system,
        fields=settings.upstream_field_names,
        session_headers=settings.session_headers,
        lists_models=settings.upstream_auth != "sagemaker",
        first_s=settings.upstream_timeout_s,
        stall_s=settings.upstream_stall_s,
        most_live=settings.max_running + settings.max_queue,
    )
    credentials: upstream_auth.Credentials = upstream_auth.Key(key)
    if settings.upstream_auth == "sagemaker":
        credentials = await asyncio.to_thread(upstream_auth.SageMakerToken, settings.upstream_url)
    tokenizer = None
    if settings.upstream_tokenizer:
        from chatkit.models import sources

        place = sources.resolve(settings.upstream_tokenizer, models_dir=settings.models)
        tokenizer = await asyncio.to_thread(upstream_format.read_tokenizer, place)
    model = upstream.UpstreamModel(options, credentials, upstream_format.TokenCounter(tokenizer))
    stack.push_async_callback(model.close)
    await model.start()
    return model


_ENGINES: dict[str, Callable[[Settings, AsyncExitStack], Awaitable[LanguageModel]]] = {
    "local": _open_local,
    "transformers": _open_transformers,
    "openai": _open_openai,
}
# Which engines have a use for a setting; those that are not here are for all or for none, and `upstream_…` for openai.
_SETTINGS_OF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("device", "precision"), ("local",)),
    **dict.fromkeys(("dtype", "quantize", "gpu_memory", "cpu_memory", "offload_dir"), ("transformers",)),
    **dict.fromkeys(("tensor_parallel", "cuda_graphs"), ("transformers",)),
    **dict.fromkeys(("kv_cache_gb", "prefix_cache", "prompt_format"), ("local", "transformers")),
}
