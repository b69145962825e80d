"""What a token takes in the key-value cache of OpenVINO's CPU plugin, and so how many fit a number of GiB.

OpenVINO GenAI takes the cache's size in whole GiB or in blocks of 32 tokens. Blocks are given, since they are exact.
The memory is set aside at the first prompt and used as it fills, and is never more than that.
"""

from typing import Literal

Precision = Literal["fast", "exact"]

# Tokens a block, of the CPU plugin (cpu_block_size in openvino.genai's kv_cache_manager.hpp).
BLOCK = 32
# Scale and zero point of eight-bit values, two float32: one pair a channel and block of the keys, one a token of the
# values. Bytes.
_SCALES = 8


def block_bytes(*, layers: int, kv_heads: int, head_size: int, precision: Precision) -> int:
    """Return the bytes of one block: eight-bit keys and values for `fast`, float32 for `exact`."""
    if precision == "exact":
        keys = values = BLOCK * head_size * 4
    else:
        keys = (BLOCK + _SCALES) * head_size
        values = BLOCK * (head_size + _SCALES)
    return layers * kv_heads * (keys + values)
