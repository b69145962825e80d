"""The weight of the dense leg is chosen from an index's own passages: nothing for a language the encoder lacks."""

import asyncio

import numpy as np
import pytest

from chatkit.retrieval.build import build_index
from chatkit.retrieval.fusion import DENSE_WEIGHT
from chatkit.retrieval.index import VectorIndex
from chatkit.retrieval.tuning import choose_fusion, pairs_of

PLACES = [
    "灯塔",
    "码头",
    "渔市",
    "船厂",
    "仓库",
    "海关",
    "车站",
    "学校",
    "医院",
    "剧院",
    "公园",
    "磨坊",
    "酒馆",
    "教堂",
]
PEOPLE = ["老王", "小李", "张伯", "陈姐", "赵叔", "周妹", "吴兄", "郑婆"]
FACTS = [
    "{place}建于一八{number}年,由{person}的祖父出资。每逢节日,{place}门前都挂满红灯笼。{person}说那里的石阶有{number}级。",
    "{person}在{place}工作了{number}年,早上五点就开门。到了冬天,{place}里要烧{number}斤木炭。邻居们常来{place}取暖。",
    "去年{place}被大水淹了,损失约{number}万元。{person}带着众人修好了{place}的屋顶。如今{place}比从前更结实。",
]


def chinese():
    """Forty-two passages of three sentences each, about places of a town."""
    return [
        fact.format(place=place, person=PEOPLE[(7 * number + turn) % len(PEOPLE)], number=11 + 3 * number + turn)
        for number, place in enumerate(PLACES)
        for turn, fact in enumerate(FACTS)
    ]


def test_sentences_are_drawn_from_passages_with_enough_left_the_same_each_time():
    texts = [
        "One sentence is here. Another sentence follows it. A third one ends.",
        "Only a single sentence here",
        "a. b.",
    ]
    pairs = pairs_of(texts)
    assert len(pairs) == 1
    sentence, rest = pairs[0]
    assert sentence in texts[0]
    assert sentence not in rest
    assert sorted((sentence + " " + rest).split()) == sorted(texts[0].split())
    assert pairs_of(texts * 100) == pairs_of(texts * 100)
    assert len(pairs_of(texts * 200)) == 128
    assert next(sentence for sentence, _ in pairs_of(chinese())).endswith("。")


def test_a_few_passages_say_nothing_and_the_usual_weight_stands(encoder):
    chosen = choose_fusion(["One sentence is here. Another sentence follows it."] * 5, encoder)
    assert (chosen.dense_weight, chosen.tuned_on) == (DENSE_WEIGHT, "default, 5 sentences are too few to tell")


class Blind:
    """Vectors that say nothing, or which sentence belongs where."""

    query_prefix = passage_prefix = ""

    def __init__(self, noise):
        self._noise, self._chance = noise, np.random.default_rng(1)
        self._own = self._chance.normal(size=(128, 64))

    def encode_now(self, texts):
        return (self._own[: len(texts)] + self._noise * self._chance.normal(size=(len(texts), 64))).astype(np.float32)


def test_the_weight_falls_as_the_encoder_sees_less():
    texts = [f"Topic{n} is about item{n} here. The item{n} of topic{n} was seen. Others were not." for n in range(80)]
    weights = [choose_fusion(texts, Blind(noise)).dense_weight for noise in (0.1, 1.2, 50.0)]
    assert weights[0] == DENSE_WEIGHT
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] == 0.0


def test_vectors_that_are_all_alike_have_that_noted():
    class Alike(Blind):
        def encode_now(self, texts):
            return np.hstack([super().encode_now(texts), np.full((len(texts), 1), 16.0, np.float32)])

    texts = [f"Topic{n} is about item{n} here. The item{n} of topic{n} was seen." for n in range(80)]
    assert choose_fusion(texts, Alike(0.1)).background > 0.6
    assert choose_fusion(texts, Blind(0.1)).background < 0.1


@pytest.fixture(scope="module")
def town(encoder, tmp_path_factory):
    """An index of Chinese passages, made with an encoder of English."""
    folder = tmp_path_factory.mktemp("town")
    for number, text in enumerate(chinese()):
        (folder / f"{number:02}.txt").write_text(text, encoding="utf-8")
    build_index([str(folder)], folder / "indexes", name="zh", encoder=encoder)
    return folder / "indexes" / "zh"


def test_an_index_in_a_language_the_encoder_lacks_is_searched_by_words_alone(encoder, town, monkeypatch):
    index = VectorIndex.open(town, encoder)
    assert index.manifest.fusion.dense_weight == 0.0
    assert "sentences and the rest of their passages, reciprocal rank" in index.manifest.fusion.tuned_on

    async def refuse(texts):
        raise AssertionError(f"{texts} were encoded for nothing")

    monkeypatch.setattr(encoder, "encode", refuse)
    (hit,) = asyncio.run(index.search("修好剧院的屋顶", k=1))
    assert "剧院的屋顶" in hit.text
    assert hit.score >= 0.9
    index.close()


WHOLE_QUESTIONS = {
    "去年大水以后是谁修好了剧院的屋顶？": "剧院的屋顶",
    "谁在磨坊工作，早上几点开门？": "在磨坊工作",
    "教堂门前每逢节日都挂着什么？": "教堂门前",
    "冬天的酒馆里要烧多少木炭？": "酒馆里要烧",
}
OFF_TOPIC = ["你好", "量子力学", "哪家医院的医生今天晚上值班？", "人工智能如何改变生活？", "Who won the cup?"]


def test_whole_questions_in_such_a_language_are_above_the_usual_cut_off_and_others_below(encoder, town):
    index = VectorIndex.open(town, encoder)
    for question, said in WHOLE_QUESTIONS.items():
        (hit,) = asyncio.run(index.search(question, k=1))
        assert said in hit.text
    for question in OFF_TOPIC:
        assert asyncio.run(index.search(question, k=3)) == ()
    index.close()
    index = VectorIndex.open(town, encoder, min_score=0.05)
    assert asyncio.run(index.search("哪家医院的医生今天晚上值班？", k=1))
    index.close()


@pytest.mark.parametrize("texts", [[], [""], ["。" * 50]])
def test_no_sentences_at_all_are_no_error(encoder, texts):
    assert choose_fusion(texts, encoder).dense_weight == DENSE_WEIGHT
