"""WebUI loads this file by its path; everything lies in the package resshift_webui."""

from resshift_webui import hooks
from resshift_webui.accordion import ScriptPostprocessingResShift  # noqa: F401  WebUI looks for the classes here
from resshift_webui.words import ScriptResShiftWords  # noqa: F401

hooks.register()
