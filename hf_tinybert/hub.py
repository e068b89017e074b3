"""Pushing to the Hub: failures in one line and before training, retries, a bar to reach, no token in any file."""

import copy
import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import chain, repeat
from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub import CommitInfo, HfApi, ModelCard, constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from .arguments import DistillationArguments
from .lineage import describe_data, hub_ids, lineage_of
from .losses import DistillationLoss
from .model_card import extend_card, final_evaluation
from .projections import detached

logger = logging.get_logger(__name__)

T = TypeVar("T")
WAITS = (1, 4, 16)  # seconds before the second, third and fourth attempt
HTTPError = HfHubHTTPError.__bases__[0]  # of httpx or httpx2, by huggingface_hub's version


def push_folder(
    folder: str | Path,
    repo_id: str,
    commit_message: str = "Upload student",
    token: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
) -> CommitInfo:
    """Push a saved student to the Hub as `DistillationTrainer.push_to_hub` does: without checkpoints, with retries.

    `repo_id` is `name` or `organisation/name`, created where it is missing, `private` if asked. Raises ValueError
    where the folder holds no model, RuntimeError with the reason in one line where the push fails.
    """
    if not Path(folder, "config.json").is_file():
        raise ValueError(f"{folder} holds no model (no config.json): give the folder that save_model wrote.")
    api = HfApi(library_name="hf_tinybert")
    with _one_line(f"Could not push {folder} to '{repo_id}'"):
        create = partial(api.create_repo, repo_id, token=token, private=private, exist_ok=True)
        repo_id = _retried(create).repo_id
        return _retried(partial(_upload, folder, repo_id, commit_message, token, revision))


