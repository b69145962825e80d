"""Judging models in their own process: they say what the model says in this one, and come back after their death."""

import asyncio
import math
import os
import signal
from dataclasses import asdict

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chatkit.errors import BrokenModel, ConfigError, EngineFailed, ModelError, TooLarge
from chatkit.judging import Question
from chatkit.models import judge_process
from chatkit.models.judge_process import JudgeOptions, ProcessJudge
from chatkit.models.judge_worker import Judge
from chatkit.moderation import gpt_jt
from chatkit.moderation.gpt_jt import ModerationModel
from chatkit.moderation.guard import LikelihoodGuard
from chatkit.moderation.guard_templates import TEMPLATES
from tests.moderation import tiny_judges

pytestmark = pytest.mark.anyio
OPTIONS = JudgeOptions(device="cpu", threads=1)
# As Llama Guard's 1B writes its prompt: contents are parts, and a policy stands before them.
PARTS = (
    "{{ 'Categories: S1 to S14. ' }}{% for message in messages %}{{ message['role'] ~ ': ' }}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ '\n' }}{% endfor %}{{ 'Verdict:' }}"
)
GUIDED = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ ' * ' ~ guideline ~ ' Violated?' }}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("judges")
    made = {"gptj": tiny_judges.make(root / "gptj", "gptj", window=2048)}
    made["parts"] = tiny_judges.make(root / "parts", "llama", template=PARTS)
    made["guided"] = tiny_judges.make(root / "guided", "gemma2", template=GUIDED)
    return made


async def opened(folder, name, samples):
    judge = ProcessJudge(folder, OPTIONS, name=name, samples=samples)
    await asyncio.to_thread(judge.start)
    return judge


async def test_gpt_jt_in_its_process_scores_as_here_in_two_passes_at_the_most(folders) -> None:
    judge = await opened(folders["gptj"], "tiny", gpt_jt.SAMPLES)
    try:
        await judge.likelihoods([Question(prompt="a")], [" x"])
        begun = judge.forwards
        model = ModerationModel(judge, least_chance=0)
        found = await model.score("I will.", direction="input", history=("How?", "So."))
        assert judge.forwards == begun + 2
        said = [model.score("I will.", direction="input", history=("How?", "So.")) for _ in "ab"]
        again = await asyncio.gather(*said)
        assert judge.forwards == begun + 4
        assert again == [found, found]
        assert len(judge.version) == 12
        plain = AutoModelForCausalLM.from_pretrained(folders["gptj"], dtype=torch.float32)
        ids = AutoTokenizer.from_pretrained(folders["gptj"])
        each = [tiny_judges.chances(plain, ids("Hm:").input_ids, ids(text).input_ids) for text in (" x", " casual")]
        rows = await judge.likelihoods([Question(prompt="Hm:")], [" x", " casual"])
        assert rows[0] == pytest.approx(each, abs=1e-4)
        with pytest.raises(TooLarge, match="at most 2048"):
            await judge.likelihoods([Question(prompt="a " * 3000)], [" x"])
        assert not (await model.score("word " * 1000, direction="output")).unavailable
    finally:
        await judge.close()
    with pytest.raises(EngineFailed, match="shut down"):
        await judge.likelihoods([Question(prompt="a")], [" x"])


async def test_a_guard_is_asked_in_its_folders_template_and_comes_back(folders, monkeypatch) -> None:
    template = TEMPLATES["llama-guard"]
    judge = await opened(folders["parts"], "llama-guard", template.samples())
    try:
        guard = LikelihoodGuard(judge, template, least_chance=0)
        found = await guard.score("Do it.", direction="output", history=("Should I?",))
        ids = AutoTokenizer.from_pretrained(folders["parts"])
        written = "Categories: S1 to S14. user: Should I?\nassistant: Do it.\nVerdict:"
        plain = AutoModelForCausalLM.from_pretrained(folders["parts"], dtype=torch.float32)
        spelled = {v.word: v.spellings for v in template.verdicts}
        chance = {
            word: sum(math.exp(tiny_judges.chances(plain, ids(written).input_ids, ids(t).input_ids)) for t in texts)
            for word, texts in spelled.items()
        }
        assert found.scores["harm"] == pytest.approx(chance["unsafe"] / sum(chance.values()), rel=1e-3)
        os.kill(judge._process.pid, signal.SIGKILL)
        with pytest.raises(EngineFailed):
            await guard.score("Do it.", direction="input")
        with pytest.raises(EngineFailed, match="started again in a while"):
            await guard.score("Do it.", direction="input")
        monkeypatch.setattr(judge_process, "_AGAIN_AFTER_S", 0.0)
        assert (await guard.score("Do it.", direction="output", history=("Should I?",))) == found
        judge._answer_s = 1.0
        os.kill(judge._process.pid, signal.SIGSTOP)
        with pytest.raises(EngineFailed, match="not answered for 1 s"):
            await guard.score("Do it.", direction="input")
    finally:
        await judge.close()


async def test_a_model_that_cannot_be_used_is_named_at_the_start(tmp_path) -> None:
    judge = ProcessJudge(tmp_path, OPTIONS, name="nothing")
    with pytest.raises(ModelError, match="cannot be loaded"):
        await asyncio.to_thread(judge.start)
    await judge.close()


def here(folder, template, **options):
    """Return what the process holds, in this one."""
    pairs = [[judge_process._as_json(one) for one in pair] for pair in TEMPLATES[template].samples()]
    return Judge(asdict(JudgeOptions(**{"device": "cpu", **options})) | {"model": str(folder), "samples": pairs})


async def test_a_template_is_given_its_policy_and_has_to_write_what_is_judged(folders, tmp_path) -> None:
    judge = here(folders["guided"], "shieldgemma")
    question = {"messages": [["user", "Hi"]], "arguments": {"guideline": "no greetings"}}
    assert judge._written(question) == "Hi * no greetings Violated?"
    event = judge.answer({"ask": 4, "questions": [question] * 3, "answers": ["Yes", "No"]})
    assert (event["answer"], len(event["likelihoods"])) == (4, 3)
    deaf = tiny_judges.make(tmp_path / "deaf", "llama", template="{{ 'Is it safe?' }}")
    with pytest.raises(BrokenModel, match="leaves out what is to be judged"):
        here(deaf, "llama-guard")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
async def test_a_device_that_is_not_there_is_named(folders) -> None:
    with pytest.raises(ConfigError, match="cuda:9"):
        here(folders["gptj"], "llama-guard", device="cuda:9")
