"""File names, arguments and output in UTF-8, whatever the locale of the shell, batch system or container."""

from __future__ import annotations

import locale
import os
import sys


def use_utf8() -> None:
    """Start this program over in Python's UTF-8 mode, in this very process, if the locale has another encoding.

    Python has read the arguments and opened standard output by the time it could be told; see PEP 540.
    """
    asked = sys.flags.utf8_mode or "utf8" in sys._xoptions  # -X utf8=0: the user knows better
    if not asked and locale.getencoding().lower() not in ("utf-8", "utf8"):
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