class HubTrainer(Trainer):
    """`Trainer` whose pushes to the Hub fail early and clearly, or are tried again, and never lose the student.

    - With `push_to_hub` the constructor raises RuntimeError where the Hub cannot be reached or refuses.
    - Pushes while training runs warn where they fail; the one in the end holds all that they would have.
    - `push_to_hub_min_retained`: a student under that share of the best teacher's score is not pushed (`push_to_hub`).
    - No file holds `hub_token`, `training_args.bin` included.
    """

    push_in_progress = None
    teacher_models: Sequence[PreTrainedModel] = ()
    teacher_score: float | None = None
    losses: Sequence[DistillationLoss] = ()
    data_name: str | None = None
    report = None

    def __init__(self, *args, **kwargs):
        self._watched: list[Future] = []
        super().__init__(*args, **kwargs)
        if self.args.hub_token is not None:
            self.args.hub_token = _Token(self.args.hub_token)

    # ---- Pushing ----

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Trainer's, tried again; raises RuntimeError that says what to do, also where `hub_revision` is missing."""
        with _one_line("Cannot push to the Hub"):
            _retried(partial(super().init_hf_repo, token, private))
            if self.args.hub_revision and self.is_world_process_zero():
                token = token or self.args.hub_token
                HfApi().model_info(self.hub_model_id, revision=self.args.hub_revision, token=token)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ):
        """Trainer's, once the student is saved, and tried again where the connection or the Hub breaks.

        Raises ValueError for a student that keeps less than `push_to_hub_min_retained` of the teacher's score, and
        RuntimeError in one line where the push fails; both say where the student is.
        """
        self.save_model(_internal_call=True)
        folder, min_retained = self.args.output_dir, self._min_retained
        if min_retained is not None and (shortfall := self._shortfall(self.evaluate()[self._metric])):
            raise ValueError(f"{shortfall} It is not pushed; it is in {folder}.")
        repo = self.hub_model_id or self.args.hub_model_id or Path(folder).absolute().name
        command = shlex.join(["hf-tinybert", "push", str(folder), "--to", repo])
        hint = f" The student is in {folder}; push it later with: {command}"
        first = partial(super().push_to_hub, commit_message, blocking, token, revision, private, **kwargs)

        def again():  # all is saved by now: only the upload is left
            credentials = token or self.args.hub_token, revision or self.args.hub_revision
            return _upload(folder, self.hub_model_id, commit_message, *credentials)

        attempts = chain([first], repeat(again))
        with _one_line(f"Could not push to '{repo}'", hint):
            return _retried(lambda: next(attempts)())

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._warn_of_failed_pushes()
        if self._min_retained is not None:
            scores = (log[self._metric] for log in reversed(self.state.log_history) if self._metric in log)
            score = next(scores, None)
            shortfall = f"There is no {self._metric} yet." if score is None else self._shortfall(score)
            if shortfall:
                return logger.info(f"{shortfall} This checkpoint is not pushed.")
        before = self._jobs
        super()._push_from_checkpoint(checkpoint_folder)
        self._watched += [job for job in self._jobs if job not in before]

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self._warn_of_failed_pushes()

    @property
    def _jobs(self) -> list[Future]:
        return list(self.push_in_progress.jobs) if self.push_in_progress is not None else []

    def _warn_of_failed_pushes(self) -> None:
        """Trainer never looks at what became of the pushes that it started."""
        done = [job for job in self._watched if job.done()]
        self._watched = [job for job in self._watched if job not in done]
        for error in filter(None, (job.exception() for job in done)):
            logger.warning(f"A push to '{self.hub_model_id}' failed: {_reason(error)} Training goes on.")

    # ---- The bar ----

    @property
    def _min_retained(self) -> float | None:
        return self.args.push_to_hub_min_retained if isinstance(self.args, DistillationArguments) else None

    @property
    def _metric(self) -> str:
        return f"eval_{self.args.metric_for_best_model.removeprefix('eval_')}"

    def _check_bar(self) -> None:
        """Raise ValueError, naming the argument, where the bar lacks what it is measured with."""
        if self._min_retained is None:
            return
        given = {"teacher_model": self.teacher_models or None, "eval_dataset": self.eval_dataset}
        if self._metric != "eval_loss":
            given["compute_metrics"] = self.compute_metrics
        missing = [name for name, value in given.items() if value is None]
        if missing:
            raise ValueError(f"push_to_hub_min_retained compares student and teacher: pass {', '.join(missing)} too.")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("push_to_hub_min_retained does not work with FSDP or DeepSpeed: leave it out.")

    def _measure_teachers(self) -> None:
        """The best teacher's score by `metric_for_best_model` on `eval_dataset`, if there is a bar to reach."""
        if self._min_retained is None:
            return
        scores = [self._measure(teacher) for teacher in self.teacher_models]
        self.teacher_score = max(scores) if self.args.greater_is_better else min(scores)

    def _measure(self, teacher: PreTrainedModel) -> float:
        args = copy.copy(self.args)
        args.push_to_hub, args.report_to = False, []
        with torch.random.fork_rng():  # training goes as it would without the bar
            trainer = Trainer(
                teacher,
                args,
                self.data_collator,
                eval_dataset=self.eval_dataset,
                processing_class=self.processing_class,
                compute_loss_func=self.compute_loss_func,
                compute_metrics=self.compute_metrics,
                preprocess_logits_for_metrics=self.preprocess_logits_for_metrics,
            )
            metrics = trainer.evaluate(metric_key_prefix="teacher")
        trainer.accelerator.unwrap_model(teacher, keep_fp32_wrapper=False)  # or autocast stays around it
        score = metrics.get(self._metric.replace("eval_", "teacher_", 1))
        if score is None or not score > 0:
            raise ValueError(
                f"metric_for_best_model={self.args.metric_for_best_model!r} is {score} for the teacher, "
                f"of which there is no share: choose one that is above 0, of {', '.join(metrics)}."
            )
        return score

    def _shortfall(self, score: float) -> str | None:
        """What the student lacks, None where it reaches the bar; of a loss the share is teacher / student."""
        teacher, bar = self.teacher_score, self._min_retained
        better, worse = (score, teacher) if self.args.greater_is_better else (teacher, score)
        if better >= bar * worse:
            return None
        return (
            f"The student's {self._metric} is {score:.4g} and the teacher's {teacher:.4g}: {better / worse:.1%} "
            f"retained, under push_to_hub_min_retained={bar:g}."
        )

    # ---- The model card ----

    @property
    def _student(self) -> PreTrainedModel:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def create_model_card(self, *args, **kwargs) -> None:
        """Trainer's, extended with lineage and `report` (`extend_card`) where there are losses."""
        student, path = self._student, Path(self.args.output_dir, "README.md")
        lineage = lineage_of(student.config) if self.losses else None
        if lineage and not student.config._name_or_path:  # the licence is then the teacher's
            kwargs.setdefault("finetuned_from", next(iter(hub_ids(lineage)), None))
        super().create_model_card(*args, **kwargs)
        if lineage is None or not self.is_world_process_zero():
            return
        best_step = self.state.best_global_step if self.args.load_best_model_at_end else None
        scores = final_evaluation(self.state, best_step), describe_data(self.eval_dataset, self.data_name)
        with detached(student):
            extend_card(ModelCard.load(path), student, self.report, *scores, self.hub_model_id).save(path)


class _Token(str):
    """A token that pickles to None: Trainer writes its arguments into `training_args.bin`, which it pushes."""

    def __reduce_ex__(self, protocol):
        return type(None), ()

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self


def _upload(folder: str | Path, repo_id: str, message: str, token: str | None, revision: str | None) -> CommitInfo:
    """The commit that Trainer's own push makes."""
    ignored = ["_*", f"{PREFIX_CHECKPOINT_DIR}-*"]
    options = {"token": token, "revision": revision, "ignore_patterns": ignored}
    return HfApi().upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, **options)


def _retried(attempt: Callable[[], T]) -> T:
    """`attempt()`, and again after each of `WAITS` where a request failed that huggingface_hub tries only once.

    A commit of which only the answer was lost is not made twice: uploading the same files again is no commit.
    """
    for wait in WAITS:
        try:
            return attempt()
        except (HTTPError, json.JSONDecodeError) as error:  # the latter: an error page where card checks expect JSON
            if not _worth_another(error):
                raise
            logger.warning(f"{_reason(error)} Trying again in {wait} s.")
            time.sleep(wait)
    return attempt()


def _worth_another(error: Exception) -> bool:
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
def _one_line(what: str, hint: str = "") -> Iterator[None]:
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
    said = (error.server_message or "try again later").splitlines()[0].rstrip(".")
    return f"the Hub answered {status}, {advice.get(status, said)}."
