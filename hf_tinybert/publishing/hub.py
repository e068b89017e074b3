"""Pushing to the Hub: errors of one line, repeated requests that huggingface_hub sends once, no token in any file."""

import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitInfo, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

logger = logging.get_logger(__name__)

T = TypeVar("T")
WAITS = (1, 4, 16)  # seconds before the second, third and fourth attempt


def push_folder(
    folder: str | Path,
    repo_id: str,
    commit_message: str = "Upload student",
    token: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
) -> CommitInfo:
    """Push a saved student to the Hub as `DistillationTrainer.push_to_hub` does: without checkpoints, with retries.

    Args:
        folder: The folder that `save_model` wrote.
        repo_id: `name` or `organisation/name`; created if it does not exist.
        commit_message: The first line of the commit's message.
        token: A write token; default the one of `hf auth login`.
        revision: The branch to push to; default main.
        private: Whether a repository that is created is private.

    Returns:
        The commit.

    Raises:
        ValueError: If the folder holds no model.
        RuntimeError: If the push fails, with the reason in one line.
    """
    if not Path(folder, "config.json").is_file():
        raise ValueError(f"{folder} holds no model (no config.json): give the folder that save_model wrote.")
    api = HfApi(library_name="hf_tinybert")
    with one_line(f"Could not push {folder} to '{repo_id}'"):
        create = partial(api.create_repo, repo_id, token=token, private=private, exist_ok=True)
        repo_id = retried(create).repo_id
        return retried(partial(upload, folder, repo_id, commit_message, token, revision))


def push_command(folder: str | Path, repo_id: str, private: bool | None = None, revision: str | None = None) -> str:
    """The command that does what `push_folder` does with these arguments."""
    flags = ["--private"] if private else []
    flags += ["--revision", revision] if revision else []
    return shlex.join(["hf-tinybert", "push", str(folder), "--to", repo_id, *flags])


def upload(folder: str | Path, repo_id: str, message: str, token: str | None, revision: str | None) -> CommitInfo:
    """Upload a folder without its checkpoints, as Trainer's own push does.

    Args:
        folder: The folder.
        repo_id: `name` or `organisation/name` of a repository that exists.
        message: The first line of the commit's message.
        token: A write token; None takes the one of `hf auth login`.
        revision: The branch; None takes main.

    Returns:
        The commit.
    """
    return HfApi().upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        commit_message=message,
        token=token,
        revision=revision,
        ignore_patterns=["_*", f"{PREFIX_CHECKPOINT_DIR}-*"],
    )


class PushWatcher:
    """Reports the failures of pushes in the background, which Trainer starts and does not check."""

    def __init__(self):
        self._jobs: list[Future] = []

    def watch(self, jobs: Sequence[Future]) -> None:
        """Add jobs that were started."""
        self._jobs += jobs

    def warn_of_failures(self, repo_id: str) -> None:
        """Log a warning for each job that has failed since the last call.

        Args:
            repo_id: The repository of the pushes, for the message.
        """
        done = [job for job in self._jobs if job.done()]
        self._jobs = [job for job in self._jobs if job not in done]
        for error in filter(None, (job.exception() for job in done)):
            logger.warning(f"A push to '{repo_id}' failed: {_reason(error)} Training goes on.")


class Token(str):
    """A token that pickles to None, because Trainer pickles its arguments into `training_args.bin` and pushes it."""

    def __reduce_ex__(self, protocol):
        return type(None), ()

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self


def retried(attempt: Callable[[], T], again: Callable[[], T] | None = None) -> T:
    """Call `attempt`, and again after each of `WAITS` if a request failed that huggingface_hub sends only once.

    A commit of which only the answer was lost is not made twice: uploading the same files again is no commit.

    Args:
        attempt: What sends the requests.
        again: What is called after the first failure in its place; default `attempt`.

    Returns:
        What the call that succeeds returns.

    Raises:
        Exception: What the last call raised, or the first one if it is not worth a repetition.
    """
    for wait in WAITS:
        try:
            return attempt()
        except (HTTPError, json.JSONDecodeError) as error:  # the latter: an error page where card checks expect JSON
            if not _worth_another(error):
                raise
            logger.warning(f"{_reason(error)} Trying again in {wait} s.")
            time.sleep(wait)
            attempt = again or attempt
    return attempt()


def _worth_another(error: Exception) -> bool:
    """Whether the request may succeed the next time, and huggingface_hub has not repeated it already."""
    if isinstance(error, json.JSONDecodeError):
        return True
    answer = error.response if isinstance(error, HfHubHTTPError) else None
    if answer is not None and answer.status_code not in (408, 429) and answer.status_code < 500:
        return False
    path = (answer or error).request.url.path
    if "/commit/" in path:  # the client's uploads through Xet try the commit again, the others do not
        return constants.HF_HUB_DISABLE_XET or find_spec("hf_xet") is None
    return path.endswith(("/repos/create", "/validate-yaml"))


@contextmanager
def one_line(what: str, hint: str = "") -> Iterator[None]:
    """Turn an exception raised inside into a RuntimeError of one line.

    Args:
        what: What failed; the message begins with it.
        hint: What the message ends with.

    Raises:
        RuntimeError: With `what`, the reason and `hint`.
    """
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"{what}: {_reason(error)}{hint}") from error


def _reason(error: BaseException) -> str:
    """What went wrong with the Hub and what to do, in one line."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to push."
    if isinstance(error, json.JSONDecodeError):
        return f"{constants.ENDPOINT} does not answer as a Hub does: check HF_ENDPOINT, or try later."
    if not isinstance(error, HTTPError):
        return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".") + "."
    if not isinstance(error, HfHubHTTPError):
        return f"no connection to {constants.ENDPOINT} ({error}): check the network and HF_ENDPOINT."
    status = error.response.status_code
    advice = {
        401: "the token is missing or wrong: run `hf auth login`, or set hub_token or HF_TOKEN",
        403: "the token may not write there: use one that may, or another hub_model_id",
    }
    message = (error.server_message or "try again later").splitlines()[0].rstrip(".")
    return f"the Hub answered {status}, {advice.get(status, message)}."
