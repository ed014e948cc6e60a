"""What is corrupted, by name."""

from __future__ import annotations

from tests.fuzz.fuzzer import Subject
from tests.fuzz.prompt_files import PROMPT_FILES
from tests.fuzz.requests import REQUESTS
from tests.fuzz.run_directories import RUN_DIRECTORIES
from tests.fuzz.run_files import RUN_FILES

__all__ = ["SUBJECTS"]

SUBJECTS: dict[str, Subject] = {
    subject.name: subject for subject in (RUN_FILES, PROMPT_FILES, RUN_DIRECTORIES, REQUESTS)
}
