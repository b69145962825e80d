"""How an encoder is meant to be used: pooling, metric, prefixes and length, as its own files and its family say."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from chatkit.errors import BrokenModel, ModelError

Pooling = Literal["mean", "cls", "max", "lasttoken"]
Metric = Literal["cosine", "ip"]

_POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
# The names that sentence-transformers gave them up to its version 5.
_OLD_NAMES: Mapping[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU")
# Their position embeddings start after the padding id, so that many fewer tokens fit than there are positions.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet")
# What parts there may be, each after those before it.
_ORDER = ("Transformer", "Pooling", "Dense", "Normalize")
# Of a model that has no longest length at all. Tokens.
_ANY_LENGTH = 512

_BGE = "Represent this sentence for searching relevant passages: "
_INSTRUCT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "
# What models were trained with and their files do not say: pattern of the name, before a query, before a passage.
_FAMILIES: tuple[tuple[str, str, str], ...] = (
    (r"bge-(small|base|large)-en", _BGE, ""),
    (r"bge-(small|base|large)-zh", "为这个句子生成表示以用于检索相关文章：", ""),
    (r"e5-.*instruct|e5-mistral", _INSTRUCT, ""),
    (r"(^|[-/_])e5-(small|base|large)", "query: ", "passage: "),
    (r"nomic-embed-text", "search_query: ", "search_document: "),
    (r"arctic-embed-.*v2", "query: ", ""),
    (r"arctic-embed|mxbai-embed", _BGE, ""),
)
# Trained for the inner product of vectors as they come, which their files do not say.
_FOR_INNER_PRODUCT = re.compile(r"contriever|[-_]dot[-_]|[-_]dot$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Told:
    """What settings say of an encoder, before its own files; "auto" leaves it to them."""

    pooling: Pooling | Literal["auto"] = "auto"
    metric: Metric | Literal["auto"] = "auto"
    query_prefix: str = "auto"
    passage_prefix: str = "auto"


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer after the pooling: its folder, width and activation."""

    folder: Path
    dim: int
    activation: str


@dataclass(frozen=True, slots=True)
class Traits:
    """What an encoder's files, its family and the settings say together.

    Attributes:
        transformer: the folder of configuration, tokenizer and weights.
        dim: length of one vector.
        max_tokens: texts are cut here, special tokens included.
        pad_id: of the token that fills a batch; some models count positions by it.
        vocabulary: number of token ids.
        dense: layers after the pooling, in order.
        windowed: some of its layers see only tokens nearby.
        lower: texts are put in lower case before the tokenizer sees them.
    """

    transformer: Path
    dim: int
    max_tokens: int
    pad_id: int | None
    vocabulary: int
    pooling: Pooling
    metric: Metric
    query_prefix: str
    passage_prefix: str
    dense: tuple[Dense, ...] = ()
    windowed: bool = False
    lower: bool = False

    @property
    def normalised(self) -> bool:
        """Whether vectors are brought to length one: always where they are compared by the cosine."""
        return self.metric == "cosine"


def read_traits(folder: Path, told: Told | None = None) -> Traits:
    """Read what the encoder in `folder` says about itself.

    The layout is that of sentence-transformers: `modules.json` lists the transformer, its pooling and what follows. A
    folder without one is a plain transformer: mean pooling and the cosine, unless it is known by name for another.

    Raises:
        BrokenModel: a file is missing or cannot be read, naming it.
        ModelError: the encoder has a part that is not supported, naming it.
    """
    told = told or Told()
    modules = _modules(folder)
    transformer = folder / modules["Transformer"][0] if "Transformer" in modules else folder
    config = read_json(transformer / "config.json")
    _require_encoder(transformer, config)
    width = config.get("hidden_size", config.get("dim"))  # DistilBERT's name for it
    if not isinstance(width, int):
        raise broken(transformer / "config.json", f"has hidden_size {width!r}, expected a whole number")
    dense = tuple(_dense(folder / path) for path in modules.get("Dense", ()))
    said = _read_if_there(folder / "config_sentence_transformers.json")
    query, passage = _prefixes(folder, config, said)
    pad_id, vocabulary = config.get("pad_token_id"), config.get("vocab_size")
    return Traits(
        transformer=transformer,
        dim=dense[-1].dim if dense else width,
        max_tokens=_max_tokens(transformer, config),
        pad_id=pad_id if isinstance(pad_id, int) else None,
        vocabulary=vocabulary if isinstance(vocabulary, int) else 0,
        pooling=_pooling(folder, modules) if told.pooling == "auto" else told.pooling,
        metric=_metric(folder, config, modules, said) if told.metric == "auto" else told.metric,
        query_prefix=query if told.query_prefix == "auto" else told.query_prefix,
        passage_prefix=passage if told.passage_prefix == "auto" else told.passage_prefix,
        dense=dense,
        windowed=bool(config.get("local_attention") or config.get("sliding_window")),
        lower=_read_if_there(transformer / "sentence_bert_config.json").get("do_lower_case") is True,
    )


