"""The composition root: settings in, assembled parts out. Heavy libraries are imported by the adapters it opens."""

import asyncio
import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from chatkit import moderators, retrieving
from chatkit.citations import Attributor
from chatkit.engines import open_model, use_of_passages
from chatkit.errors import ConfigError, ModelError
from chatkit.feedback import Feedback
from chatkit.planning import ServiceOptions
from chatkit.protocols import Embedder, Encoder, Moderator, Retriever, SessionStore
from chatkit.retrieving import OpenRetriever
from chatkit.service import OpenChatKitService
from chatkit.settings import Settings

if TYPE_CHECKING:
    from chatkit.models.sources import Listed, Pulled
    from chatkit.moderation.passages import PassageScores
    from chatkit.moderation.policy import Policy
    from chatkit.moderation.train import TrainReport
    from chatkit.retrieval.catalogue import Listed as ListedIndex
    from chatkit.retrieval.catalogue import Used
    from chatkit.retrieval.encoder import SentenceEncoder
    from chatkit.retrieval.traits import Told
    from chatkit.sessions.encryption import OpenStore
    from chatkit.sessions.session_keys import KeyRing, KeyShelf


async def build_service(
    settings: Settings, *, around: "Callable[[Retriever | None], Retriever | None] | None" = None
) -> OpenChatKitService:
    """Assemble the service; the language model loads while the encoder, the head and the index are opened.

    Args:
        settings: which parts.
        around: given the retriever of the settings, returns the one that turns use; for measurements.

    Raises:
        ChatkitError: the part that could not be loaded.
    """
    # Numpy is not loaded yet. With a thread per core its matrix library keeps the others spinning for some 50 ms after
    # each small product of the moderation head, on cores that the engine's next step needs.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    async with AsyncExitStack() as stack:
        engine = asyncio.create_task(open_model(settings, stack))
        rest = asyncio.create_task(asyncio.to_thread(_open_rest, settings, stack))
        try:
            (encoder, moderator, retriever, store), model = await asyncio.gather(rest, engine)
        except BaseException:
            for task in (engine, rest):
                task.cancel()
            await asyncio.gather(engine, rest, return_exceptions=True)
            raise
        source_prompt, source_sentences = use_of_passages(settings)
        options = ServiceOptions(
            system_prompt=settings.system_prompt,
            source_prompt=source_prompt,
            source_sentences=source_sentences,
            min_ratio=settings.min_ratio,
            refusal=settings.refusal or ServiceOptions().refusal,
            gate=settings.gate,
            refuse_unchecked_input=settings.input_unavailable == "refuse",
            check_timeout_s=settings.check_timeout_s,
            passage_check=settings.passage_check,
            deadline_s=settings.deadline_s,
            history_turns=settings.history_turns,
        )
        if around is not None:
            retriever = around(retriever)
        own = getattr(model, "embedder", None)  # an engine that makes vectors with the chat model's own weights
        embedders = (encoder, own) if own is not None else (encoder,)
        resources = stack.pop_all()
        return OpenChatKitService(
            model,
            moderator,
            store,
            retriever=retriever,
            attributor=Attributor(encoder) if settings.citations == "on" else None,
            embedders=embedders,
            archive=store,
            options=options,
            feedback=Feedback(settings.feedback_file) if settings.feedback else None,
            resources=resources,
        )


def _open_rest(settings: Settings, stack: AsyncExitStack) -> tuple[Embedder, Moderator, Retriever | None, "Store"]:
    encoder = open_encoder(settings)
    stack.callback(encoder.close)
    store = open_store(settings)
    stack.callback(store.close)
    retriever = open_retriever(settings, encoder)
    if retriever is not None:
        stack.callback(retriever.close)
    for_moderation = moderation_encoder(settings, encoder)
    if for_moderation is not encoder:
        stack.callback(for_moderation.close)
    return encoder, open_moderator(settings, for_moderation, stack), retriever, store


class Store(SessionStore, Protocol):
    """A session store that has been opened."""

    def close(self) -> None:
        """Wait for what runs and let go of the store."""
        ...


def open_store(settings: Settings) -> Store:
    """Open the session store that the settings name, encrypted where they name a master key.

    Raises:
        StoreFailed: it cannot be opened.
        ConfigError: its table, credentials or library are missing, or its keys.
    """
    if settings.store == "dynamodb" and settings.dynamodb_create_table:
        create_table(settings)
    if not settings.session_keys:
        if settings.store == "sqlite" and settings.key_database.exists():
            raise ConfigError(
                f"session_keys is not set, and sessions here are encrypted: {str(settings.key_database)!r} has their "
                "keys; set it as it was, or move that file away and lose them"
            )
        return _open_plain(settings)
    from chatkit.sessions.encryption import EncryptedStore

    keys = _open_keys(settings)
    try:
        return EncryptedStore(_open_plain(settings), keys, retention_s=settings.retention_s)
    except BaseException:
        keys.close()
        raise


