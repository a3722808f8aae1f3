"""The text of txt2img's and img2img's pictures: how one of our entries enlarged them on the way, as in hires fix."""

from __future__ import annotations

from modules import scripts

from .session import SESSION
from .settings import PREFIX


class ScriptResShiftWords(getattr(scripts, "Script", object)):
    """Has no controls. The host asks it when it begins with pictures, and for each of them."""

    def title(self) -> str:
        return "ResShift words"

    def show(self, is_img2img):
        return getattr(scripts, "AlwaysVisible", True)

    def process(self, p, *_) -> None:
        SESSION.enlarged = None
        # scripts like X/Y/Z plot hand the words of one picture on to the next
        for word in [word for word in p.extra_generation_params or () if word.startswith(PREFIX)]:
            del p.extra_generation_params[word]

    def postprocess_image(self, p, pp, *_) -> None:
        if SESSION.enlarged is not None:
            p.extra_generation_params.update(SESSION.enlarged.as_text())
