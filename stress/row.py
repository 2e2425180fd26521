"""One line of the stress programme's table."""

from dataclasses import asdict, dataclass, field

from stress.process import Ended


@dataclass
class Row:
    """What was tried, and how often it was refused in a sentence, gave the right result, or lost something.

    lost: a sentence for each bad outcome, which says what happened.
    """

    programme: str
    tried: str
    refused: int = 0
    right: int = 0
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0  # of the longest try
    megabytes: float = 0.0  # the most memory that a process held; 0: not measured
    note: str = ""  # why it was not tried here, or what else a reader should know

    @property
    def times(self) -> int:
        return self.refused + self.right + len(self.lost)

    def add(self, outcome: str, seconds: float = 0.0, megabytes: float = 0.0, case: str = "") -> None:
        """outcome: "refused", "right", or what was lost; case: what stands before that."""
        if outcome in ("refused", "right"):
            setattr(self, outcome, getattr(self, outcome) + 1)
        else:
            self.lost.append(f"{case}: {outcome}" if case else outcome)
        self.seconds, self.megabytes = max(self.seconds, seconds), max(self.megabytes, megabytes)

    def add_call(self, ended: Ended, case: str = "", wrong: str = "") -> None:
        """A call, and what is wrong with its results."""
        self.add(wrong or ended.outcome, ended.seconds, ended.megabytes, case)

    def include(self, other: "Row") -> None:
        """Add the tries of another row."""
        self.refused, self.right = self.refused + other.refused, self.right + other.right
        self.lost = self.lost + other.lost
        self.seconds, self.megabytes = max(self.seconds, other.seconds), max(self.megabytes, other.megabytes)

    def as_json(self) -> dict:
        return asdict(self) | {"times": self.times}
