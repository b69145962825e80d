"""Which engine runs the chat model: part of the composition root, one function an engine."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from chatkit.protocols import LanguageModel
from chatkit.settings import Settings


async def open_model(settings: Settings, stack: AsyncExitStack) -> LanguageModel:
    """Start the engine for the chat model; `stack` stops it.

    Raises:
        ModelError: the model was not pulled, or cannot be used.
        EngineFailed: the engine did not start.
    """
    return await _ENGINES[settings.engine](settings, stack)


async def _open_local(settings: Settings, stack: AsyncExitStack) -> LanguageModel:
    from chatkit.models import local, sources

    file = sources.resolve(settings.chat_model, models_dir=settings.models, role="chat", profile=settings.profile)
    options = local.LocalOptions(
        threads=settings.threads,
        kv_cache_gb=settings.kv_cache_gb,
        max_running=settings.max_running,
        max_queue=settings.max_queue,
        prefix_cache=settings.prefix_cache,
        prompt_format=settings.prompt_format,
    )
    cache = sources.derived_dir(file, models_dir=settings.models)
    model = await asyncio.to_thread(local.open_local, file, cache=cache, options=options)
    stack.push_async_callback(model.close)
    await model.start()
    return model


_ENGINES: dict[str, Callable[[Settings, AsyncExitStack], Awaitable[LanguageModel]]] = {"local": _open_local}
