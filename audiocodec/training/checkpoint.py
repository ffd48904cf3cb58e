"""Files that a killed run leaves whole."""
import os
from pathlib import Path

import torch


def save(state: dict, path: Path) -> None:
    """Write what a resumed training needs: all of it, or nothing where the file before still is."""
    partial = path.with_suffix(".tmp")
    torch.save(state, partial)
    os.replace(partial, path)
