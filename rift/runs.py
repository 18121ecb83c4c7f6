"""Lab and Run: directories on disk through which every process talks to every other one; state is derived, never stored."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from rift import disk, noted
from rift.config import Experiment
from rift.disk import write_bytes, write_json
from rift.errors import RunError
from rift.job import Job, is_held

__all__ = ["ENDED", "SCHEMA", "Job", "Lab", "Run", "is_held", "write_bytes", "write_json"]

SCHEMA = 1
VISITORS = "visitors"  # the folder of a public server that holds a lab for each visitor
ENDED = ("done", "stopped", "failed", "lost")


class Run(Job):
    """One run's directory.

    `experiment.json` (once), `events.jsonl` (append-only, one writer), `stop`, `lock` (held while alive), `log.txt`, `*.npz`,
    `places.jsonl`, `weights.safetensors`, `predictions.csv`, `checkpoint/`, `measures/`, `result.json`.
    """

    @property
    def experiment(self) -> Experiment:
        """Return what the run was asked to do; `run.missing` when there is no such run."""
        try:
            return Experiment.model_validate_json((self.path / "experiment.json").read_bytes())
        except FileNotFoundError:
            raise RunError("run.missing", f"There is no run {self.id!r} in {self.path.parent}.") from None
        except ValueError:
            raise RunError(
                "run.damaged", f"The settings of run {self.id} are damaged; delete its comparison and start it again."
            ) from None

    @property
    def state(self) -> str:
        """Return queued, preparing, training, evaluating, done, stopped, failed or lost, derived from the files."""
        if (intact := self._intact) is not None:
            return "done" if intact else "failed"
        match self.last_event():
            case {"event": "end", "state": state}:
                return str(state)
            case {"event": kind} as event if kind != "queued" and self.is_alive:
                return str(event.get("stage", "preparing" if kind in ("start", "resume") else "training"))
            case {"event": kind} if kind != "queued":
                return "stopped" if self.stop_requested else "lost"
        return "stopped" if self.stop_requested else "queued"

    @property
    def damage(self) -> str:
        """Say that the finished run's numbers are not those that it wrote, empty where they are or there are none."""
        if self._intact is not False:
            return ""
        return f"The result of run {self.id} is damaged: it is not what was written. Go on trains it again to the same numbers."

    @property
    def _intact(self) -> bool | None:
        """Whether the finished run's numbers are those that it wrote, None while there are none."""
        path = f"{self._path}/result.json"  # a list of ten thousand runs asks for each: text is joined faster than paths are
        stamp = disk.stamp(path)
        return None if stamp is None else _intact(path, stamp)

    def result(self) -> dict[str, Any] | None:
        """Return the finished run's numbers, None while there are none; `run.damaged` where they are not what was written."""
        try:
            return disk.unsealed((self.path / "result.json").read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            raise RunError("run.damaged", self.damage) from None

    def end(self) -> dict[str, Any]:
        """Return how the run ended, empty while it has not."""
        if damage := self.damage:
            return {"event": "end", "state": "failed", "code": "run.damaged", "message": damage}
        event = self.last_event()
        return event if event.get("event") == "end" else {}

    def whole(self, name: str) -> Path:
        """Return the path of one of a finished run's files; `run.damaged` where it is not what the run wrote, to the bit."""
        path = self.path / name
        written = ((self.result() or {}).get("files") or {}).get(name)
        if written and path.exists() and disk.known_sha256(path) != written:
            what = f"{name} of run {self.id} is damaged: its SHA-256 is not what was noted. The run's numbers are intact"
            raise RunError("run.damaged", f"{what}; delete its comparison and start it again to have the rest.")
        return path

    def measures(self) -> dict[str, dict[str, Any]]:
        """Return what each diagnostic measured on this run, by name; a damaged document is left out, as if never measured."""
        files = sorted((self.path / "measures").glob("*.json"))
        found = ((file.stem, self.measured(file.stem)) for file in files)
        return {name: document["runs"][self.id] for name, document in found if document}

    def measured(self, diagnostic: str) -> dict[str, Any] | None:
        """Return the document of one diagnostic, with the settings that it was measured with; None where it was not."""
        try:
            return disk.unsealed((self.path / "measures" / f"{diagnostic}.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None


@lru_cache(maxsize=1 << 17)  # more than a lab has: one less, and a list of all would look at every note each time it is made
def _intact(path: str, stamp: tuple[int, ...]) -> bool:
    """Whether a run's sealed result is what was written; looked at anew when its stamp changes, by the next process too."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(path)))
    return bool(noted.of(Path(root)).find("whole", path[len(root) + 1 :], stamp, lambda: _is_whole(path)))


def _is_whole(path: str) -> bool:
    try:
        disk.unsealed(Path(path).read_bytes())
    except (OSError, ValueError):
        return False
    return True


class Lab:
    """A folder of image sets (`data/`), caches (`cache/`), runs (`runs/`) and comparisons of runs (`comparisons/`)."""

    def __init__(self, root: Path | str):
        self.root = Path(root)
        self.data, self.cache, self._runs = self.root / "data", self.root / "cache", self.root / "runs"
        self.comparisons, self.photos = self.root / "comparisons", self.root / "photos"
        self.measuring = self.root / "measuring"
        try:
            for folder in (self.data, self.cache, self._runs, self.comparisons):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError("run.disk", f"The lab folder {self.root} cannot be made: {error.strerror or error}.") from error

    def __eq__(self, other: object) -> bool:
        """Two of one folder are the same, so that what is remembered of a lab is found again: a page makes one anew each time."""
        return isinstance(other, Lab) and self.root == other.root

    def __hash__(self) -> int:
        return hash(self.root)

    @property
    def visiting(self) -> bool:
        """Whether it belongs to a visitor of a public server."""
        return self.root.parent.name == VISITORS

    @property
    def host(self) -> Path:
        """The folder whose one worker serves this lab: its own, or that of the server where its owner is a visitor."""
        return self.root.parent.parent if self.visiting else self.root

    def neighbors(self) -> list[Lab]:
        """Return all labs that the same worker serves, this one among them."""
        if not self.visiting and not (self.root / VISITORS).exists():
            return [self]
        return [Lab(self.host), *(Lab(folder) for folder in sorted((self.host / VISITORS).glob("[0-9a-f]*")))]

    @property
    def read_only(self) -> bool:
        """Whether it was opened from a bundle: it is looked at, and nothing is trained or measured in it."""
        return (self.root / "opened.json").exists()

    def submit(self, experiment: Experiment) -> Run:
        """Create the run's directory, which queues it; an equal experiment gives the same run, never a second one."""
        path = self._runs / experiment.id
        if not path.exists():
            draft = Path(tempfile.mkdtemp(dir=self._runs, prefix=".draft-"))
            write_json(draft / "experiment.json", experiment.model_dump(mode="json"))
            try:
                draft.rename(path)
            except OSError:  # another process was faster: the directory is the idempotency key
                shutil.rmtree(draft, ignore_errors=True)
        return Run(path)

    def adopt(self, other: Lab, data: str) -> None:
        """Take an image set of another lab into this one, whole or not at all; nothing happens where it already is."""
        if (self.data / data).exists():
            return
        draft = Path(tempfile.mkdtemp(dir=self.data, prefix=".draft-"))
        try:
            shutil.copytree(other.data / data, draft, dirs_exist_ok=True)
            draft.rename(self.data / data)
        except OSError:
            if not (self.data / data).exists():  # else another page was faster
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def requeue(self, run: Run) -> None:
        """Let a stopped, failed or lost run be taken up again from its last checkpoint."""
        try:
            (run.path / "stop").unlink(missing_ok=True)
            damaged = bool(run.damage)
            if damaged:
                (run.path / "result.json").replace(run.path / "result.damaged")
        except OSError as error:
            raise disk.refused(error, "to the run's folder") from error
        if damaged or run.state in ("stopped", "failed", "lost"):
            run.append("queued")

    @property
    def key(self) -> bytes:
        """The lab's own secret, made on first use: what is signed with it was written here."""
        path = self.root / "secret"
        if not path.exists():
            draft = self.root / f".secret.{secrets.token_hex(4)}"
            draft.write_text(secrets.token_urlsafe(32))
            draft.chmod(0o600)
            try:
                os.link(draft, path)  # fails where another process was faster, and then that one's counts
            except FileExistsError:
                pass
            except OSError:  # a disk that knows no links
                os.replace(draft, path)
            finally:
                draft.unlink(missing_ok=True)
        return path.read_bytes()

    def run(self, name: str | Path) -> Run:
        """Return a run by id or directory; `run.missing` when there is none."""
        for path in (self._runs / str(name), Path(name)):
            if os.path.exists(f"{path}/experiment.json"):
                return Run(path)
        raise RunError("run.missing", f"There is no run {str(name)!r}; `python -m rift list runs --lab {self.root}` shows them.")

    def runs(self) -> list[Run]:
        """Return all runs, oldest first."""
        found = []
        with os.scandir(self._runs) as entries:
            for one in entries:
                if not one.name.startswith(".") and (stamp := disk.stamp(f"{one.path}/experiment.json")):
                    found.append((stamp[2], one.name))
        return [Run(f"{self._runs}/{name}") for _, name in sorted(found)]
