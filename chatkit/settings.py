"""Every setting, in one frozen value read once: flags before environment before file before defaults."""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from chatkit.errors import ConfigError
from chatkit.moderation_settings import ModerationSettings
from chatkit.setting_checks import (
    ENV_PREFIX,
    FILE_NAME,
    TABLE_NAME,
    Secret,
    check_address,
    check_keys,
    check_retrieval,
    check_session_keys,
    check_upstream,
    key_in,
    require,
)
from chatkit.setting_values import kind_of, parse
from chatkit.setting_values import setting as _setting


@dataclass(frozen=True, slots=True)
class Settings(ModerationSettings):
    """All settings: flag `--some-name`, variable `CHATKIT_SOME_NAME`, key `some_name` in chatkit.toml."""

    home: Path = _setting(Path("~/.chatkit"), "Folder for indexes and sessions.")
    models_dir: Path | None = _setting(None, "Model cache; <home>/models when not set.")

    host: str = _setting("127.0.0.1", "Address to listen on; anything but loopback needs an API key.")
    port: int = _setting(8080, "Port to listen on; 0 takes a free one.")
    api_key: Secret | None = _setting(None, "Key that callers send as `Authorization: Bearer …`.", secret=True)
    api_key_file: Path | None = _setting(None, "File that holds the API key; `api_key` goes before it.")
    keys_file: Path | None = _setting(
        None, "TOML file of several keys, each with its owner and scopes; in the place of one API key."
    )
    sagemaker: bool = _setting(
        False, "SageMaker mode: IAM is in front, so no key is asked for, and the caller may name the user."
    )
    max_body_kb: int = _setting(256, "Largest request body, in KiB.")
    drain_s: float = _setting(20.0, "Seconds that open turns get at shutdown.")

    profile: Literal["local", "larger"] = _setting(
        "local", "What `default` stands for: models for any machine, or a larger chat model from the hub."
    )
    chat_model: str = _setting("default", "Chat model: a source (`models list` shows the forms) or `default`.")
    encoder: str = _setting("default", "Encoder: a source or `default`.")
    encoder_backend: Literal["openvino", "torch"] = _setting("openvino", "What runs the encoder.")
    encoder_device: str = _setting(
        "auto", "Where the `torch` encoder runs: cpu, cuda or cuda:N; `auto` takes a GPU where there is one."
    )
    encoder_precision: Literal["native", "exact", "int8"] = _setting(
        "native", "Arithmetic of the encoder: the machine's fastest, float32, or 8 bits for the passages of an index."
    )
    encoder_pooling: Literal["auto", "mean", "cls", "max", "lasttoken"] = _setting(
        "auto", "How an encoder's tokens become one vector; `auto` goes by its files, which say it of nearly all."
    )
    encoder_metric: Literal["auto", "cosine", "ip"] = _setting(
        "auto", "What an encoder's vectors are compared by; `auto` goes by its files and its name."
    )
    encoder_query_prefix: str = _setting(
        "auto", "Text before every query; `auto` goes by the encoder's files and its name.", empty=True
    )
    encoder_passage_prefix: str = _setting(
        "auto", "Text before every passage that is encoded; `auto` as for queries.", empty=True
    )
    prompt_format: Literal["auto", "template", "openchatkit", "bluelm", "chatglm2", "llama2"] = _setting(
        "auto", "How prompts are written; `auto` goes by the model's name and its chat template."
    )
    engine: Literal["local", "transformers", "openai"] = _setting(
        "local",
        "What runs the chat model: `local` is OpenVINO with GGUF weights, `transformers` torch on GPUs or CPUs, "
        "`openai` a server at `upstream_url`.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _setting(
        "auto", "Precision of the `transformers` engine; `auto` is float32 on a CPU, bfloat16 on a GPU that has it."
    )
    quantize: Literal["none", "8bit", "4bit"] = _setting("none", "Weights of the `transformers` engine in fewer bits.")
    gpu_memory: str = _setting("", "GiB of weights by GPU for `transformers`, as in 0:20,1:30; empty sets no limit.")
    cpu_memory: float = _setting(
        0.0, "GiB of weights for `transformers` in the machine's memory; more goes to `offload_dir`. 0 sets no limit."
    )
    offload_dir: Path | None = _setting(None, "Folder for weights that fit no memory; <home>/offload when not set.")
    tensor_parallel: int = _setting(1, "Processes that share every layer in the `transformers` engine, one a GPU.")
    cuda_graphs: bool = _setting(False, "Record the steps of the `transformers` engine on its GPU and replay them.")
    device: str = _setting(
        "CPU", "Where the `local` engine runs, as OpenVINO names it: CPU, GPU, GPU.1 or AUTO; one that is there."
    )
    precision: Literal["fast", "exact"] = _setting(
        "fast", "Of the `local` engine: eight-bit cache and the machine's fastest arithmetic, or float32 throughout."
    )
    threads: int = _setting(0, "CPU threads for the engine; 0 takes all cores.")
    kv_cache_gb: int = _setting(1, "Memory for the engine's key-value cache, in GiB.")
    max_running: int = _setting(64, "Generations that run at once; more wait in the queue.")
    max_queue: int = _setting(256, "Generations that may wait; more are refused with 503.")
    prefix_cache: bool = _setting(True, "Reuse the cache of prompts that start alike.")

    upstream_url: str = _setting("", "Address of an OpenAI-compatible server, for the engine `openai`; ends in /v1.")
    upstream_proxy: str = _setting("", "Proxy on the way to that server; empty: none, whatever HTTP_PROXY says.")
    upstream_model: str = _setting("", "What the server calls the model; empty takes the first that it lists.")
    upstream_auth: Literal["bearer", "sagemaker", "none"] = _setting(
        "bearer", "What goes with a request: the key, if there is one; a token made of the AWS credentials; or nothing."
    )
    upstream_key: Secret | None = _setting(None, "Key for the server.", secret=True)
    upstream_key_file: Path | None = _setting(
        None, "File that holds the key for the server; `upstream_key` goes before it."
    )
    upstream_context: int = _setting(0, "Tokens of prompt and answer that the server takes; 0 asks it.")
    upstream_tokenizer: str = _setting(
        "", "Source or folder with the model's tokenizer.json, to count tokens with; empty estimates them."
    )
    upstream_system: Literal["first", "none", "any"] = _setting(
        "first", "System messages that the server's template takes: one at the start, none at all, or anywhere."
    )
    upstream_fields: str = _setting(
        "", "Fields beyond the common ones that the server takes, separated by commas, e.g. `top_k,repetition_penalty`."
    )
    upstream_session_header: str = _setting(
        "", "Headers that carry a hash of the session, separated by commas, so that a router can keep it in one place."
    )
    upstream_timeout_s: float = _setting(60.0, "Seconds until the server's first token, tries again included.")
    upstream_stall_s: float = _setting(30.0, "Seconds between two tokens of the server.")

    system_prompt: str = _setting(
        "You are a helpful AI assistant.", "First message of every prompt; the day is added to it."
    )
    source_prompt: str = _setting(
        "",
        "What the model is told to do with the passages of a message; empty for what suits the model: words of its own "
        "for the chat model of the profile `local`, the same for any other.",
        empty=True,
    )
    source_sentences: int = _setting(
        -1,
        "Sentences of a passage that the prompt holds, those nearest to the message; 0 puts all of it there, "
        "-1 what suits the model: 1 for the chat model of the profile `local`, all for any other.",
    )
    max_new_tokens: int = _setting(256, "Length of a reply where the request names none, in tokens.")
    deadline_s: float = _setting(120.0, "Seconds after which a reply ends with what it has.")
    history_turns: int = _setting(64, "Newest turns read for a prompt.")

    index: str = _setting("docs", "Name of the index to answer from; empty for none.", empty=True)
    request_indexes: str = _setting(
        "*", "Indexes a request may name, separated by commas; `*` for all, empty for none.", empty=True
    )
    retriever: str = _setting(
        "", "In the place of an index: a search API, http:FILE.toml, or code of your own, python:MODULE:NAME."
    )
    keep_versions: int = _setting(1, "Older versions of an index that are kept beside the live one.")
    k: int = _setting(3, "Passages looked up for a message.")
    min_score: float = _setting(0.33, "Least score of a passage that is used; 0 to 1, -1 takes all.")
    dense_weight: float = _setting(
        -1.0, "Weight of meaning against words in a search, 0 to 1; -1 takes what each index was built with."
    )
    reranker: str = _setting("", "Cross-encoder that reads the best passages again: a source; empty for none.")
    neighbours: int = _setting(0, "Passages before and after a hit that are read with it where they are like it.")
    neighbour_score: float = _setting(0.5, "Cosine with the hit above which a neighbour is read with it.")
    min_ratio: float = _setting(
        0.9, "Least part of the best passage's score that a further one needs to be used; 0 uses all."
    )
    citations: Literal["on", "off"] = _setting(
        "on", "Whether each sentence of an answer is attributed to the passages that support it."
    )

    store: Literal["sqlite", "dynamodb", "memory"] = _setting(
        "sqlite", "Where sessions are kept; `memory` forgets them when the service ends."
    )
    retention_days: float = _setting(
        0.0, "Days until a session ends, counted from its first turn and fixed then; 0 keeps it until it is removed."
    )
    allow_local_store: bool = _setting(
        False, "Keep sessions in SQLite or memory in SageMaker mode too, where an instance and its disk may vanish."
    )
    session_keys: str = _setting(
        "", "Encrypt each session with a key of its own, itself encrypted under: file:PATH or kms:KEY; empty for none."
    )
    dynamodb_table: str = _setting("chatkit", "Name of the DynamoDB table.")
    dynamodb_region: str = _setting("", "AWS region of the table; empty takes what the AWS settings say.")
    dynamodb_endpoint: str = _setting("", "Address of DynamoDB Local or another server; empty for AWS.")
    dynamodb_create_table: bool = _setting(
        False, "Create the table where it is missing when it is opened; for development, where a role may do that."
    )

    policy: str = _setting("standard", "Moderation policy: standard, strict, monitor, or a file that ends in .toml.")
    gate: Literal["check_first", "stream_first", "final_only"] = _setting(
        "check_first", "When output is let out: each window after its check, before it, or all at the end."
    )
    input_unavailable: Literal["refuse", "allow"] = _setting(
        "refuse", "What a message gets whose check could not run; output is always refused then."
    )
    refusal: str = _setting(
        "",
        "What stands in place of a blocked message or answer; empty takes the words of the policy.",
    )
    check_timeout_s: float = _setting(20.0, "Seconds after which a check of a text counts as one that could not run.")
    passage_check: Literal["all", "scanned", "off"] = _setting(
        "all", "Passages that the policy judges before a prompt: all, those whose index has their scores, or none."
    )
    feedback: bool = _setting(
        False, "Let users report a wrong refusal; what they report is kept in <home>/feedback.jsonl, and nothing else."
    )

    def __post_init__(self) -> None:
        """Expand paths and check what one field alone can say."""
        object.__setattr__(self, "home", self.home.expanduser())
        models = self.models_dir.expanduser() if self.models_dir else self.home / "models"
        object.__setattr__(self, "models_dir", models)
        require(0 <= self.port <= 65535, "port", self.port, "a number from 0 to 65535")
        require(self.max_body_kb >= 1, "max_body_kb", self.max_body_kb, "at least 1")
        require(0 <= self.threads <= 1024, "threads", self.threads, "a number from 0 to 1024")
        memory_ok = re.fullmatch(r"(\d+:\d+(\.\d+)?(,\s*|$))*", self.gpu_memory) is not None
        require(memory_ok, "gpu_memory", self.gpu_memory, "GiB by GPU number such as 0:20,1:30")
        require(0 <= self.cpu_memory <= 1 << 20, "cpu_memory", self.cpu_memory, "GiB, or 0 for no limit")
        require(1 <= self.tensor_parallel <= 1024, "tensor_parallel", self.tensor_parallel, "a number from 1 to 1024")
        require(self.kv_cache_gb >= 1, "kv_cache_gb", self.kv_cache_gb, "at least 1")
        require(1 <= self.max_running <= 4096, "max_running", self.max_running, "a number from 1 to 4096")
        require(0 <= self.keep_versions <= 1000, "keep_versions", self.keep_versions, "a number from 0 to 1000")
        require(self.max_queue >= 1, "max_queue", self.max_queue, "at least 1")
        require(1 <= self.max_new_tokens <= 32768, "max_new_tokens", self.max_new_tokens, "a number from 1 to 32768")
        require(0 < self.deadline_s <= 86400, "deadline_s", self.deadline_s, "a number above 0, at most 86400")
        require(0 <= self.drain_s <= 3600, "drain_s", self.drain_s, "a number from 0 to 3600")
        if self.api_key is None and self.api_key_file is not None:
            object.__setattr__(self, "api_key", key_in(self.api_key_file.expanduser(), "api_key"))
        if self.upstream_key is None and self.upstream_key_file is not None:
            object.__setattr__(self, "upstream_key", key_in(self.upstream_key_file.expanduser(), "upstream_key"))
        key = self.api_key
        key_ok = key is None or (key != "" and key.strip() == key and key.isascii() and key.isprintable())
        require(key_ok, "api_key", key, "a key of ASCII letters, digits and signs, without spaces around it")
        check_upstream(self)
        require(0 <= self.retention_days <= 36500, "retention_days", self.retention_days, "a number from 0 to 36500")
        lasting = self.store == "dynamodb" or self.allow_local_store or not self.sagemaker
        require(lasting, "store", self.store, "dynamodb in SageMaker mode, or allow_local_store with it")
        check_keys(self)
        require(self.history_turns >= 1, "history_turns", self.history_turns, "at least 1")
        require(not set(self.index) & set("/\\\0"), "index", self.index, "a name without slashes")
        require(self.index not in (".", ".."), "index", self.index, "a name")
        require(
            TABLE_NAME.fullmatch(self.dynamodb_table) is not None,
            "dynamodb_table",
            self.dynamodb_table,
            "3 to 255 letters, digits, '.', '_' or '-'",
        )
        check_session_keys(self)
        if self.dynamodb_endpoint:
            check_address("dynamodb_endpoint", self.dynamodb_endpoint, "http://127.0.0.1:8000")
        check_retrieval(self)
        self.check_moderation()
        require(0 < self.check_timeout_s <= 600, "check_timeout_s", self.check_timeout_s, "above 0, at most 600")

    def without_index(self) -> "Settings":
        """Return the same settings, answering from the model alone."""
        return replace(self, index="", retriever="")

    @property
    def upstream_field_names(self) -> tuple[str, ...]:
        """Names in `upstream_fields`."""
        return _names_in(self.upstream_fields)

    @property
    def session_headers(self) -> tuple[str, ...]:
        """Names in `upstream_session_header`."""
        return _names_in(self.upstream_session_header)

    @property
    def models(self) -> Path:
        """The model cache, resolved."""
        return self.models_dir or self.home / "models"

    @property
    def indexes(self) -> Path:
        """Where named indexes live."""
        return self.home / "indexes"

    @property
    def offload(self) -> Path:
        """Where weights go that fit no memory."""
        return (self.offload_dir or self.home / "offload").expanduser()

    @property
    def retention_s(self) -> float | None:
        """Seconds until a session ends; None for never."""
        return self.retention_days * 86400 if self.retention_days else None

    @property
    def database(self) -> Path:
        """The SQLite session store."""
        return self.home / "sessions.sqlite3"

    @property
    def key_database(self) -> Path:
        """The keys of sessions in SQLite, apart from their text so that a copy of one lacks the other."""
        return self.home / "session-keys.sqlite3"

    @property
    def feedback_file(self) -> Path:
        """Reports of wrong refusals."""
        return self.home / "feedback.jsonl"

    @property
    def key_table(self) -> str:
        """The keys of sessions in DynamoDB."""
        return f"{self.dynamodb_table}-keys"


