import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from chatkit.errors import BrokenModel, ConfigError, ModelError
from chatkit.moderation.head import WEIGHTS, HeadScorer
from chatkit.moderation.network import SCORED, load_network


def read(path):
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["chatkit"])  # noqa: SIM118


@pytest.fixture
def weights(tmp_path):
    return shutil.copy(WEIGHTS, tmp_path / "head.safetensors")


def test_the_shipped_weights_are_small_and_say_what_they_are():
    _, meta = load_network(WEIGHTS)
    assert WEIGHTS.stat().st_size < 3_000_000
    assert meta["categories"] == list(SCORED)
    assert {"encoder", "dim", "seed", "format", "digest"} <= meta.keys()


@pytest.mark.parametrize("kept", [0, 4, 1000, 200_000])
def test_truncated_weights_are_refused(weights, kept):
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(BrokenModel, match="chatkit moderation train"):
        load_network(weights)


@pytest.mark.parametrize("at", [-1, -5000, -100_000])
def test_an_edited_byte_is_noticed(weights, at):
    content = bytearray(weights.read_bytes())
    content[at] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BrokenModel, match="changed"):
        load_network(weights)


def test_foreign_safetensors_are_refused(weights):
    weights.write_bytes(save({"a": np.zeros(3, np.float32)}))
    with pytest.raises(BrokenModel, match="metadata"):
        load_network(weights)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"format": 99}, "format is 99"), ({"categories": ["spam"]}, "spam"), ({"digest": ""}, "changed")],
)
def test_metadata_written_for_other_code_is_refused(weights, change, said):
    tensors, meta = read(weights)
    weights.write_bytes(save(tensors, {"chatkit": json.dumps({**meta, **change})}))
    with pytest.raises(BrokenModel, match=said):
        load_network(weights)


def test_absent_weights_are_an_error_that_names_the_file(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere\.safetensors"):
        load_network(tmp_path / "nowhere.safetensors")


def test_another_encoder_is_refused_naming_both_and_the_command(counting):
    fitted = counting.fingerprint
    counting.fingerprint = "another-encoder"
    with pytest.raises(ConfigError) as caught:
        HeadScorer(counting, None)
    message = str(caught.value)
    assert fitted in message
    assert "another-encoder" in message
    assert "chatkit moderation train" in message


def test_the_head_needs_no_torch_and_imports_nothing_heavy():
    code = (
        "import sys; from chatkit.moderation.network import load_network; from chatkit.moderation.head import WEIGHTS; "
        "load_network(WEIGHTS); sys.exit(bool({'torch', 'openvino', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
