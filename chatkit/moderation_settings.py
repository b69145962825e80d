"""The settings that say which model moderates, and how it runs; a part of `settings.Settings`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chatkit.setting_checks import Secret, check_address, key_in, require
from chatkit.setting_values import setting

_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,2})?")


@dataclass(frozen=True, slots=True)
class ModerationSettings:
    """Which model moderates; docs/moderation-models.md has an example of each."""

    moderator: Literal["head", "gpt-jt", "guard", "cascade"] = setting(
        "head",
        "What scores text: the embedded head, GPT-JT-Moderation, a guard model, or the head with one of both where it "
        "is not sure.",
    )
    moderation_model: str = setting(
        "", "Model of the moderator where it is not the head: a source, or what `moderation_endpoint` calls it."
    )
    moderation_template: Literal["auto", "gpt-jt", "qwen3guard", "llama-guard", "shieldgemma", "granite-guardian"] = (
        setting("auto", "Family of that model; `auto` goes by its name.")
    )
    moderation_endpoint: str = setting(
        "", "Address of an OpenAI-compatible server that has the guard model; empty runs it here."
    )
    moderation_key: Secret | None = setting(None, "Key for that server.", secret=True)
    moderation_key_file: Path | None = setting(
        None, "File that holds the key for that server; `moderation_key` goes before it."
    )
    moderation_proxy: str = setting("", "Proxy on the way to that server; empty: none, whatever HTTP_PROXY says.")
    moderation_device: str = setting(
        "auto", "Where a moderation model runs here: cpu, cuda or cuda:N; `auto` takes the GPUs there are."
    )
    moderation_dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "Precision of a moderation model that runs here; `auto` as of the `transformers` engine."
    )
    moderation_quantize: Literal["none", "8bit", "4bit"] = setting(
        "none", "Weights of a moderation model that runs here in fewer bits."
    )
    moderation_timeout_s: float = setting(
        10.0, "Seconds until a moderation model's answer; after that the check could not run."
    )
    cascade_low: float = setting(0.2, "Least score of `harm` by the head at which the cascade asks the second model.")
    cascade_high: float = setting(0.95, "Highest score of `harm` by the head at which it still asks.")
    personal_data: bool = setting(
        False, "Look for personal data by its patterns, with Presidio (the extra `presidio`)."
    )

    def check_moderation(self) -> None:
        """Read the key's file and check what one field alone, or with another, can say.

        Raises:
            ConfigError: naming the setting.
        """
        if self.moderation_key is None and self.moderation_key_file is not None:
            object.__setattr__(self, "moderation_key", key_in(self.moderation_key_file.expanduser(), "moderation_key"))
        if self.moderation_endpoint:
            check_address("moderation_endpoint", self.moderation_endpoint, "http://127.0.0.1:8001/v1")
        if self.moderation_proxy:
            check_address("moderation_proxy", self.moderation_proxy, "http://proxy:3128")
        there = self.moderator == "head" or bool(self.moderation_model or self.moderation_endpoint)
        require(there, "moderation_model", self.moderation_model, f"a model, since moderator is {self.moderator!r}")
        here = not self.moderation_endpoint or "gpt-jt" not in (self.moderator, self.moderation_template)
        require(here, "moderation_endpoint", self.moderation_endpoint, "nothing: GPT-JT's logits are read here")
        device = self.moderation_device
        require(_DEVICE.fullmatch(device) is not None, "moderation_device", device, "auto, cpu, cuda or cuda:N")
        seconds = self.moderation_timeout_s
        require(0 < seconds <= 600, "moderation_timeout_s", seconds, "a number above 0, at most 600")
        low, high = self.cascade_low, self.cascade_high
        require(0 <= low <= 1, "cascade_low", low, "a number from 0 to 1")
        require(low <= high <= 1, "cascade_high", high, "a number from cascade_low to 1")
