"""Questions, and a judge that answers them: from the run's journal, from the cache, or from a server."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dgpo_core.errors import RewardUnusable, UserError
from dgpo_judge.answers import TOP, Answer, as_json
from dgpo_judge.client import Client, Failure
from dgpo_judge.failures import token_of
from dgpo_judge.forms import Unscored, usable
from dgpo_judge.pictures import Picture
from dgpo_judge.store import Store

if TYPE_CHECKING:
    from dgpo_judge.options import ServerOptions
    from dgpo_judge.templating import Template

__all__ = ["Judge", "Question"]

log = logging.getLogger(__name__)
T = TypeVar("T")

ABOUT = "judge.json"
"""The file in the journal that tells which judge answered."""


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """What is sent: pictures, then the text.

    read: makes of an answer what is wanted, or raises Unscored, and does the same for an equal answer; max_tokens:
    longest answer; logprobs: whether the probabilities of tokens are asked for; schema: the JSON schema that the answer
    must follow, by name.
    """

    pictures: tuple[Picture, ...]
    text: str
    read: Callable[[Answer], T]
    max_tokens: int = 1
    logprobs: bool = False
    schema: tuple[str, Mapping[str, Any]] | None = None


@dataclass(eq=False)
class Judge:
    """A served model that answers questions with a template. Thread-safe."""

    options: ServerOptions
    template: Template
    name: str
    _journal: Store | None = field(default=None, init=False)
    _proven: bool = field(default=False, init=False)
    _reported: bool = field(default=False, init=False)
    _keeping: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        """Connect to the servers. Raises UserError, see `Client`, and for a cache that cannot be used."""
        options, where = self.options, f"reward {self.name!r}"
        cache = options.cache
        self._cache = None if cache is None else Store(Path(cache), options.cache_mib)
        self.client = Client(
            options.urls,
            token_of(options.token_variable, where),
            concurrency=options.concurrency,
            timeout=options.timeout,
            patience=options.patience,
            retries=options.retries,
            where=where,
        )
        try:
            self.model, self.served = self.client.served(options.model)
        except BaseException:
            self.client.close()
            raise

    def provenance(self) -> dict[str, Any]:
        """Return the served model, what it was loaded from, and the digest of the template."""
        return {"model": self.model, "root": self.served.get("root"), "template": self.template.digest}

    def keep_in(self, directory: Path) -> None:
        """Keep a journal of the answers in a directory of the run, and note there which judge they are from.

        Raises UserError if the journal there is from another model or template.
        """
        self._journal = Store(directory, self.options.journal_mib)
        about = {"reward": self.name, **self.provenance(), "served": self.served}
        path = directory / ABOUT
        try:
            before = as_json(path.read_bytes()) if path.exists() else None
            if before is None:
                _write_whole(path, json.dumps(about, indent=2) + "\n")
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be used: {error}; move it away") from error
        for key in ("model", "root", "template"):
            if isinstance(before, dict) and before.get(key) != about[key]:
                was, now = (str(value)[:12] if key == "template" else value for value in (before.get(key), about[key]))
                raise UserError(
                    f"{path}: this run was judged with {key} {was}, and the reward {self.name!r} now has {now}; a "
                    "resumed run needs the same judge: restore it, or choose another run.name for a new run"
                )

    def ask(self, questions: Sequence[Question[T]]) -> list[T | Unscored]:
        """Return what each question's `read` makes of its answer, or why there is nothing, in their order.

        Equal questions are asked once, and have the answer that is kept: a resumed run finds no other. Raises
        RewardUnusable if the servers refuse all questions before they have answered any.
        """
        digests = [self.digest(question) for question in questions]
        equal: dict[str, list[Question[T]]] = {}
        for digest, question in zip(digests, questions, strict=True):
            equal.setdefault(digest, []).append(question)
        known = {digest: self._known(digest, same) for digest, same in equal.items()}
        found: dict[str, Answer | Failure] = {digest: answer for digest, answer in known.items() if answer is not None}
        open_ = [digest for digest in equal if digest not in found]

        def done(number: int, answer: Answer) -> None:
            found[open_[number]] = self._keep(open_[number], answer, equal[open_[number]])

        asked = self.client.ask([partial(self._body, equal[digest][0]) for digest in open_], done) if open_ else []
        for digest, answer in zip(open_, asked, strict=True):
            found.setdefault(digest, answer)
        self._judge_first(asked)
        self.client.costs.count(failed=sum(isinstance(answer, Failure) for answer in asked))
        return [_read(question, found[digest]) for digest, question in zip(digests, questions, strict=True)]

    def _judge_first(self, asked: Sequence[Answer | Failure]) -> None:
        """Raise RewardUnusable if nothing but refusals has come so far: a wrong key is not a few missing scores."""
        self._proven = self._proven or any(isinstance(answer, Answer) for answer in asked)
        if asked and not self._proven and all(isinstance(answer, Failure) and answer.refused for answer in asked):
            first = asked[0]
            assert isinstance(first, Failure)
            raise RewardUnusable(f"reward {self.name!r}: the judge refuses every question: {first.reason}")

    def digest(self, question: Question[Any]) -> str:
        """Return the SHA-256 of everything that the answer depends on, but the server's address."""
        fields = self._fields(question, [[p.pixels.shape, p.digest] for p in question.pictures])
        text = json.dumps([fields, self.served.get("root"), self.template.digest], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def _fields(self, question: Question[Any], pictures: Sequence[Any]) -> dict[str, Any]:
        content = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
        content.append({"type": "text", "text": question.text})
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": question.max_tokens,
            "temperature": 0,  # servers fill in the model's own settings for what is left out
            "top_p": 1,
            "seed": self.options.seed,
        }
        if question.logprobs:
            fields |= {"logprobs": True, "top_logprobs": TOP}
        if question.schema is not None:
            name, schema = question.schema
            fields["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": name, "strict": True, "schema": schema},
            }
        return fields | self.options.request

    def _body(self, question: Question[Any]) -> bytes:
        fields = self._fields(question, [picture.url for picture in question.pictures])
        return json.dumps(fields, ensure_ascii=True, allow_nan=False).encode("ascii")

    # -- what is kept -------------------------------------------------------------------------------------------

    def _known(self, digest: str, equal: Sequence[Question[T]]) -> Answer | None:
        """Look an answer that all of the equal questions can use up in the journal, then in the cache."""
        if self._journal is not None:
            answer = self._journal.get(digest)
            if answer is not None and _suits(answer, equal):
                self.client.costs.count(from_journal=1)
                return answer
        if self._cache is not None:
            answer = self._cache.get(self._cached(digest))
            if answer is not None and _suits(answer, equal):
                self.client.costs.count(from_cache=1)
                return answer if self._journal is None else self._kept(self._journal, digest, answer, equal)
        return None

    def _keep(self, digest: str, answer: Answer, equal: Sequence[Question[T]]) -> Answer:
        """Write an answer to journal and cache, and return the one that counts."""
        if self._journal is not None:
            answer = self._kept(self._journal, digest, answer, equal)
        if self._cache is not None:
            cached = self._kept(self._cache, self._cached(digest), answer, equal)
            answer = cached if self._journal is None else answer
        return answer

    def _kept(self, store: Store, key: str, answer: Answer, equal: Sequence[Question[T]]) -> Answer:
        """Return the answer that a store has, or write this one if the questions can use it: one that they cannot is
        asked for anew by a resumed run, as if it had failed. A full disk costs the record and not the score."""
        with self._keeping:
            try:
                before = store.get(key)
                if before is not None and _suits(before, equal):
                    return before
                if _suits(answer, equal):
                    store.put(key, answer)
            except (OSError, ValueError) as error:
                if not self._reported:
                    self._reported = True
                    log.warning("reward %s: an answer could not be kept: %s", self.name, error)
        return answer

    def _cached(self, digest: str) -> str:
        """Runs share a cache, and two servers may give different models one name."""
        return hashlib.sha256(json.dumps([digest, sorted(self.options.urls)]).encode()).hexdigest()

    def close(self) -> None:
        """Close the connections."""
        self.client.close()


def _read(question: Question[Any], answer: Answer | Failure) -> Any:
    """Return what a question reads, or the Unscored that it raises."""
    try:
        return question.read(usable(answer))
    except Unscored as error:
        return error.with_traceback(None)


def _suits(answer: Answer, equal: Sequence[Question[Any]]) -> bool:
    """Return whether each of the questions can use an answer."""
    return not any(isinstance(_read(question, answer), Unscored) for question in equal)


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that another process sees all of it or none."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
