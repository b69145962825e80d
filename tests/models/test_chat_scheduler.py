"""The scheduler over a real tiny model, step by step: room, memory, kept prefixes, windows, loading and its errors."""

import json
import random
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from chatkit.errors import ConfigError, ModelError
from chatkit.models.chat_cache import SlotCache
from chatkit.models.chat_graphs import Graphs
from chatkit.models.chat_load import LoadOptions, chosen_dtype, load_model, placement
from chatkit.models.chat_prefixes import Prefixes
from chatkit.models.chat_runner import Runner
from chatkit.models.chat_sampling import Sampler, choose
from chatkit.models.chat_scheduler import Limits, Scheduler
from tests.models import tiny

FLOAT32 = LoadOptions(dtype="float32")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Threads that wait for each other on busy cores take many times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("models") / "neox")


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, FLOAT32)


class Bench:
    """A scheduler driven by hand; `answers` and `failures` by request."""

    def __init__(self, model, **limits) -> None:
        self.runner = Runner(model)
        self.runner.check()
        self.answers, self.failures, self.read = {}, {}, 0
        given = {"cache_tokens": 4096, "window": 512, "max_running": 8, "piece": 64} | limits
        self.scheduler = Scheduler(self.runner, tiny.tokenizer().backend_tokenizer, Limits(**given), self._take)

    def _take(self, event) -> None:
        if "failed" in event:
            self.failures[event["failed"]] = event["message"]
        else:
            self.read += event["read"]
            for number, tokens, reason in event["step"]:
                made, _ = self.answers.get(number, ([], None))
                self.answers[number] = (made + tokens, reason)

    def add(self, number: int, ids, tokens: int = 8, **config) -> None:
        settings = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "seed": None}
        settings |= {"max_new_tokens": tokens, "stop_words": [], "eos_ids": [0], **config}
        self.scheduler.apply({"add": number, "ids": list(ids), "config": settings})

    def run(self, steps: int = 10_000) -> None:
        for _ in range(steps):
            if self.scheduler.idle:
                return
            self.scheduler.work()


def prompt(number: int, length: int) -> list[int]:
    return random.Random(number).choices(range(10, 300), k=length)


def alone(model, ids, tokens: int = 8, **settings) -> list[int]:
    made = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, max_new_tokens=tokens,
        pad_token_id=0, **settings,
    )  # fmt: skip
    return made[0, len(ids) :].tolist()


def test_rows_of_all_lengths_come_and_go_and_say_what_each_says_alone(model) -> None:
    bench = Bench(model)
    wanted = {}
    for number in range(20):
        ids, tokens = prompt(number, 3 + 17 * (number % 9)), 3 + number % 7
        wanted[number] = alone(model, ids, tokens)
        bench.add(number, ids, tokens)
        bench.run(number % 3)
    bench.run()
    assert {number: made for number, (made, _) in bench.answers.items()} == wanted
    assert {reason for _, reason in bench.answers.values()} == {"length"}
    assert bench.runner.lengths == []


def test_cancelled_rows_leave_and_the_rest_are_not_disturbed(model) -> None:
    bench = Bench(model)
    ids = {number: prompt(number, 20 + number * 13) for number in range(8)}
    for number in ids:
        bench.add(number, ids[number], 30)
    for number in (0, 3, 6, 7):
        bench.run(3)
        bench.scheduler.apply({"cancel": number})
    bench.scheduler.apply({"cancel": 99})
    bench.run()
    for number in (1, 2, 4, 5):
        assert bench.answers[number] == (alone(model, ids[number], 30), "length")
    assert all(bench.answers.get(number, ([], None))[1] is None for number in (0, 3, 6, 7))


def test_what_does_not_fit_the_cache_waits_and_what_never_will_is_refused(model) -> None:
    bench = Bench(model, cache_tokens=256)
    for number in range(6):
        bench.add(number, prompt(number, 100), 20)
    bench.add(9, prompt(9, 250), 60)
    assert "raise CHATKIT_KV_CACHE_GB" in bench.failures[9]
    most = 0
    while not bench.scheduler.idle:
        bench.scheduler.work()
        cache = bench.runner.cache
        kept = bench.scheduler._prefixes.tokens
        most = max(most, len(bench.runner.lengths))
        assert cache.slots * cache.capacity + kept <= 256
    assert most == 2
    assert {number: answer[0] for number, answer in bench.answers.items()} == {
        number: alone(model, prompt(number, 100), 20) for number in range(6)
    }


def test_kept_rows_spare_the_common_start_and_change_no_token(model) -> None:
    bench = Bench(model)
    first = prompt(1, 120)
    bench.add(0, first)
    bench.run()
    assert bench.read == 120
    follow_up = first + bench.answers[0][0] + prompt(2, 30)
    bench.add(1, follow_up)
    bench.run()
    assert bench.read == 120 + 31  # what is new, and the last token made, which nobody has read yet
    assert bench.answers[1][0] == alone(model, follow_up)
    bench.add(2, first)  # the same again reads its last token for the logits
    bench.run()
    assert bench.read == 120 + 31 + 1
    assert bench.answers[2][0] == bench.answers[0][0]
    off = Bench(model, keep_prefixes=False)
    for number in range(2):
        off.add(number, first)
        off.run()
    assert off.read == 240


