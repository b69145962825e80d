import random

from chatkit.retrieval.building.near import NearDuplicates

WORDS = [
    f"{a}{b}{c}" for a in ("ba", "ko", "mi", "tu", "le") for b in ("ran", "sol", "pim") for c in ("a", "et", "is", "o")
]


def passage(chance, words=90):
    return " ".join(chance.choices(WORDS, k=words))


def with_other_words(text, chance, count):
    words = text.split()
    for place in chance.sample(range(len(words)), count):
        words[place] = "otherwise"
    return " ".join(words)


def test_the_same_words_and_one_word_changed_are_near_and_new_text_is_not():
    chance = random.Random(1)
    texts = [passage(chance) for _ in range(200)]
    seen = NearDuplicates()
    assert seen.add(texts) == [False] * 200
    assert seen.add(texts) == [True] * 200
    assert seen.add([text.upper().replace(" ", ",\n") for text in texts]) == [True] * 200
    assert sum(seen.add([with_other_words(text, chance, 1) for text in texts])) > 150
    assert sum(seen.add([with_other_words(text, chance, 8) for text in texts])) == 0
    assert sum(seen.add([passage(chance) for _ in range(200)])) == 0


def test_within_one_call_the_first_stays():
    text = passage(random.Random(2))
    assert NearDuplicates().add([text, text + " once", text]) == [False, True, True]


def test_how_texts_are_divided_into_calls_changes_nothing():
    chance = random.Random(3)
    texts = [passage(chance) for _ in range(120)]
    texts += [with_other_words(chance.choice(texts), chance, number % 5) for number in range(120)]
    chance.shuffle(texts)
    found = []
    for size in (1, 7, 240):
        seen = NearDuplicates()
        found.append([near for start in range(0, 240, size) for near in seen.add(texts[start : start + size])])
    assert found[0] == found[1] == found[2]
    assert 30 < sum(found[0]) < 120


def test_passages_that_differ_in_a_number_are_both_kept():
    text = passage(random.Random(4))
    assert NearDuplicates().add([f"{text} 30 days", f"{text} 60 days", f"{text} 30 days"]) == [False, False, True]


def test_short_passages_are_left_to_the_comparison_of_all_words():
    assert NearDuplicates().add(["a few words in a row", "a few words in a row"]) == [False, False]


def test_scripts_without_spaces_are_compared_by_character():
    text = "会话写入数据库文件每一轮对话是两个事务备份时请使用备份命令不要手工复制文件否则可能撕裂页面"
    changed = text.replace("备份命令", "备份程序")
    other = "编码器把词向量取平均并归一化为单位长度查询与段落使用同一个编码器否则无法比较分数高者在前"
    assert NearDuplicates().add([text, text + "的", other]) == [False, True, False]
    assert NearDuplicates().add([text, changed]) == [False, False]
