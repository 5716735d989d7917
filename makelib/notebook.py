"""What every notebook does first: stand at the repository root and agree on one look."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from makelib import plots
from makelib.runtime import set_threads


def start() -> Path:
    """Change to the repository root (where `data/` and `reports/` are), fix threads, set the figures' style; returns the root."""
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / "notebooks").is_dir()), here)
    os.chdir(root)
    set_threads()
    plots.use_style()
    warnings.filterwarnings("ignore", category=FutureWarning)
    return root
