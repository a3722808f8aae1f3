"""What the scripts in web/ say, in English; translated like everything else."""

from __future__ import annotations

PAGE_WORDS = (
    "before",
    "after",
    "as trained",
    "grey: as trained",
    "{size}: 1 tile of {tile}",
    "{size}: {count} tiles of {tile}",
    "{memory} per batch (fp32)",
    "{memory} per tile (fp32)",
)
HELP_WORDS = ("Inputs", "Outputs", "Default", "Notes", "optional")
