"""From a folder of pictures to the crops that are trained on and the pairs that are held out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import resshift_core as rs

from .data import Crops, CropSettings, PairedCrops, match_pairs
from .degradation import Degrade, make_degradation
from .distributed import Processes
from .drawings import usable_fonts
from .scan import DataError, Picture, Scan, find_images, scan
from .settings import TrainSettings
from .validation import Pair, given_pairs, hold_out, make_pairs

log = logging.getLogger("resshift.training")

SMALLEST_HELD = 16  # pixels: the least side of a picture that is validated on


@dataclass(frozen=True)
class Data:
    """The crops to train on and the pairs to validate on."""

    crops: Crops
    pairs: list[Pair]
    held: tuple[str, ...]  # what the pairs were made of: digests of the pictures
    fingerprint: str  # of the pictures
    count: int


def degradation_of(settings: TrainSettings, scale: int) -> Degrade | None:
    """What makes low-resolution pictures; None where they are given."""
    if settings.degradation == "paired":
        return None
    return make_degradation(settings.degradation, scale, settings.seed, settings.damaged_share)


def _by_first(processes: Processes, work: Callable[[], Scan | None]) -> Scan | None:
    """What the first process finds, or the DataError that it meets, for all of them."""
    found = None
    if processes.first:
        try:
            found = work()
        except DataError as error:
            found = error
    found = processes.share(found)
    if isinstance(found, DataError):
        raise found
    return found


def scan_data(settings: TrainSettings, processes: Processes) -> Scan:
    """The check of the data, by the first process."""

    def check() -> Scan:
        paths = find_images(settings.data, "train", without=settings.output)
        found = scan(paths, settings.crop, settings.output / "scan.json", quiet=False)
        print(found.report())
        return found

    return _by_first(processes, check)


def scan_validation(settings: TrainSettings, processes: Processes) -> Scan | None:
    """As `scan_data`, of what is to be validated on; None where nothing says so."""

    def check() -> Scan | None:
        listed = find_images(settings.data, "val") if (settings.data / "MANIFEST.csv").is_file() else []
        if settings.validation is not None:
            listed = find_images(settings.validation, without=settings.output)
            if not listed:
                raise DataError(
                    f"There is no picture in {settings.validation} to validate on. Give another --validation, or none."
                )
        if not listed:
            return None
        found = scan(listed, SMALLEST_HELD, settings.output / "scan_validation.json", quiet=False)
        print(f"To validate on, {found.report()}")
        return found

    return _by_first(processes, check)


def _held_out(pictures: list[Picture], validation: Scan | None, data: Path) -> tuple[list[Picture], list[Picture]]:
    """(to train on, to validate on)."""
    if validation is not None:
        held = list(validation.used)
        secret = {picture.digest for picture in held}
        train = [picture for picture in pictures if picture.digest not in secret]
        if len(train) < len(pictures):
            log.warning("%d pictures are among those to validate on, too, and are not trained on.", len(pictures) - len(train))
        if not train:
            raise DataError(f"All pictures of {data} are those to validate on. Give other ones.")
        return train, held
    train, held = hold_out(pictures)
    if not held:
        log.warning("With %d pictures none is held out: validation shows pictures that the model was trained on.", len(train))
    return train, held or train


def _partners(settings: TrainSettings, train: list[Picture], held: list[Picture], scale: int) -> dict[str, Path]:
    """{path of a picture: its low-resolution partner}, of those to train on and to validate on.

    Raises:
        DataError: a picture has none, or not one of its own.
    """
    partners = match_pairs(train, settings.data, settings.pairs, scale)
    if settings.validation_pairs is not None:
        partners.update(match_pairs(held, settings.validation, settings.validation_pairs, scale))
    else:
        roots = [settings.data] + ([settings.validation] if settings.validation is not None else [])
        partners.update(match_pairs(held, roots, settings.pairs, scale))
    taken: dict[Path, str] = {}
    for path, partner in partners.items():
        if taken.setdefault(partner.resolve(), path) != path:
            raise DataError(
                f"{partner} would be the low-resolution picture of {taken[partner.resolve()]} and of {path}. Give the pictures to "
                "validate on a folder of their own with --validation-pairs, or different names."
            )
    return partners


def prepare_data(settings: TrainSettings, model: rs.ResShiftModel, processes: Processes) -> Data:
    """Scan, hold out, pair up.

    Raises:
        DataError: there is nothing to train on, or pairs do not fit.
    """
    found, scale = scan_data(settings, processes), model.scale
    fonts = usable_fonts(settings.fonts) if settings.fonts else []
    if settings.fonts and not fonts:
        raise DataError(
            f"There is no font in {settings.fonts} that can be drawn. Known are files that end in .ttf, .otf and .ttc."
        )
    crop = CropSettings(
        settings.crop, settings.rescale_share, settings.min_rescale, settings.variety, settings.leaves_share,
        settings.frame_share, settings.drawn_share, tuple(fonts), settings.turns, holes=model.config.task == "inpaint",
    )  # fmt: skip
    train, held = _held_out(list(found.used), scan_validation(settings, processes), settings.data)
    if settings.degradation == "paired":
        partners = _partners(settings, train, held, scale)
    held = held[: settings.validation_count]
    if settings.degradation == "paired":
        estimator = model.unet.degradation if model.config.unet.degradation_channels else None
        small = [partners[p.path] for p in train]
        crops = PairedCrops(train, small, scale, crop, settings.seed, settings.cache_mib, estimator)
        pairs = given_pairs(held, [partners[p.path] for p in held], scale, settings.validation_crop, crop.holes)
    else:
        crops = Crops(train, crop, settings.seed, settings.cache_mib)
        degrade = degradation_of(settings, scale)
        pairs = make_pairs(held, degrade, scale, settings.validation_crop, crop.holes)
    return Data(crops, pairs, tuple(picture.digest for picture in held), found.fingerprint, len(train))