def broken(file: Path, problem: str) -> BrokenModel:
    """Return the error for one file of an encoder, with the next step."""
    return BrokenModel(f"encoder file {str(file)!r} {problem}; fetch it again with: chatkit models pull")


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        BrokenModel: there is none.
    """
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise broken(file, "is missing") from None
    except (ValueError, OSError) as error:
        raise broken(file, f"is not valid JSON ({error})") from error
    if not isinstance(table, dict):
        raise broken(file, "does not hold a JSON object")
    return table


def _read_if_there(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _modules(folder: Path) -> dict[str, list[str]]:
    """Return the paths of the parts by their kind; of a plain transformer, those that lie there by their usual names.

    Raises:
        ModelError: there is a part of another kind, or in another order.
    """
    file = folder / "modules.json"
    if not file.is_file():
        usual = {"Pooling": "1_Pooling", "Normalize": "2_Normalize"}
        return {kind: [path] for kind, path in usual.items() if (folder / path).is_dir()}
    try:
        rows = [(str(row["type"]).rpartition(".")[2], str(row["path"])) for row in json.loads(file.read_bytes())]
    except (ValueError, TypeError, KeyError) as error:
        raise broken(file, f"is not a list of parts ({error})") from error
    found: dict[str, list[str]] = {}
    for kind, path in rows:
        if ".." in Path(path).parts or Path(path).is_absolute():
            raise broken(file, f"names the path {path!r}, expected one inside the folder")
        found.setdefault(kind, []).append(path)
    kinds = [kind for kind, _ in rows if kind != "Dropout"]
    if "Transformer" not in found or kinds != [kind for kind in _ORDER for _ in range(kinds.count(kind))]:
        raise ModelError(
            f"{str(file)!r} asks for {[kind for kind, _ in rows]}, expected Transformer, Pooling, Dense and Normalize "
            "in this order; choose another model with --encoder"
        )
    return found


def _require_encoder(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse what `AutoModel` would not load as one stack of layers over the tokens, or only with code of its own."""
    if config.get("is_encoder_decoder"):
        raise _unsupported(folder, "is an encoder and a decoder")
    if "auto_map" in config and not config.get("model_type"):
        raise own_code(folder)


def own_code(folder: Path) -> ModelError:
    """Return the error for a model that cannot be loaded without running code that came with it."""
    return _unsupported(folder, "needs Python code of its own")


def _unsupported(folder: Path, problem: str) -> ModelError:
    return ModelError(
        f"the model in {str(folder)!r} {problem}, which is not supported; choose another model with --encoder"
    )


def _pooling(folder: Path, modules: Mapping[str, list[str]]) -> Pooling:
    if "Pooling" not in modules:
        return "mean"
    file = folder / modules["Pooling"][0] / "config.json"
    config = read_json(file)
    named = config.get("pooling_mode")
    if named is None:
        on = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
        modes = [_OLD_NAMES.get(name, name) for name in on] or ["mean"]
    else:
        modes = [named] if isinstance(named, str) else list(named)
    if len(modes) != 1 or modes[0] not in _POOLINGS or config.get("include_prompt") is False:
        asked = f"{modes!r}" + ("" if config.get("include_prompt", True) else " without the prompt")
        raise ModelError(
            f"{str(file)!r} asks for {asked}, expected one of {', '.join(_POOLINGS)}; "
            "choose another model with --encoder"
        )
    return modes[0]


def _metric(
    folder: Path, config: Mapping[str, Any], modules: Mapping[str, list[str]], said: Mapping[str, Any]
) -> Metric:
    """Return "ip" where the model was trained for the inner product of vectors as they come."""
    similarity = said.get("similarity_fn_name")
    if similarity not in (None, "cosine", "dot", "dot_product"):
        raise ModelError(
            f"the encoder in {str(folder)!r} compares by {similarity!r}, expected 'cosine' or 'dot'; "
            "choose another model with --encoder, or set --encoder-metric"
        )
    if "Normalize" in modules or similarity == "cosine":
        return "cosine"
    names = " ".join([folder.name, *map(str, config.get("architectures") or ())])
    return "ip" if similarity is not None or _FOR_INNER_PRODUCT.search(names) else "cosine"


def _prefixes(folder: Path, config: Mapping[str, Any], said: Mapping[str, Any]) -> tuple[str, str]:
    """Return what goes before a query and before a passage: as the files say, or else the family."""
    prompts = said.get("prompts")
    prompts = prompts if isinstance(prompts, dict) else {}
    query = next((prompts[name] for name in ("query", "s2p_query", "retrieval.query") if prompts.get(name)), "")
    passage = next((prompts[name] for name in ("document", "passage", "retrieval.passage") if prompts.get(name)), "")
    if query or passage:
        return str(query), str(passage)
    for name in (folder.name, str(config.get("_name_or_path") or "").rstrip("/")):
        for pattern, before_query, before_passage in _FAMILIES:
            if re.search(pattern, name, re.IGNORECASE):
                return before_query, before_passage
    return "", ""


def _dense(folder: Path) -> Dense:
    config = read_json(folder / "config.json")
    activation = str(config.get("activation_function") or "Identity").rpartition(".")[2]
    dim = config.get("out_features")
    if not isinstance(dim, int):
        raise broken(folder / "config.json", f"has out_features {dim!r}, expected a whole number")
    if activation not in _ACTIVATIONS:
        raise ModelError(
            f"{str(folder)!r} asks for the activation {activation!r}, expected one of {', '.join(_ACTIVATIONS)}; "
            "choose another model with --encoder"
        )
    return Dense(folder, dim, activation)


def _max_tokens(transformer: Path, config: Mapping[str, Any]) -> int:
    """Return the length the model was tuned for, at most what its positions allow."""
    positions = config.get("max_position_embeddings")
    limits = [positions] if isinstance(positions, int) else []
    if limits and config.get("model_type") in _OFFSET_POSITIONS:
        limits[0] -= int(config.get("pad_token_id") or 1) + 1
    tuned = _read_if_there(transformer / "sentence_bert_config.json").get("max_seq_length")
    if tuned is None:
        tuned = _read_if_there(transformer / "tokenizer_config.json").get("model_max_length")
    # Tokenizers without a length of their own carry 10^30.
    if isinstance(tuned, int) and 0 < tuned < 10**9:
        limits.append(tuned)
    return min(limits, default=_ANY_LENGTH)