def _names_in(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Settings:
    """Read settings: flag, then environment, then file, then default.

    Args:
        flags: values given on the command line; None counts as not given.
        environ: os.environ unless told.
        file: a chatkit.toml; CHATKIT_CONFIG or ./chatkit.toml unless told.

    Raises:
        ConfigError: for an unknown name or a value that does not fit, naming both.
    """
    environ = os.environ if environ is None else environ
    known = {f.name: f for f in fields(Settings)}
    values = _from_file(_config_file(file, environ), known)
    for name, spec in known.items():
        raw = environ.get(ENV_PREFIX + name.upper())
        if raw is not None and (raw or spec.metadata["empty"]):
            values[name] = parse(spec, raw, f"{ENV_PREFIX}{name.upper()}")
    for name, value in (flags or {}).items():
        if value is not None:
            values[name] = parse(known[name], value, "--" + name.replace("_", "-"))
    return Settings(**values)


def _config_file(file: Path | None, environ: Mapping[str, str]) -> Path | None:
    named = file or (Path(environ[ENV_PREFIX + "CONFIG"]) if environ.get(ENV_PREFIX + "CONFIG") else None)
    if named is not None:
        if not named.is_file():
            raise ConfigError(f"the settings file {str(named)!r} does not exist; name another with --config")
        return named
    here = Path(FILE_NAME)
    return here if here.is_file() else None


def _from_file(file: Path | None, known: Mapping[str, Field[Any]]) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(file)!r} is not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{str(file)!r} cannot be read ({error.strerror}); name another with --config") from error
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; docs/configuration.md lists the settings"
            raise ConfigError(f"{str(file)!r} sets {name!r}, which is no setting{hint}")
    return {name: parse(known[name], value, f"{name} in {file}") for name, value in table.items()}


def describe() -> list[tuple[str, str, str, str]]:
    """Return (name, type, default, help) of every setting, in order: the source of the configuration page and flags."""
    rows = []
    of_moderation = {spec.name for spec in fields(ModerationSettings)}  # they come first, and are read last
    for spec in sorted(fields(Settings), key=lambda spec: spec.name in of_moderation):
        kind, literals = kind_of(spec)
        default = "" if spec.default in (None, MISSING) else str(spec.default)
        rows.append((spec.name, " | ".join(literals) or kind.__name__, default, spec.metadata["help"]))
    return rows
