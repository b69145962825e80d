"""The settings choose the moderator, and the policies know every family's scores."""

import json
import subprocess
import sys
from contextlib import AsyncExitStack

import pytest
import torch

from chatkit import moderators
from chatkit.errors import ConfigError, ModelError
from chatkit.judging import called
from chatkit.moderation import policy_files
from chatkit.moderation.cascade import CascadeScorer
from chatkit.moderation.gpt_jt import ModerationModel
from chatkit.moderation.guard import ReplyGuard
from chatkit.moderation.guard_templates import TEMPLATES
from chatkit.settings import Settings
from tests.models.upstream_fake import running
from tests.moderation import tiny_judges
from tests.moderation.test_upstream_judge import completion
from tests.serving import ROOT

pytestmark = pytest.mark.anyio
GUARD = {"moderator": "guard", "moderation_model": "Qwen/Qwen3Guard-Gen-0.6B"}
HERE = {"moderation_endpoint": "http://127.0.0.1:1/v1"}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"moderator": "guard"}, "moderation_model"),
        ({"moderator": "gpt-jt", "moderation_model": "x", **HERE}, "moderation_endpoint"),
        ({**GUARD, "moderation_endpoint": "127.0.0.1:1"}, "moderation_endpoint"),
        ({**GUARD, "moderation_device": "gpu"}, "moderation_device"),
        ({"cascade_low": 0.5, "cascade_high": 0.4}, "cascade_high"),
        ({"moderation_timeout_s": 0.0}, "moderation_timeout_s"),
    ],
)
def test_settings_that_do_not_fit_are_named(values, named) -> None:
    with pytest.raises(ConfigError, match=named):
        Settings(**values)


async def test_a_server_is_asked_with_the_key_of_the_file(tmp_path) -> None:
    key = tmp_path / "key"
    key.write_text("from-the-file\n")
    async with running() as fake, AsyncExitStack() as stack:
        fake.script = [completion("Safety: Unsafe\nCategories: Violent")]
        settings = Settings(**GUARD, moderation_endpoint=fake.url, moderation_key_file=key)
        guard = moderators.open_scorer(settings, None, stack)
        assert isinstance(guard, ReplyGuard)
        found = await guard.score("Hm.", direction="input")
        assert found.model == "qwen3guard/Qwen/Qwen3Guard-Gen-0.6B"
        assert fake.asked[0].headers["authorization"] == "Bearer from-the-file"


async def test_gpt_jt_runs_here_and_a_model_that_was_not_pulled_is_named(tmp_path) -> None:
    folder = tiny_judges.make(tmp_path / "gpt-jt", "gptj", window=2048)
    settings = Settings(moderator="gpt-jt", moderation_model=str(folder), moderation_device="cpu", threads=1)
    async with AsyncExitStack() as stack:
        model = moderators.open_scorer(settings, None, stack)
        assert isinstance(model, ModerationModel)
        found = await model.score("Hm.", direction="input")
        assert found.unavailable  # random weights say none of the labels
        assert (found.model, len(found.version)) == ("gpt-jt/gpt-jt", 12)  # no path goes out with replies and metrics
    source = {"moderation_model": "hf:Qwen/Qwen3Guard-Gen-0.6B"}
    missing = Settings(**GUARD | source, models_dir=tmp_path / "none")
    with pytest.raises(ModelError, match="pull"):
        moderators.open_scorer(missing, None)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("/srv/models/private/GPT-JT", "GPT-JT"),
        ("/srv/models/GPT-JT/", "GPT-JT"),
        ("~/models/guard", "guard"),
        ("../guard/.", "guard"),
        ("/", "local"),
        ("hf:Qwen/Qwen3Guard-Gen-0.6B", "hf:Qwen/Qwen3Guard-Gen-0.6B"),
        ("Qwen/Qwen3Guard-Gen-0.6B", "Qwen/Qwen3Guard-Gen-0.6B"),
    ],
)
def test_a_model_is_named_by_the_last_part_of_its_path(given, name) -> None:
    assert called(given) == name


async def test_a_server_is_asked_for_a_path_that_no_reply_shows() -> None:
    async with running() as fake, AsyncExitStack() as stack:
        fake.script = [completion("safe")]
        path = "/srv/private/Llama-Guard-3-1B"
        settings = Settings(moderator="guard", moderation_model=path, moderation_endpoint=fake.url)
        found = await moderators.open_scorer(settings, None, stack).score("Hm.", direction="input")
        assert (fake.asked[0].body["model"], found.model) == (path, "llama-guard/Llama-Guard-3-1B")


def test_a_family_that_no_name_tells_has_to_be_set() -> None:
    with pytest.raises(ConfigError, match="moderation_template"):
        moderators.open_scorer(Settings(moderator="guard", moderation_model="mine", **HERE), None)


async def test_the_cascade_has_the_head_before_the_model(encoder) -> None:
    settings = Settings(moderator="cascade", moderation_model="llama-guard", cascade_low=0.9, cascade_high=1.0, **HERE)
    cascade = moderators.open_scorer(settings, encoder)
    assert isinstance(cascade, CascadeScorer)
    found = await cascade.score("What a lovely day for a walk.", direction="input")
    assert found.model.startswith("head-")
    assert (cascade.counts.checks, cascade.counts.sent_on) == (1, 0)


@pytest.mark.parametrize("family", [*TEMPLATES, "gpt-jt"])
def test_every_policy_has_thresholds_for_every_family(family) -> None:
    def actions(name):
        policy = policy_files.named(name).of(f"{family}/some-model")
        return [policy.decide({"harm": h, "violence": h}, {}, "output").action for h in (0.02, 0.3, 0.45, 0.7)]

    assert actions("standard") == ["allow", "annotate", "annotate", "refuse"]
    strict = actions("strict")
    assert (strict[0], strict[1], strict[2:]) == ("allow", strict[1], ["refuse", "refuse"])
    assert actions("monitor") == ["allow", "annotate", "annotate", "annotate"]
    verdict = policy_files.named("standard").of(f"{family}/x").decide({"harm": 0.9, "violence": 0.9}, {}, "input")
    assert verdict.category in ("violence", "harm")


def test_the_benchmark_of_a_check_runs_anywhere_at_a_tiny_size() -> None:
    command = [sys.executable, "benchmarks/gpt_jt.py", "--tiny"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    assert figures["passes_per_check"] == 1
    assert 0 < figures["check_ms"] < figures["written_512_tokens_ms"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here")
def test_a_check_with_a_model_of_six_billion_costs_less_than_its_written_label() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/gpt_jt.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    figures = json.loads(done.stdout)["figures"]
    assert figures["check_ms"] < figures["written_4_tokens_ms"]
    assert figures["check_ms"] * 20 < figures["written_512_tokens_ms"]