def test_the_rows_used_longest_ago_go_first() -> None:
    kept = Prefixes()
    rows = {name: prompt(name, 20) for name in range(3)}
    keys = {name: kept.add(rows[name])[0] for name in rows}
    assert kept.tokens == 60
    assert kept.find([*rows[0], 5]) == (keys[0], 20)
    assert kept.find(rows[0]) == (keys[0], 19)
    assert kept.find(prompt(9, 20)) == (None, 0)
    assert kept.oldest() == keys[1]
    assert kept.oldest(spare=keys[1]) == keys[2]
    assert kept.add(rows[1][:15]) == (None, [])
    longer, needless = kept.add([*rows[1], 7, 8])
    assert needless == [keys[1]]
    assert longer in kept
    assert keys[1] not in kept
    assert kept.tokens == 62


def test_memory_that_runs_out_fails_that_request_and_the_engine_goes_on(model, monkeypatch) -> None:
    bench = Bench(model, piece=512)
    bench.add(0, prompt(0, 30), 12)
    bench.run(3)
    forward = Runner._forward

    def short(self, ids, positions, mask):
        if ids.shape[1] > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, ids, positions, mask)

    monkeypatch.setattr(Runner, "_forward", short)
    bench.add(1, prompt(1, 200))
    bench.add(2, prompt(2, 50))
    bench.run()
    assert "out of memory for this prompt" in bench.failures[1]
    assert bench.answers[0] == (alone(model, prompt(0, 30), 12), "length")
    assert bench.answers[2] == (alone(model, prompt(2, 50)), "length")


def test_memory_that_runs_out_in_a_step_ends_the_newest_row(model, monkeypatch) -> None:
    bench = Bench(model)
    for number in range(3):
        bench.add(number, prompt(number, 20), 12)
    bench.run(5)
    decode = Runner.decode

    def short(self, ids, places, visible):
        if len(ids) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return decode(self, ids, places, visible)

    monkeypatch.setattr(Runner, "decode", short)
    bench.run()
    assert list(bench.failures) == [2]
    assert bench.answers[0] == (alone(model, prompt(0, 20), 12), "length")
    assert bench.answers[1] == (alone(model, prompt(1, 20), 12), "length")


def test_without_memory_to_keep_a_row_it_is_let_go(model, monkeypatch) -> None:
    bench = Bench(model)
    bench.add(0, prompt(0, 40))
    bench.run()

    def short(self, slot, length, key):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SlotCache, "keep", short)
    for number in (1, 2):
        bench.add(number, prompt(number, 40))
    bench.run()
    assert {number: answer[0] for number, answer in bench.answers.items()} == {
        number: alone(model, prompt(number, 40)) for number in range(3)
    }
    assert bench.scheduler._prefixes.tokens == 0


def test_memory_that_runs_out_while_the_cache_grows_leaves_the_running_rows_alone(model, monkeypatch) -> None:
    bench = Bench(model)
    bench.add(0, prompt(0, 40), 30)
    bench.run(3)
    made = torch.Tensor.new_zeros
    left = [1]

    def short(self, size, **settings):
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made(self, size, **settings)

    monkeypatch.setattr(torch.Tensor, "new_zeros", short)
    bench.add(1, prompt(1, 150))
    bench.run(2)
    monkeypatch.undo()
    assert "out of memory" in bench.failures[1]
    bench.add(2, prompt(2, 150))
    bench.run()
    assert bench.answers[0] == (alone(model, prompt(0, 40), 30), "length")
    assert bench.answers[2] == (alone(model, prompt(2, 150)), "length")


def test_after_a_cache_could_not_grow_no_recorded_step_runs_again(monkeypatch) -> None:
    """A recording holds the addresses of the cache's tensors, of which some are then gone; cards alone record."""
    cache = SlotCache()
    cache.resize(1, 8, 0)
    cache.aim(0, 0, 1)
    for layer in range(2):
        cache.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4), layer)
    recorded = []

    def record(self, ids, places, visible):
        recorded.append(visible)
        return SimpleNamespace(ids=ids.clone(), places=places.clone(), graph=SimpleNamespace(replay=int), logits=None)

    monkeypatch.setattr(Graphs, "_record", record)
    graphs = Graphs(lambda ids, places, visible: ids, cache)
    step = torch.zeros((1, 1), dtype=torch.long), torch.zeros(1, dtype=torch.long), 1
    graphs.step(*step)
    graphs.step(*step)
    assert recorded == [8]
    made, left = torch.Tensor.new_zeros, iter([True])

    def short(self, size, **settings):
        if next(left, False):
            return made(self, size, **settings)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor, "new_zeros", short)
    with pytest.raises(torch.OutOfMemoryError):
        cache.resize(2, 64, 1)
    graphs.step(*step)
    assert recorded == [8, 8]


