"""A search over the settings that the documentation marks for it: learning rate, backbone multiplier, weight decay.

Each trial is a training and an evaluation like any other, in a folder of its own, and its scores are in the metric tables. The study is
a SQLite file: a search that was stopped goes on, and the trial it was stopped in goes on from its checkpoint.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from scenemill.pipelines.experiments.evaluation import run_evaluation
from scenemill.pipelines.experiments.specs import read_spec, resolved
from scenemill.pipelines.experiments.training import cache_folder, run_training
from scenemill.pipelines.mirrored import Results, results_at
from scenemill.pipelines.progress import OnProgress
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.places import Place
from scenemill.schemas.settings import walk
from scenemill.trainers.train import Step
from scenemill.transforms.objects import place_of

if TYPE_CHECKING:
    import optuna

_STUDY = "tune"
_OBJECTIVE = "test_dpq_-1.0_epoch"
_LOGARITHMIC = ("train.optim.lr", "train.optim.weight_decay")


@dataclass(frozen=True)
class Tuned:
    """What a search came to.

    Attributes:
        trials: how many are done, those of earlier runs included.
        best: number of the best one, its PQ on the validation split in percent, and its settings.
        folder: of the study; ``tables`` in it has the scores of every trial.
    """

    trials: int
    best: tuple[int, float, dict[str, float]]
    folder: Place


def tune(config: ExperimentConfig, trials: int, on_step: Callable[[Step], None], on_progress: OnProgress) -> Tuned:
    """Search until ``trials`` trials are done.

    Args:
        config: of every trial, but for what is searched; ``dataset.val`` is what counts.
        trials: how many in all.
        on_step: told of every training step. on_progress: of ingests and evaluations.

    Raises:
        ConfigError: no results folder, or no validation split.
    """
    if not config.results_dir:
        raise ConfigError("results_dir is empty: a search needs a folder")
    if not config.dataset.val.base_dir:
        raise ConfigError("dataset.val.base_dir is empty: a search needs a validation split")
    with results_at(place_of(config.results_dir) / _STUDY, cache_folder()) as results:
        return _search(config, results, trials, on_step, on_progress)


def _search(
    config: ExperimentConfig, results: Results, trials: int, on_step: Callable[[Step], None], on_progress: OnProgress
) -> Tuned:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{results.folder / 'study.db'}",
        study_name=_STUDY,
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=max(0, config.train.seed)),
    )
    _put_back(study)
    while (left := trials - _done(study)) > 0:
        on_progress("Trials", trials - left, trials)
        trial = study.ask()
        study.tell(trial, _run_trial(config, trial, results, on_step, on_progress))
        results.send_meanwhile()
    best = study.best_trial
    return Tuned(_done(study), (best.number, best.value or 0.0, dict(best.params)), results.place)


def _put_back(study: "optuna.Study") -> None:
    """Trials that were under way when a search was stopped are tried again, with the same settings."""
    import optuna

    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params, skip_if_exists=False)


def _done(study: "optuna.Study") -> int:
    import optuna

    return len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)))


def _run_trial(
    config: ExperimentConfig, trial: "optuna.Trial", results: Results, on_step: Callable[[Step], None], on_progress: OnProgress
) -> float:
    """PQ on the validation split, in percent, of one training."""
    chosen = {name: trial.suggest_float(name, low, high, log=name in _LOGARITHMIC) for name, low, high in searched(config)}
    name = "-".join(f"{value:.6g}" for value in chosen.values())  # the same settings are the same folder: it goes on there
    overrides = [f"{setting}={value!r}" for setting, value in chosen.items()]
    held = read_spec(resolved(config), [*overrides, f"results_dir={results.folder / name}"], "tune")
    held = replace(held, encryption_key=config.encryption_key, model_name=name)
    trained = run_training(held, on_step, on_progress)
    evaluated = replace(
        held,
        dataset=replace(held.dataset, test=held.dataset.val),
        evaluate=replace(held.evaluate, checkpoint=str(trained.checkpoint)),
    )
    found = run_evaluation(evaluated, on_progress, tables=results.tables)
    return float(found.kpi[_OBJECTIVE])


def searched(config: ExperimentConfig) -> list[tuple[str, float, float]]:
    """What is searched: (dotted name, least, most) of every setting that the documentation marks for it."""
    found: list[tuple[str, float, float]] = []
    for name, setting, _ in walk(config):
        about: Any = setting.about
        if about.get("automl"):
            found.append((name, float(about["least"]), float(about["most"])))
    return found
