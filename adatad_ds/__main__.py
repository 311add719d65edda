"""`python -m adatad_ds COMMAND`, from a clone that is not installed, too; installed, `adatad-ds COMMAND`."""

from __future__ import annotations

import sys
from typing import NoReturn

from adatad_ds.cli.commands import main
from adatad_ds.system.console import keep_output
from adatad_ds.system.utf8 import use_utf8


def run() -> NoReturn:
    """The entry point of `adatad-ds`: this process is the command."""
    use_utf8()
    keep_output()
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    use_utf8()
    run()