def _open_keys(settings: Settings) -> "KeyRing":
    from chatkit.sessions.key_shelves import DynamoDBKeys, SQLiteKeys
    from chatkit.sessions.master_keys import open_master
    from chatkit.sessions.session_keys import KeyRing

    master = open_master(settings.session_keys, region=settings.dynamodb_region)
    with ExitStack() as stack:
        stack.callback(master.close)
        if settings.store == "dynamodb":
            table, region, endpoint = settings.key_table, settings.dynamodb_region, settings.dynamodb_endpoint
            shelf: KeyShelf = DynamoDBKeys(table, region=region, endpoint=endpoint)
        else:
            shelf = SQLiteKeys(settings.key_database if settings.store == "sqlite" else None)
        stack.callback(shelf.close)
        keys = KeyRing(shelf, master)
        keys.check(settings.session_keys)
        stack.pop_all()
    return keys


def _open_plain(settings: Settings) -> "OpenStore":
    if settings.store == "memory":
        from chatkit.testing import MemoryStore

        return MemoryStore(retention_s=settings.retention_s)
    if settings.store == "dynamodb":
        from chatkit.sessions.dynamodb import DynamoDBStore

        return DynamoDBStore(
            settings.dynamodb_table,
            region=settings.dynamodb_region,
            endpoint=settings.dynamodb_endpoint,
            retention_s=settings.retention_s,
        )
    from chatkit.sessions.sqlite import SQLiteStore

    return SQLiteStore(settings.database, retention_s=settings.retention_s)


def create_table(settings: Settings) -> bool:
    """Create the DynamoDB table that the settings name, and that of its keys; return whether the first is new.

    Raises:
        ConfigError: there is one with other keys, or credentials, permission or the library are missing.
        StoreFailed: nobody answers.
    """
    from chatkit.sessions.table import Table

    created = []
    for name in (settings.dynamodb_table, *([settings.key_table] if settings.session_keys else [])):
        table = Table(name, region=settings.dynamodb_region, endpoint=settings.dynamodb_endpoint)
        try:
            created.append(table.create())
            table.expire()
        finally:
            table.close()
    return created[0]


def open_encoder(settings: Settings, *, bulk: bool = False) -> "SentenceEncoder":
    """Open the encoder that retrieval and moderation share.

    Args:
        bulk: to encode the passages of an index: in eight bits where the settings say so, which queries and moderation
            never are, and with passes side by side.

    Raises:
        ModelError: it was not pulled, or its files are damaged.
    """
    from chatkit.models import sources
    from chatkit.retrieval import encoder

    folder, cache, told = _encoder_files(settings)
    precision = settings.encoder_precision
    return encoder.open_encoder(
        folder,
        name=sources.name_of(settings.encoder, "encoder", settings.profile),
        cache=cache,
        backend=settings.encoder_backend,
        threads=settings.threads,
        precision="native" if precision == "int8" and not bulk else precision,
        bulk=bulk,
        device=settings.encoder_device,
        told=told,
    )


def moderation_encoder(settings: Settings, shared: "SentenceEncoder | None" = None) -> "SentenceEncoder":
    """Return the encoder that the moderation head was fitted on: that of the settings, or the default one beside it.

    Args:
        shared: the encoder of the settings, where it is open.

    Raises:
        ModelError: the default one is needed and was not pulled.
    """
    from chatkit.models import sources
    from chatkit.moderation import head

    fitted = head.fitted_on()
    if (shared.fingerprint if shared else _fingerprint(settings)) != fitted:
        usual = Settings(home=settings.home, models_dir=settings.models_dir, threads=settings.threads)
        usual = replace(usual, encoder_backend=settings.encoder_backend, encoder_device=settings.encoder_device)
        try:
            if _fingerprint(usual) == fitted:
                return open_encoder(usual)
        except ModelError as error:
            source = sources.parse("default", "encoder")
            raise ModelError(
                f"moderation needs the encoder that its head was fitted on, beside {settings.encoder!r}; "
                f"run: {shlex.join(['chatkit', 'models', 'pull', str(source)])}"
            ) from error
    return shared or open_encoder(settings)


