"""The files and directories of a run's directory, and whether they are such."""

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
DIRECTORIES = ("checkpoints", "images", "scores")
FILES = (CONFIG, RECORD, *LOGS, OUTCOME)


def check_kinds(directory: Path) -> None:
    """Raise UserError for a part of the directory that is of another kind than a run's: a directory in place of a
    log, a FIFO, a link that leads nowhere. It would be found only when the run has something to lose."""
    for name, wanted in {**dict.fromkeys(DIRECTORIES, "directory"), **dict.fromkeys(FILES, "file")}.items():
        path = directory / name
        try:
            mode = os.stat(path).st_mode
        except NotADirectoryError:
            return  # not even the run's directory is one, which is told of elsewhere
        except FileNotFoundError:
            if path.is_symlink():
                raise UserError(f"{path}: is a broken symbolic link; remove it") from None
            continue
        except OSError as error:
            raise UserError(f"{path}: cannot be used: {why(error)}") from error
        if not (stat.S_ISDIR if wanted == "directory" else stat.S_ISREG)(mode):
            raise UserError(f"{path}: is {kind_of(mode)}, and a run has a {wanted} there; move it away")
