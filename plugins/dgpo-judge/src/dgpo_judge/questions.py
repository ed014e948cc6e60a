"""Questions, and a judge that answers them: from the run's journal, from the cache, or from a server."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_core.errors import RewardUnusable, UserError
from dgpo_judge.answers import TOP, Answer, as_json
from dgpo_judge.client import Client, Failure
from dgpo_judge.failures import token_of
from dgpo_judge.pictures import Picture
from dgpo_judge.store import Store

if TYPE_CHECKING:
    from dgpo_judge.options import ServerOptions
    from dgpo_judge.templating import Template

__all__ = ["Judge", "Question"]

log = logging.getLogger(__name__)

ABOUT = "judge.json"
"""The file in the journal that tells which judge answered."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is sent: pictures, then the text.

    max_tokens: longest answer; logprobs: whether the probabilities of tokens are asked for; schema: the JSON schema
    that the answer must follow, by name.
    """

    pictures: tuple[Picture, ...]
    text: str
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
                path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be used: {error}; move it away") from error
        for key in ("model", "root", "template"):
            if isinstance(before, dict) and before.get(key) != about[key]:
                raise UserError(
                    f"{path}: this run was judged with {key} {before.get(key)}, and the reward {self.name!r} now has "
                    f"{about[key]}; a resumed run needs the same judge: restore it, or start a new run"
                )

    def ask(self, questions: Sequence[Question]) -> list[Answer | Failure]:
        """Return an answer or the reason why there is none for each question, in their order.

        Raises RewardUnusable if the servers refuse all questions before they have answered any.
        """
        digests = [self.digest(question) for question in questions]
        found: list[Answer | Failure | None] = [self._known(digest) for digest in digests]
        open_ = [i for i, known in enumerate(found) if known is None]

        def done(number: int, answer: Answer) -> None:
            self._keep(digests[open_[number]], answer)

        asked = self.client.ask([partial(self._body, questions[i]) for i in open_], done) if open_ else []
        for i, answer in zip(open_, asked, strict=True):
            found[i] = answer
        self._judge_first(asked)
        self.client.costs.count(failed=sum(isinstance(answer, Failure) for answer in asked))
        return [answer for answer in found if answer is not None]

    def _judge_first(self, asked: Sequence[Answer | Failure]) -> None:
        """Raise RewardUnusable if nothing but refusals has come so far: a wrong key is not a few missing scores."""
        self._proven = self._proven or any(isinstance(answer, Answer) for answer in asked)
        if asked and not self._proven and all(isinstance(answer, Failure) and answer.refused for answer in asked):
            first = asked[0]
            assert isinstance(first, Failure)
            raise RewardUnusable(f"reward {self.name!r}: the judge refuses every question: {first.reason}")

    def digest(self, question: Question) -> str:
        """Return the SHA-256 of everything that the answer depends on, but the server's address."""
        fields = self._fields(question, [[p.pixels.shape, p.digest] for p in question.pictures])
        text = json.dumps([fields, self.served.get("root"), self.template.digest], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def _fields(self, question: Question, pictures: Sequence[Any]) -> dict[str, Any]:
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

    def _body(self, question: Question) -> bytes:
        fields = self._fields(question, [picture.url for picture in question.pictures])
        return json.dumps(fields, ensure_ascii=True, allow_nan=False).encode("ascii")

    # -- what is kept -------------------------------------------------------------------------------------------

    def _known(self, digest: str) -> Answer | None:
        """Look an answer up in the journal, then in the cache."""
        if self._journal is not None and (answer := self._journal.get(digest)) is not None:
            self.client.costs.count(from_journal=1)
            return answer
        if self._cache is not None and (answer := self._cache.get(self._cached(digest))) is not None:
            self.client.costs.count(from_cache=1)
            if self._journal is not None:
                self._put(self._journal, digest, answer)
            return answer
        return None

    def _keep(self, digest: str, answer: Answer) -> None:
        if self._journal is not None:
            self._put(self._journal, digest, answer)
        if self._cache is not None and answer.problem is None:
            self._put(self._cache, self._cached(digest), answer)

    def _put(self, store: Store, key: str, answer: Answer) -> None:
        """Write an answer; a full disk costs the record and not the score."""
        try:
            store.put(key, answer)
        except (OSError, ValueError) as error:
            if not self._reported:
                self._reported = True
                log.warning("reward %s: an answer could not be kept: %s", self.name, error)

    def _cached(self, digest: str) -> str:
        """Runs share a cache, and two servers may give different models one name."""
        return hashlib.sha256(json.dumps([digest, sorted(self.options.urls)]).encode()).hexdigest()

    def close(self) -> None:
        """Close the connections."""
        self.client.close()
