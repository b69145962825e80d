"""A clock that a test moves: `clock.now` is what it says, epoch seconds."""


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
