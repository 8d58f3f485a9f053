"""The study: which recipes are tried, and what is known of them, in an Optuna database.

**What.** Three objectives (accuracy up, size and latency down) and the budget as constraints, for Optuna's
tree-structured Parzen estimator: it proposes what resembles the better trials so far, and trials that break
the budget, or were cut, count as bad. The first few are drawn at random. A recipe that was tried is not tried
again: the proposal is then replaced by one that was not.

**Killed and resumed.** Each proposal is drawn from a seed of its own, made of the search's seed and the
trial's number, so what is proposed depends on what is known, and not on how often the process was started. A
trial that was running is taken up again with the choices it had.

Sources: Y. Ozaki et al. 2022, "Multiobjective Tree-Structured Parzen Estimator" (JAIR 73); S. Watanabe and
F. Hutter 2023, "c-TPE" (arXiv:2211.14411) for constraints; https://optuna.readthedocs.io.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pressoir.recipe_search.budget import SearchLimits, measured
from pressoir.recipe_search.config import Choices, Range, options
from pressoir.recipe_search.records import Trial, TrialOutcome

if TYPE_CHECKING:
    import optuna

_DIRECTIONS: tuple[Literal["maximize", "minimize"], ...] = ("maximize", "minimize", "minimize")
_STARTUP_TRIALS = 6
_OUTCOME, _REPEATS = "outcome", "repeats"
_LISTED = 100_000
"""Spaces up to this size are listed where chance finds nothing new in them."""


@dataclass(frozen=True)
class Proposal:
    """A trial that is to be run."""

    number: int
    values: dict[str, Any]


class Study:
    """The trials of one search, in a file; one process at a time may propose."""

    def __init__(
        self, path: Path, space: Mapping[str, Choices], seed: int, first: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._seed, self._first = dict(space), seed, first
        self._study = optuna.create_study(
            storage=f"sqlite:///{path.absolute()}",
            study_name="search",
            directions=_DIRECTIONS,
            load_if_exists=True,
        )
        self._left_over = [trial for trial in self._all() if not trial.state.is_finished()]
        self._running = dict[int, optuna.trial.Trial]()

    @property
    def combinations(self) -> int:
        """How many recipes the space has."""
        return math.prod(len(options(choices)) for choices in self._space.values())

    def trials(self) -> list[Trial]:
        """All that ended, each recipe once, by number."""
        return [
            Trial(
                number=trial.number,
                values=self._values(trial.params),
                outcome=TrialOutcome.model_validate_json(trial.user_attrs[_OUTCOME]),
            )
            for trial in self._all()
            if trial.state.is_finished() and _OUTCOME in trial.user_attrs
        ]

    def begun(self) -> int:
        """How many recipes were tried, or are being tried."""
        return sum(_REPEATS not in trial.user_attrs for trial in self._all())

    def ask(self, limit: int) -> Proposal | None:
        """The next trial: those that a killed process left, then those to try first, then the sampler's; None
        where `limit` recipes have been begun.

        `limit` counts all trials of the study, and each recipe once.
        """
        import optuna

        while self._left_over:
            left = self._left_over.pop(0)
            self._draw_for(left.number)
            trial = optuna.trial.Trial(self._study, left._trial_id)
            if (asked := self._propose(trial)) is not None:
                return asked
        while self.begun() < min(limit, self.combinations):
            number = len(self._all())
            self._draw_for(number)
            if (params := self._next_first()) is not None:
                self._study.enqueue_trial(params)
            if (asked := self._propose(self._study.ask())) is not None:
                return asked
            self._study.enqueue_trial(self._untried(number))
        return None

    def tell(self, asked: Proposal, outcome: TrialOutcome, limits: SearchLimits) -> Trial:
        """Note how a trial ended."""
        from optuna.trial import TrialState

        trial = self._running.pop(asked.number)
        for violation in measured(outcome.cost, outcome.accuracy, limits):
            if violation.constraint not in trial.constraints:  # of a process that was killed just here
                trial.set_constraint(violation.constraint, violation.part)
        trial.set_user_attr(_OUTCOME, outcome.model_dump_json())
        metrics = outcome.figures
        if metrics is not None:
            values = (metrics.accuracy, metrics.size_mb, metrics.latency_ms)
            self._study.tell(trial, values)
        else:
            state = TrialState.PRUNED if outcome.state == "cut" else TrialState.FAIL
            self._study.tell(trial, state=state)
        return Trial(number=asked.number, values=asked.values, outcome=outcome)

    def _draw_for(self, number: int) -> None:
        import optuna

        seed = random.Random(f"{self._seed}-{number}").getrandbits(32)
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP_TRIALS)

    def _propose(self, trial: optuna.trial.Trial) -> Proposal | None:
        """Choose the trial's values; None, and the trial is over, where another one has them."""
        from optuna.trial import TrialState

        for key, choices in self._space.items():
            if isinstance(choices, Range) and choices.integer:
                trial.suggest_int(key, int(choices.low), int(choices.high), step=int(choices.step))
            elif isinstance(choices, Range):
                highest = float(choices.values()[-1])
                trial.suggest_float(key, float(choices.low), highest, step=float(choices.step))
            else:
                trial.suggest_categorical(key, [json.dumps(value) for value in options(choices)])
        if self._identity(trial.params) in {
            self._identity(earlier.params) for earlier in self._all() if earlier.number < trial.number
        }:
            trial.set_user_attr(_REPEATS, True)
            self._study.tell(trial, state=TrialState.FAIL)
            return None
        self._running[trial.number] = trial
        return Proposal(trial.number, self._values(trial.params))

    def _all(self) -> list[optuna.trial.FrozenTrial]:
        """All trials that have been proposed."""
        from optuna.trial import TrialState

        return [
            trial for trial in self._study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING
        ]

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: _rounded(params[key]) if isinstance(choices, Range) else json.loads(params[key])
            for key, choices in self._space.items()
        }

    def _identity(self, params: Mapping[str, Any]) -> str:
        return json.dumps(self._values(params)) if params.keys() >= self._space.keys() else ""

    def _next_first(self) -> dict[str, Any] | None:
        """The next of the recipes to try first, as parameters; None if all were tried, or one is waiting."""
        from optuna.trial import TrialState

        if self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return None  # of a process that was killed just here
        return self._new({key: values[key] for key in self._space} for values in self._first)

    def _untried(self, number: int) -> dict[str, Any]:
        """A recipe that was not tried yet, as parameters; there is one."""
        rng = random.Random(f"{self._seed}-{number}-new")
        params = self._new(itertools.chain(self._drawn(rng), self._listed()))
        assert params is not None, "all recipes of the space were tried"
        return params

    def _new(self, recipes: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
        """The first of `recipes` that was not tried yet, as parameters."""
        tried = {self._identity(trial.params) for trial in self._all()}
        for values in recipes:
            if json.dumps(values) not in tried:
                return {
                    key: value if isinstance(self._space[key], Range) else json.dumps(value)
                    for key, value in values.items()
                }
        return None

    def _drawn(self, rng: random.Random) -> Iterator[dict[str, Any]]:
        many = 1000 if self.combinations <= _LISTED else 1_000_000
        for _ in range(many):
            yield {key: rng.choice(options(choices)) for key, choices in self._space.items()}

    def _listed(self) -> Iterator[dict[str, Any]]:
        for values in itertools.product(*(options(choices) for choices in self._space.values())):
            yield dict(zip(self._space, values, strict=True))


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else round(value, 10)
