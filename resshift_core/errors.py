"""Every error that this package raises on purpose: a sentence with the offending value and the remedy."""


def brief(error: object, letters: int = 200) -> str:
    """An error of somebody else as part of a sentence: one line, printable, not too long; it may quote a hostile file."""
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    plain = "".join(letter if letter.isprintable() else "?" for letter in line.strip()).rstrip(".")
    return plain if len(plain) <= letters else f"{plain[:letters]} ..."


class ResShiftError(Exception):
    """Base of all errors below, so that a host can catch one class and show its text to a person."""


class InputError(ResShiftError, ValueError):
    """An argument or an input picture cannot be used as it is."""


class CheckpointError(ResShiftError):
    """A model file is damaged, foreign, incomplete or unsafe to open."""


class VariantOpen(CheckpointError):
    """Neither the weights, the name nor the metadata of a file say which of several kinds it is; the text lists their words."""


class NotHere(CheckpointError):
    """A model or an autoencoder of the registry is not on this machine; `name` is the registry's."""

    def __init__(self, text: str, name: str):
        super().__init__(text)
        self.name = name


class DownloadError(ResShiftError):
    """A model file could not be fetched, or what arrived is not what was expected."""


class OutOfMemory(ResShiftError, MemoryError):
    """Even the smallest tile does not fit; the text says what was tried."""


class Cancelled(ResShiftError):
    """The caller asked for a stop: `on_step` or a progress callback returned False, or a licence was declined."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without a full stop, or the error's kind if it has no text."""
    text = getattr(error, "strerror", None) or str(error)
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else type(error).__name__
