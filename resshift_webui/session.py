"""What the accordion asks of the current job, and what the last run was. WebUI runs one job at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from resshift_core.errors import InputError

from . import host
from .settings import Settings, draw_seed


@dataclass(frozen=True)
class Made:
    """How a picture was made, for the words in its file: zeros are replaced by what they meant."""

    model: str
    settings: Settings

    def as_text(self, after: str = "") -> dict[str, object]:
        """Words for the PNG's text; every name ends with `after`."""
        words = {"ResShift model": self.model, **self.settings.as_text()}
        return {word + after: value for word, value in words.items()}


@dataclass
class Session:
    """The state between the host's calls; one for the process."""

    sees_jobs: bool = False  # `process_firstpass` has been called; A1111 before 1.7 and SD.Next do not know it
    job: object = None  # the Extras job that our postprocessing script has seen begin
    asked: Settings | None = None  # by its accordion; None = it is closed
    fingerprint: tuple | None = None  # of the settings of the last Extras run
    stopped: bool = False  # the last run was interrupted
    was_blended: bool = False  # what Upscale last worked on
    blended: bool = False  # what the entries make is laid over another upscaler's picture, which must be of the same size
    last: Made | None = None  # of the Extras tab
    sheets: list = field(default_factory=list)  # before/after sheets of this job's picture, PIL pictures
    seed: int | None = None  # of this job's picture, where it is drawn
    before: tuple[int, int] | None = None  # (width, height) of the job's picture
    outside: Callable[[], object | None] = field(
        default=lambda: None
    )  # weakly, the last picture that was made outside of Extras
    outside_made: Made | None = None  # how
    outside_seed: tuple[object, int] = (None, 0)  # (job, the seed that is drawn for all of its pictures)
    enlarged: Made | None = None  # how an entry made the last picture since txt2img or img2img began with some
    # (entry's name, size before, size after) -> how, or None: merely resized; for pictures that the host took from its cache
    history: dict[tuple, Made | None] = field(default_factory=dict)

    def begin(self, asked: Settings | None, before: tuple[int, int] | None = None) -> None:
        """An Extras job begins, with a picture of that size."""
        self.job, self.asked, self.before, self.seed, self.sheets = host.job(), asked, before, None, []

    def in_extras(self) -> bool:
        """Whether the host is at work on the job that `begin` saw, not in hires fix or elsewhere."""
        return self.job is not None and self.job == host.job()

    def settings(self) -> Settings:
        """Those of the accordion during its job, else the host's options.

        Raises:
            InputError: an option is out of range; a sentence.
        """
        if not self.in_extras():
            return self._with_the_jobs_seed(settings_of_options())
        settings = self._chosen()
        if settings.is_random:  # once: the second upscaler of a picture has the seed of the first
            self.seed = draw_seed() if self.seed is None else self.seed
            settings = replace(settings, seed=self.seed)
        return settings

    def _with_the_jobs_seed(self, settings: Settings) -> Settings:
        """Outside of Extras: one for all pictures of a batch, whose texts are the same."""
        job = host.job()
        if not settings.is_random or job is None:
            return settings
        if self.outside_seed[0] != job:
            self.outside_seed = job, draw_seed()
        return replace(settings, seed=self.outside_seed[1])

    def asks_for_random(self) -> bool:
        """Whether every picture of the job gets a seed of its own."""
        return self._chosen().is_random

    def _chosen(self) -> Settings:
        """What the accordion asks during its job, else the options."""
        return settings_of_options() if self.asked is None else self.asked

    def remember_outside(self, image, made: Made) -> None:
        """A picture that an entry made; in Extras it does not matter."""
        if not self.in_extras():
            self.outside, self.outside_made, self.enlarged = weakref.ref(image), made, made

    def upscale_begins(self, words: dict, size: tuple[int, int] | None) -> None:
        """The host's script does, with a picture of (width, height); what entries made before, as in hires fix, is not that.

        words: what its controls say.
        """
        self.outside, self.outside_made = lambda: None, None
        if not self.sees_jobs:  # else `begin` was told, before scripts that work earlier changed it
            self.before = size
        second = words.get("upscaler_2_name") not in (None, "", "None") and (words.get("upscaler_2_visibility") or 0) > 0
        cropped = words.get("upscale_mode") == 1 and words.get("upscale_crop")
        self.blended = bool(second and not cropped)
        if self.blended != self.was_blended:  # the host's cache would give pictures of the other size
            host.forget_cached_pictures()
            self.forget()
        self.was_blended = self.blended

    def upscale_ends(self, image) -> None:
        """It leaves this picture, which may be cropped, or blended with another upscaler's; None: it failed."""
        self.blended = False
        if self.outside_made is not None and image is not None:
            self.outside = weakref.ref(image)

    def made_outside(self, image) -> Made | None:
        """How an entry made this very picture, outside of Extras."""
        return self.outside_made if not self.in_extras() and self.outside() is image else None

    def remember(self, name: str, size: tuple[int, int], made: Made | None, sheet=None) -> None:
        """What an entry made of this job's picture; the host may take it from its cache in a later job.

        Not of pictures outside of Extras, where the host lets us know.
        """
        if self.sees_jobs and not self.in_extras():
            return
        if not self.sees_jobs:
            self.sheets, self.stopped = [], False
        self.history[name, self.before, size] = made
        if sheet is not None:
            self.sheets.append(sheet)

    def forget(self) -> None:
        """With the host's cache."""
        self.history.clear()

    def found(self, name: str, size: tuple[int, int]) -> Made | None:
        """How the picture of this job came to be."""
        return self.history.get((name, self.before, size))


def settings_of_options() -> Settings:
    """The defaults of the Settings page, which API users set through /sdapi/v1/options.

    Raises:
        InputError: one is out of range; a sentence.
    """
    try:
        return Settings.of({word: host.option(word, None) for word in Settings.__dataclass_fields__})
    except InputError as error:
        raise InputError(f"Settings > ResShift: {error}") from None


SESSION = Session()
