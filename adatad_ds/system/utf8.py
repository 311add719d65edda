"""UTF-8 for file names, arguments and output under any locale of the shell, batch system or container."""

from __future__ import annotations

import locale
import os
import sys


def use_utf8() -> None:
    """Restart this program in Python's UTF-8 mode, in the same process, if the locale has another encoding.

    By now Python has decoded the arguments and opened standard output, so setting the mode is too late; see PEP 540.
    """
    asked = sys.flags.utf8_mode or "utf8" in sys._xoptions  # -X utf8=0: the user's choice
    if not asked and locale.getencoding().lower() not in ("utf-8", "utf8"):
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
