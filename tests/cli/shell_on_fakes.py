"""`chatkit chat` on the fakes of chatkit.testing, run as a process of its own by the tests of the shell.

The reply of the model depends on the message, so that a test says what it wants to see by what it types.
"""

import sys
from contextlib import AsyncExitStack

from chatkit import cli, wiring
from chatkit.errors import EngineFailed
from chatkit.planning import ServiceOptions
from chatkit.service import OpenChatKitService
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.testing import KeywordModerator, ListRetriever, ScriptedGeneration, ScriptedModel
from chatkit.types import Passage

PASSAGES = [
    Passage("p1", "chatkit listens on port 8080", title="Serving", section="Ports", source="serving.md", score=0.876),
    Passage("p2", "evil\x1b]0;owned\x07 port", title="\x9bRed\u202e", source="evil.md", score=0.5),
]
# A word of the message → the pieces of the reply.
REPLIES = {
    "slowly": ["One is here. ", *[f"Word{n} follows it. " for n in range(2000)]],
    "evil": ["Look: \x1b[31mred\x1b]0;owned\x07 \x9b2J \u202eback\rover."],
    "fail": ["The first sentence is here. ", EngineFailed("the engine stopped")],
    "withdraw": ["The first sentence is here. ", "Now the canary sings."],
}
PLAIN = ["It listens ", "on port ", "8080."]


class Talkative(ScriptedModel):
    """A scripted model whose reply depends on the last message of the prompt."""

    def generate(self, prompt, sampling, **more):
        self.prompts.append(prompt)
        message = prompt.rsplit("<human>:", 1)[-1].lstrip().split("\n", 1)[0]  # the passages stand below it
        pieces = next((reply for word, reply in REPLIES.items() if word in message), PLAIN)
        if "echo" in message:
            pieces = [f"temperature {sampling.temperature}, ", f"{prompt.count('<human>:')} messages."]
        return ScriptedGeneration(pieces, sampling, 0.05 if "slowly" in message else 0.0, self)


async def build_service(settings):
    stack = AsyncExitStack()
    store = SQLiteStore(settings.database)
    stack.callback(store.close)
    return OpenChatKitService(
        Talkative(),
        KeywordModerator(["canary"]),
        store,
        retriever=ListRetriever(PASSAGES) if settings.index else None,
        options=ServiceOptions(gate=settings.gate),
        resources=stack,
    )


if __name__ == "__main__":
    wiring.build_service = build_service
    cli.main(["chat", *sys.argv[1:]])
