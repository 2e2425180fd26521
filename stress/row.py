"""One line of the stress programme's table."""

from dataclasses import asdict, dataclass, field


@dataclass
class Row:
    """What was tried and how it ended; `lost` says of each bad end, in a sentence, what happened and how to see it.

    Every try ends in one of three ways: refused in a sentence, right, or lost.
    """

    programme: str
    tried: str
    refused: int = 0
    right: int = 0
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0  # the longest try
    megabytes: float = 0.0  # the most memory that a process of the programme's held; 0: not measured
    note: str = ""  # why it was not tried here, or what else a reader should know

    @property
    def times(self) -> int:
        return self.refused + self.right + len(self.lost)

    def add(self, end: str, seconds: float = 0.0, megabytes: float = 0.0) -> None:
        """`end`: "refused", "right", or else a sentence that says what was lost."""
        if end in ("refused", "right"):
            setattr(self, end, getattr(self, end) + 1)
        else:
            self.lost.append(end)
        self.seconds, self.megabytes = max(self.seconds, seconds), max(self.megabytes, megabytes)

    def include(self, other: "Row") -> None:
        self.refused, self.right = self.refused + other.refused, self.right + other.right
        self.lost = self.lost + other.lost
        self.seconds, self.megabytes = max(self.seconds, other.seconds), max(self.megabytes, other.megabytes)

    def described(self) -> dict:
        return asdict(self) | {"times": self.times}
