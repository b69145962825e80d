"""A moderated, grounded chat service you own.

These are the public names; importing them imports nothing heavy. `chatkit.wiring.build_service` assembles a service
from settings, `chatkit.testing` has a fake for every seam.
"""

from chatkit.errors import ChatkitError
from chatkit.planning import ServiceOptions
from chatkit.service import OpenChatKitService
from chatkit.settings import Settings, load_settings
from chatkit.types import (
    ChatRequest,
    Error,
    Event,
    ModerationResult,
    Owner,
    Passage,
    Replace,
    Reply,
    RetrievalOptions,
    Retrieved,
    SamplingParams,
    TextDelta,
    TurnStarted,
)

__version__ = "0.1.0"

__all__ = [
    "ChatRequest",
    "ChatkitError",
    "Error",
    "Event",
    "ModerationResult",
    "OpenChatKitService",
    "Owner",
    "Passage",
    "Replace",
    "Reply",
    "RetrievalOptions",
    "Retrieved",
    "SamplingParams",
    "ServiceOptions",
    "Settings",
    "TextDelta",
    "TurnStarted",
    "load_settings",
]
