"""Started by test_nodes.py on each rank: run a script from a folder of the rank's own, as on nodes apart.

count_nodes.py FOLDER SCRIPT [ARGUMENT ...]     runs SCRIPT in FOLDER/nodeRANK
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    folder, script, *arguments = sys.argv[1:]
    os.chdir(Path(folder) / f"node{os.environ['RANK']}")
    os.environ["LOCAL_RANK"] = "0"
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