def _encoder_files(settings: Settings) -> "tuple[Path, Path, Told]":
    """Return the encoder's folder, where what is made of it is kept, and what the settings say of its use."""
    from chatkit.models import sources
    from chatkit.retrieval.traits import Told

    folder = sources.resolve(settings.encoder, models_dir=settings.models, role="encoder", profile=settings.profile)
    told = Told(
        pooling=settings.encoder_pooling,
        metric=settings.encoder_metric,
        query_prefix=settings.encoder_query_prefix,
        passage_prefix=settings.encoder_passage_prefix,
    )
    return folder, sources.derived_dir(folder, models_dir=settings.models), told


def open_retriever(settings: Settings, encoder: Encoder) -> "OpenRetriever | None":
    """Open what the settings say to look things up in; see `retrieving.open_retriever`."""

    def own(source: str) -> Encoder | None:
        if source == settings.encoder:
            return None
        # What the settings tell of their own encoder says nothing about this one.
        untold = replace(settings, encoder=source, encoder_pooling="auto", encoder_metric="auto")
        return open_encoder(replace(untold, encoder_query_prefix="auto", encoder_passage_prefix="auto"))

    return retrieving.open_retriever(settings, encoder, own, _scored_by)


def _scored_by() -> str:
    """Return the version that indexes have whose passages were scored as they would be now."""
    from chatkit.moderation.head import WEIGHTS, version_of
    from chatkit.moderation.network import load_network

    return version_of(str(load_network(WEIGHTS)[1]["digest"]))


def open_moderator(settings: Settings, encoder: Encoder, stack: AsyncExitStack | None = None) -> Moderator:
    """Open the scorer of the settings under their policy; see `moderators.open_scorer`."""
    from chatkit.moderation.moderator import PolicyModerator

    policy = read_policy(settings.policy)
    if settings.refusal:
        policy = replace(policy, texts=policy.texts.saying(settings.refusal))
    return PolicyModerator(moderators.open_scorer(settings, encoder, stack), policy, encoder=encoder)


def open_passage_scores(settings: Settings, shared: "SentenceEncoder") -> "tuple[PassageScores, SentenceEncoder]":
    """Open what scores the passages of an index, and the encoder that it goes by: `shared`, or one beside it.

    Raises:
        ModelError: the head needs another encoder, which was not pulled.
    """
    from chatkit.moderation.head import TOLD, HeadScorer
    from chatkit.moderation.passages import PassageScores

    encoder = moderation_encoder(settings, shared if settings.encoder_precision != "int8" else None)
    scorer = HeadScorer(encoder, None)
    return PassageScores(scorer, TOLD, scorer.version), encoder


def read_policy(name: str) -> "Policy":
    """Return the moderation policy of that name or file.

    Raises:
        ConfigError: there is none, or the file has a fault.
    """
    from chatkit.moderation import policy_files

    return policy_files.named(name)


def train_head(settings: Settings, *, folder: Path, out: Path | None, progress: Any) -> "TrainReport":
    """Fit the moderation head on the labelled sets in `folder` and write it to `out`."""
    from chatkit.moderation import train

    return train.train_head(open_encoder(settings), folder, out, progress)


def list_indexes(settings: Settings) -> "list[ListedIndex]":
    """Return every index, checked against the encoder of the settings where that was pulled."""
    from chatkit.retrieval import catalogue

    try:
        fingerprint = _fingerprint(settings)
    except ModelError:
        fingerprint = None
    return catalogue.list_indexes(settings.indexes, fingerprint=fingerprint, default=settings.index)


def use_index(settings: Settings, name: str, version: str) -> "Used":
    """Make a kept version of the index `name` live, if it is good."""
    from chatkit.retrieval import catalogue

    return catalogue.use_version(settings.indexes, name, version, fingerprint=_fingerprint(settings))


def _fingerprint(settings: Settings) -> str:
    """Return the encoder's fingerprint without loading it."""
    from chatkit.retrieval import checkpoint

    return checkpoint.read_checkpoint(*_encoder_files(settings)).fingerprint


def pull_models(
    settings: Settings, sources: Sequence[str], *, force: bool, timeout: float, progress: Any
) -> "list[Pulled]":
    """Pull the sources, or the chat model and encoder of the settings when none is named."""
    from chatkit.models import sources as adapter

    return adapter.pull_models(
        settings.models,
        sources,
        configured=_configured(settings),
        profile=settings.profile,
        force=force,
        timeout=timeout,
        progress=progress,
    )


def list_models(settings: Settings) -> "list[Listed]":
    """Return the models of every profile, the configured ones, and whatever else was pulled."""
    from chatkit.models import sources as adapter

    return adapter.list_models(settings.models, configured=_configured(settings), profile=settings.profile)


def _configured(settings: Settings) -> dict[Any, str]:
    return {"chat": settings.chat_model, "encoder": settings.encoder}
