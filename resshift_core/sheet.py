"""The before/after sheet: left the input upsampled bicubically, right the result, both large enough to see the difference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .image_io import Picture, to_image
from .lettering import font, shortened

PANEL = 560  # pixels of one half
ZOOM = 2  # of the details of a picture that does not fit into a panel
DETAILS = 2
OVERVIEW_HEIGHT = 480
MARGIN, GAP = 20, 12
PAPER, INK, FAINT, MARK = (28, 28, 30), (238, 238, 238), (165, 165, 170), (255, 196, 0)
CHECKER = (150, 105)  # greys behind transparent pixels
HEADING, CAPTION = 22, 16  # sizes of letters


@dataclass(frozen=True)
class _Box:
    """A part of the result, in its pixels."""

    left: int
    top: int
    width: int
    height: int


def compare_sheet(picture: Picture, result: Image.Image, label: str) -> Image.Image:
    """RGB picture of the bicubic upsampling and of the result, side by side and labelled.

    A result that fits into a panel is shown whole, enlarged by a whole number. Of a larger one the sheet shows an overview
    and the places with most detail, enlarged.
    """
    before = _Before(picture, result.size)
    whole = _Box(0, 0, *result.size)
    if max(result.size) <= PANEL:
        rows, zoom, overview = [whole], PANEL // max(result.size), None
    else:
        rows, zoom = _detailed_boxes(picture, result.size), ZOOM
        overview = _overview(result, rows)
    panels = [(_enlarged(before.crop(box), zoom), _enlarged(_crop(result, box), zoom)) for box in rows]
    column = max(PANEL // 2, *(left.width for left, _ in panels))
    return _laid_out(overview, panels, column, before.label, label)


class _Before:
    """The input at the result's size; only the parts that are asked for are computed."""

    def __init__(self, picture: Picture, size: tuple[int, int]):
        self.size, self.source = size, to_image(picture.tensor()[0], picture.mode)
        scale = size[0] / picture.size[0]
        self.label = "Input" if size == picture.size else f"Bicubic x{scale:.3g}"

    def crop(self, box: _Box) -> Image.Image:
        across, down = self.source.width / self.size[0], self.source.height / self.size[1]
        part = (box.left * across, box.top * down, (box.left + box.width) * across, (box.top + box.height) * down)
        return _opaque(self.source.resize((box.width, box.height), Image.Resampling.BICUBIC, box=part))


def _crop(image: Image.Image, box: _Box) -> Image.Image:
    return _opaque(image.crop((box.left, box.top, box.left + box.width, box.top + box.height)))


def _opaque(image: Image.Image) -> Image.Image:
    """RGB; transparent pixels show a chequerboard."""
    if image.mode not in ("LA", "RGBA"):
        return image.convert("RGB")
    rows, columns = np.ogrid[: image.height, : image.width]
    board = Image.fromarray(np.where((rows // 8 + columns // 8) % 2, *CHECKER).astype(np.uint8))
    return Image.alpha_composite(board.convert("RGBA"), image.convert("RGBA")).convert("RGB")


def _enlarged(image: Image.Image, zoom: int) -> Image.Image:
    """Pixels as squares: the sheet must not smooth what it is there to show."""
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


# ---------------------------------------------------------------------------------------------------- places to show


def _detailed_boxes(picture: Picture, size: tuple[int, int]) -> list[_Box]:
    """The parts of the result over the input's strongest edges, apart from each other, from top to bottom."""
    wanted = [min(PANEL // ZOOM, side) for side in size]
    scale = [out / side for out, side in zip(size, picture.size)]
    window = [min(side, max(1, round(part / factor))) for part, factor, side in zip(wanted, scale, picture.size)]
    energy = _window_sums(_edges(picture), *window)
    boxes = []
    while len(boxes) < DETAILS and energy.max() >= 0:
        top, left = np.unravel_index(int(energy.argmax()), energy.shape)
        place = [min(round(start * factor), out - part) for start, factor, out, part in zip((left, top), scale, size, wanted)]
        boxes.append(_Box(*place, *wanted))
        across, down = (max(part, side // 4) for part, side in zip(window, picture.size))  # elsewhere next time
        energy[max(0, top - down + 1) : top + down, max(0, left - across + 1) : left + across] = -1
    return sorted(boxes, key=lambda box: (box.top, box.left))


def _edges(picture: Picture) -> np.ndarray:
    """Strength of the gradient of the visible colours, (H, W)."""
    pixels = picture.pixels.astype(np.float32)
    if pixels.shape[2] == 4:
        pixels = pixels[..., :3] * pixels[..., 3:] / 255
    grey = pixels.mean(2)
    return np.abs(np.diff(grey, axis=0, append=grey[-1:])) + np.abs(np.diff(grey, axis=1, append=grey[:, -1:]))


def _window_sums(values: np.ndarray, width: int, height: int) -> np.ndarray:
    """Sums over all windows of that size, (H - height + 1, W - width + 1), by a table of running sums."""
    table = np.pad(values.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = table[height:, width:] - table[:-height, width:] - table[height:, :-width] + table[:-height, :-width]
    return np.maximum(sums, 0)


# ---------------------------------------------------------------------------------------------------- drawing


def _overview(result: Image.Image, boxes: list[_Box]) -> Image.Image:
    """The whole result, small, with the boxes marked."""
    factor = min((2 * PANEL + GAP) / result.width, OVERVIEW_HEIGHT / result.height, 1)
    size = max(1, round(result.width * factor)), max(1, round(result.height * factor))
    image = _opaque(result.resize(size, Image.Resampling.LANCZOS, reducing_gap=3))
    draw, letters = ImageDraw.Draw(image), font(CAPTION)
    for number, box in enumerate(boxes, 1):
        left, top = box.left * factor, box.top * factor
        right, bottom = max(left, left + box.width * factor - 1), max(top, top + box.height * factor - 1)
        corners = (left, top, right, bottom)
        draw.rectangle([corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1], outline=(0, 0, 0), width=4)
        draw.rectangle(corners, outline=MARK, width=2)
        draw.text((left + 6, top + 3), str(number), fill=MARK, font=letters, stroke_width=2, stroke_fill=(0, 0, 0))
    return image


def _laid_out(overview, panels, column: int, before: str, after: str) -> Image.Image:
    """All parts on one page."""
    line = HEADING + 14
    width = 2 * MARGIN + 2 * column + GAP
    top_height = 0 if overview is None else overview.height + GAP
    rows_height = sum(left.height + (CAPTION + 10 if overview else 0) + GAP for left, _ in panels)
    page = Image.new("RGB", (width, 2 * MARGIN + top_height + line + rows_height - GAP), PAPER)
    draw, y = ImageDraw.Draw(page), MARGIN
    if overview is not None:
        page.paste(overview, ((width - overview.width) // 2, y))
        y += top_height
    for text, x in ((before, MARGIN), (after, MARGIN + column + GAP)):
        draw.text((x, y), shortened(text, font(HEADING), column), fill=INK, font=font(HEADING))
    y += line
    for number, pair in enumerate(panels, 1):
        if overview is not None:
            draw.text((MARGIN, y), f"Place {number}, enlarged {ZOOM} times", fill=FAINT, font=font(CAPTION))
            y += CAPTION + 10
        for panel, x in zip(pair, (MARGIN, MARGIN + column + GAP)):
            page.paste(panel, (x, y))
        y += pair[0].height + GAP
    return page
