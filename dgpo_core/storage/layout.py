"""Names of the files and directories in a run directory, and a check of their kinds."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from dgpo_core.errors import UserError
from dgpo_core.storage.description import CONFIG, RECORD
from dgpo_core.storage.logs import LOGS
from dgpo_core.system.reading import kind_of, why

__all__ = ["OUTCOME", "check_kinds"]

OUTCOME = "outcome.json"
DIRECTORIES = ("checkpoints", "images", "rewards", "scores", "trackers")
FILES = (CONFIG, RECORD, *LOGS, OUTCOME)


def check_kinds(directory: Path) -> None:
    """Raise UserError if an entry of the run directory has the wrong kind, such as a FIFO in place of a log.

    Called early, because such an entry would otherwise fail a run only when it writes results.
    """
    for name, kind in {**dict.fromkeys(DIRECTORIES, "directory"), **dict.fromkeys(FILES, "file")}.items():
        path = directory / name
        try:
            mode = os.stat(path).st_mode
        except NotADirectoryError:
            return  # the run directory itself is not a directory, which is reported elsewhere
        except FileNotFoundError:
            if path.is_symlink():
                raise UserError(f"{path}: is a broken symbolic link; remove it") from None
            continue
        except OSError as error:
            raise UserError(f"{path}: cannot be used: {why(error)}") from error
        if not (stat.S_ISDIR if kind == "directory" else stat.S_ISREG)(mode):
            raise UserError(f"{path}: is {kind_of(mode)}, not the {kind} of a run; move it away")
