"""Exchangeable parts of a model by name: built in, registered by a script, or named by an installed package.

A package names a part as an entry point. A name from an untrusted file finds nothing else, and nothing is imported
before a part is used.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

from pydantic import AfterValidator

from emg_gpt2.base.command_line import closest
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.text import in_short, printable


class Registry:
    """Classes of one kind. built_in: name → module:Class."""

    def __init__(self, kind: str, built_in: dict[str, str]):
        self.kind, self.group, self.built_in = kind, f"emg_gpt2.{kind}s", built_in
        self.registered: dict[str, type] = {}

    def register(self, name: str, part: type) -> None:
        """Let a name stand for a class in this process. Raises EMGError for a name that is built in."""
        if name in self.built_in:
            raise EMGError(f"{name} is a built-in {self.kind}; choose another name")
        self.registered[name] = part

    def check(self, name: str) -> str:
        """Return the name; raises ValueError that lists the known ones where there is no such part."""
        if name in self.built_in or name in self.registered or name in (installed := self._installed()):
            return name
        known = [*self.built_in, *self.registered, *installed]
        raise ValueError(
            f"there is no {self.kind} {printable(name)}{closest(name, known)}; here are {', '.join(known)}, and a "
            f"package can add others (entry points {self.group})"
        )

    def load(self, name: str) -> type:
        """The class of a name that `check` knows. Raises EMGError where a package's class cannot be imported."""
        if name in self.registered:
            return self.registered[name]
        built_in = self.built_in.get(name)
        part = EntryPoint(name, built_in, self.group) if built_in else self._installed()[name]
        try:
            return part.load()
        except Exception as error:  # of any kind: it is the package's own code that runs
            raise EMGError(f"the {self.kind} {name} ({part.value}) cannot be imported: {in_short(error)}") from error

    def _installed(self) -> dict[str, EntryPoint]:
        return {part.name: part for part in entry_points(group=self.group)}


TOKENISERS = Registry(
    "tokeniser",
    {
        "covariance": "emg_gpt2.model.tokens:CovarianceToken",
        "power": "emg_gpt2.model.tokens:PowerTokens",
        "bands": "emg_gpt2.model.tokens:BandTokens",
        "raw": "emg_gpt2.model.tokens:RawTokens",
    },
)
HEADS = Registry("head", {"linear": "emg_gpt2.model.layers:LinearHead"})

TokeniserName = Annotated[str, AfterValidator(TOKENISERS.check)]
HeadName = Annotated[str, AfterValidator(HEADS.check)]
