"""What the accordion asks of the current job, and what the last run was. WebUI runs one job at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

from . import host
from .settings import Settings


@dataclass(frozen=True)
class Made:
    """How a picture was made, for the words in its file: zeros are replaced by what they meant."""

    model: str
    settings: Settings

    def as_text(self) -> dict[str, object]:
        return {"ResShift model": self.model, **self.settings.as_text()}


@dataclass
class Session:
    """The state between the host's calls; one for the process."""

    job: object = None  # the Extras job that our postprocessing script has seen begin
    asked: Settings | None = None  # by its accordion; None = it is closed
    fingerprint: tuple | None = None  # of the settings of the last Extras run
    stopped: bool = False  # the last run was interrupted
    last: Made | None = None
    sheet: object = None  # the before/after sheet of the last run, a PIL picture or None
    history: dict[str, Made] = field(default_factory=dict)  # by entry's name, for pictures that the host took from its cache

    def begin(self, asked: Settings | None) -> None:
        """An Extras job begins."""
        self.job, self.asked = host.job(), asked

    def in_extras(self) -> bool:
        """Whether the host is at work on the job that `begin` saw, not in hires fix or elsewhere."""
        return self.job is not None and self.job == host.job()

    def settings(self) -> Settings:
        """Those of the accordion during its job, else the host's options.

        Raises:
            InputError: an option is out of range; a sentence.
        """
        if self.in_extras() and self.asked is not None:
            return self.asked
        return settings_of_options()

    def made(self, name: str, made: Made) -> None:
        self.last = self.history[name] = made


def settings_of_options() -> Settings:
    """The defaults of the Settings page, which API users set through /sdapi/v1/options.

    Raises:
        InputError: one is out of range; a sentence.
    """
    return Settings.of({word: host.option(word, None) for word in Settings.__dataclass_fields__})


SESSION = Session()
