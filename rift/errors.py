"""Errors that the user can mend. Each has a stable code and one clear sentence; anything else is our fault and a trace.

UserError                what the command line prints as `error[CODE]: sentence` and the page shows as a message
├── DataError            data.archive data.escape data.bomb data.image data.label data.one_class data.too_few
│                        data.conflict data.too_many data.missing data.changed data.burned_in data.consent
├── ModelError           model.unknown model.weights model.offline
├── SettingError         setting.range setting.unknown
└── RunError             run.memory run.diverged run.disk run.stopped run.missing run.quota run.read_only run.damaged
│                        run.cluster
"""

from __future__ import annotations

from typing import ClassVar

LONGEST = 2000  # characters of a sentence


class UserError(Exception):
    """A problem that the user can mend: `code` is stable, `sentence` says what was got, what is allowed and what to do."""

    codes: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, code: str, sentence: str):
        if code not in type(self).codes:
            raise ValueError(f"{code!r} is not a code of {type(self).__name__}: {sorted(type(self).codes)}")
        # a sentence may repeat what somebody sent, and that may be a megabyte
        self.code, self.sentence = code, sentence if len(sentence) <= LONGEST else f"{sentence[: LONGEST - 1]}…"
        super().__init__(code, self.sentence)

    def __str__(self) -> str:
        return self.sentence


class DataError(UserError):
    """The images or labels cannot be used as they are."""

    codes = frozenset(
        [
            "data.archive",
            "data.escape",
            "data.bomb",
            "data.image",
            "data.label",
            "data.one_class",
            "data.too_few",
            "data.conflict",
            "data.too_many",
            "data.missing",
            "data.changed",
            "data.burned_in",
            "data.consent",
        ]
    )


class ModelError(UserError):
    """The asked-for model is unknown, incomplete or out of reach."""

    codes = frozenset(["model.unknown", "model.weights", "model.offline"])


class SettingError(UserError):
    """A name or a value of a setting is not allowed."""

    codes = frozenset(["setting.range", "setting.unknown"])


class RunError(UserError):
    """A run could not go on; what it had finished is kept."""

    codes = frozenset(
        [
            "run.memory",
            "run.diverged",
            "run.disk",
            "run.stopped",
            "run.missing",
            "run.quota",
            "run.read_only",
            "run.damaged",
            "run.cluster",
        ]
    )


def of_code(code: str, sentence: str) -> UserError:
    """Return the error that a stored code stands for, as when a worker's error is told again by another process."""
    kind = next(kind for kind in (DataError, ModelError, SettingError, RunError) if code in kind.codes)
    return kind(code, sentence)