def test_a_sliding_window_is_kept_to(tmp_path) -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=384, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=16, initializer_range=0.2,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    bench = Bench(model, piece=24)
    for number in range(3):
        bench.add(number, prompt(number, 30 + 20 * number), 10)
    bench.run()
    for number in range(3):
        assert bench.answers[number][0] == alone(model, prompt(number, 30 + 20 * number), 10)


def test_drawn_tokens_have_the_probabilities_asked_for() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -30.0])
    config = {"temperature": 0.8, "top_p": 0.9, "top_k": 3, "repetition_penalty": 1.0, "seed": 3}
    sampler = Sampler.of(config, [])
    drawn = [choose(logits[None].clone(), [sampler])[0] for _ in range(4000)]
    wanted = (logits / 0.8)[:3].softmax(0)
    wanted = wanted[:2] / wanted[:2].sum()  # two tokens already reach 0.9
    shares = [drawn.count(token) / len(drawn) for token in range(5)]
    assert shares[2:] == [0, 0, 0]
    assert abs(shares[0] - wanted[0].item()) < 0.03


def test_a_row_without_numbers_gives_no_token_and_the_others_theirs() -> None:
    config = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "seed": 1}
    logits = torch.randn(4, 9)
    logits[1, 4] = torch.nan
    logits[2] = -torch.inf
    samplers = [Sampler.of(config | {"temperature": t}, []) for t in (0.0, 0.0, 1.0, 1.0)]
    tokens = choose(logits.clone(), samplers)
    assert tokens[0] == logits[0].argmax()
    assert tokens[1:3] == [None, None]
    assert tokens[3] in range(9)


@pytest.mark.parametrize(("quantize", "most"), [("8bit", 0.05), ("4bit", 0.35)])
def test_quantised_weights_take_less_memory_and_give_nearly_the_same_logits(folder, model, quantize, most) -> None:
    small = load_model(folder, LoadOptions(dtype="float32", quantize=quantize))
    assert small.get_memory_footprint() < 0.75 * model.get_memory_footprint()
    ids = torch.tensor([prompt(1, 30)])
    with torch.no_grad():
        exact, near = model(ids).logits, small(ids).logits
    assert 0 < (exact - near).pow(2).mean().sqrt() / exact.std() < most
    bench = Bench(small)
    bench.add(0, prompt(0, 40))
    bench.run()
    assert bench.answers[0][1] == "length"


def test_weights_that_fit_no_memory_are_read_from_disk_and_say_the_same(folder, model, tmp_path) -> None:
    options = LoadOptions(dtype="float32", cpu_memory=0.001, offload_dir=str(tmp_path / "offload"))
    offloaded = load_model(folder, options)
    assert "disk" in offloaded.hf_device_map.values()
    bench = Bench(offloaded)
    for number in range(2):
        bench.add(number, prompt(number, 40))
    bench.run()
    assert {number: made for number, (made, _) in bench.answers.items()} == {
        number: alone(model, prompt(number, 40)) for number in range(2)
    }


def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="names GPU 97"):
        placement(LoadOptions(gpu_memory={97: 20.0}))


def test_the_dtype_of_a_cpu_is_float32_unless_told() -> None:
    assert chosen_dtype("bfloat16") is torch.bfloat16
    if not torch.cuda.is_available():
        assert chosen_dtype("auto") is torch.float32


def refused(folder) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(folder, FLOAT32)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_that_is_not_a_known_causal_one_is_refused(tmp_path) -> None:
    folder = tiny.make(tmp_path / "neox")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "wonder"}))
    assert "wonder" in refused(folder)
    code = {"model_type": "wonder", "auto_map": {"AutoConfig": "x.C", "AutoModelForCausalLM": "x.M"}}
    (folder / "x.py").write_text("raise SystemExit('this must never run')")
    (folder / "config.json").write_text(json.dumps(config | code))
    assert "trust_remote_code" in refused(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "clip_text_model"}))
    assert "no causal language model" in refused(folder)


def test_an_architecture_with_another_state_is_refused(model, monkeypatch) -> None:
    monkeypatch.setattr(model.config, "layer_types", ["full_attention", "linear_attention"], raising=False)
    with pytest.raises(ModelError, match="linear_attention"):
        Runner(model)


def test_an_architecture_that_the_batches_would_change_is_refused(folder) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rotate = model.gpt_neox.rotary_emb.forward
    model.gpt_neox.rotary_emb.forward = lambda x, position_ids: rotate(x, position_ids * 0 + 5 * position_ids.min())
    with pytest.raises(ModelError, match="gives other logits"):
        Runner(model).check()
