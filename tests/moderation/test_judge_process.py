"""Judging models in their own process: they say what the model says in this one, and come back after their death."""

import asyncio
import os
import signal

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chatkit.errors import BrokenModel, ConfigError, EngineFailed, ModelError, TooLarge
from chatkit.judging import Question
from chatkit.models import judge_process
from chatkit.models.judge_process import JudgeOptions, ProcessJudge
from chatkit.moderation import gpt_jt
from chatkit.moderation.gpt_jt import ModerationModel
from chatkit.moderation.guard import LikelihoodGuard
from chatkit.moderation.guard_templates import TEMPLATES
from chatkit.types import Message
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


async def opened(folder, name, samples=(), **options):
    judge = ProcessJudge(folder, OPTIONS if not options else JudgeOptions(device="cpu", **options), name=name,
                         samples=samples)  # fmt: skip
    try:
        await asyncio.to_thread(judge.start)
    except BaseException:
        await judge.close()
        raise
    return judge


async def test_gpt_jt_in_its_process_scores_as_here_in_two_passes_at_the_most(folders) -> None:
    judge = await opened(folders["gptj"], "tiny", gpt_jt.SAMPLES)
    try:
        await judge.likelihoods([Question(prompt="a")], [" x"])
        begun = judge.forwards
        model = ModerationModel(judge, least_chance=0)
        found = await model.score("I will.", direction="input", history=("How?", "So."))
        assert judge.forwards == begun + 2
        again = await asyncio.gather(
            *(model.score("I will.", direction="input", history=("How?", "So.")) for _ in "ab")
        )
        assert judge.forwards == begun + 4
        assert again == [found, found]
        assert len(judge.version) == 12
        plain = AutoModelForCausalLM.from_pretrained(folders["gptj"], dtype=torch.float32)
        ids = AutoTokenizer.from_pretrained(folders["gptj"])
        each = [tiny_judges.chances(plain, ids("Hm:").input_ids, ids(text).input_ids) for text in (" x", " casual")]
        assert (await judge.likelihoods([Question(prompt="Hm:")], [" x", " casual"]))[0] == pytest.approx(
            each, abs=1e-4
        )
        with pytest.raises(TooLarge, match="at most 2048"):
            await judge.likelihoods([Question(prompt="a " * 3000)], [" x"])
        assert not (await model.score("word " * 1000, direction="output")).unavailable
    finally:
        await judge.close()
    with pytest.raises(EngineFailed, match="shut down"):
        await judge.likelihoods([Question(prompt="a")], [" x"])


async def test_a_guard_is_asked_in_the_template_of_its_folder_and_comes_back_after_its_death(
    folders, monkeypatch
) -> None:
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
            word: sum(
                torch.tensor(tiny_judges.chances(plain, ids(written).input_ids, ids(text).input_ids))
                .double()
                .exp()
                .item()
                for text in texts
            )
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
    finally:
        await judge.close()


async def test_a_process_that_hangs_is_given_up(folders) -> None:
    judge = await opened(folders["guided"], "guided", TEMPLATES["shieldgemma"].samples(), answer_s=1.0)
    try:
        question = Question((Message("user", "Hi"),), {"guideline": "none"})
        assert len(await judge.likelihoods([question] * 3, ["Yes", "No"])) == 3
        os.kill(judge._process.pid, signal.SIGSTOP)
        with pytest.raises(EngineFailed, match="not answered for 1 s"):
            await judge.likelihoods([question], ["Yes"])
    finally:
        await judge.close()


async def test_a_model_that_cannot_be_used_is_named_at_the_start(folders, tmp_path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        await opened(tmp_path, "nothing")
    if not torch.cuda.is_available():
        judge = ProcessJudge(folders["gptj"], JudgeOptions(device="cuda:9"), name="far")
        with pytest.raises(ConfigError, match="cuda:9"):
            await asyncio.to_thread(judge.start)
        await judge.close()
    deaf = tiny_judges.make(tmp_path / "deaf", "llama", template="{{ 'Is it safe?' }}")
    with pytest.raises(BrokenModel, match="leaves out what is to be judged"):
        await opened(deaf, "deaf", TEMPLATES["llama-guard"].samples())
