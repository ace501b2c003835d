"""What the library would find out only in the run is said before: absent packages, arguments that nothing takes."""

from __future__ import annotations

import pytest
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.training_args import OptimizerNames

from tests.config.helpers import Parse, Refuse

# Those that torch and transformers bring.
PLAIN = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
PLATEAU = ["--eval_strategy", "epoch", "--lr_scheduler_type", "reduce_lr_on_plateau"]


@pytest.mark.usefixtures("no_packages")
@pytest.mark.parametrize("name", sorted(INTEGRATION_TO_CALLBACK))
def test_a_tracker_whose_package_is_absent_is_refused(refuse: Refuse, name: str) -> None:
    (problem,) = refuse("--report_to", name)
    assert problem.startswith(f"--report_to {name}: the package ")
    assert " is not installed: pip install " in problem


@pytest.mark.usefixtures("all_packages")
@pytest.mark.parametrize("name", ["foo", "wandbb", "tensorboard,none"])
def test_a_tracker_that_does_not_exist_is_refused(refuse: Refuse, name: str) -> None:
    (problem,) = refuse("--report_to", name)
    assert "must be none, all, or some of azure_ml, " in problem


@pytest.mark.usefixtures("no_packages")
@pytest.mark.parametrize("name", sorted({name.value for name in OptimizerNames} - PLAIN))
def test_an_optimizer_whose_package_is_absent_is_refused(refuse: Refuse, name: str) -> None:
    (problem,) = refuse("--optim", name, "--report_to", "none")
    assert problem.startswith(f"--optim {name}: the package ")


@pytest.mark.usefixtures("no_packages")
@pytest.mark.parametrize("name", sorted(PLAIN))
def test_an_optimizer_of_torch_needs_no_package(parse: Parse, name: str) -> None:
    assert parse("--optim", name, "--report_to", "none")[2].optim == name


@pytest.mark.usefixtures("all_packages")
def test_low_rank_needs_to_know_its_layers(refuse: Refuse) -> None:
    (problem,) = refuse("--optim", "galore_adamw")
    assert "--optim_target_modules, e.g. all-linear" in problem


@pytest.mark.parametrize("given", ["foo", "a=1,b", "a=b=c"])
def test_arguments_of_an_optimizer_are_pairs(refuse: Refuse, given: str) -> None:
    assert refuse("--optim", "sgd", "--optim_args", given) == [f"--optim_args {given}: must be name=value,name=value"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--lr_scheduler_kwargs", '{"a": 1}'], "unexpected keyword argument 'a'"),
        (["--lr_scheduler_kwargs", "x"], "must be a JSON object"),
        (["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"min_lr": 0}'], "argument 'min_lr'"),
        (["--lr_scheduler_type", "warmup_stable_decay"], "'num_decay_steps'"),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "say how low"),
        ([*PLATEAU, "--lr_scheduler_kwargs", '{"a": 1}'], "unexpected keyword argument 'a'"),
        ([*PLATEAU, "--metric_for_best_model", "eval/mmbench/accuracy"], "take --lr_scheduler_type cosine, or a loss"),
    ],
)
def test_a_schedule_takes_its_own_arguments(refuse: Refuse, words: list[str], says: str) -> None:
    (problem,) = refuse(*words)
    assert says in problem


@pytest.mark.parametrize(
    "words",
    [
        ["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"num_cycles": 1}'],
        ["--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr_rate": 0.1}'],
        ["--lr_scheduler_type", "warmup_stable_decay", "--lr_scheduler_kwargs", '{"num_decay_steps": 5}'],
        ["--lr_scheduler_type", "inverse_sqrt"],
        ["--lr_scheduler_type", "greedy", "--lr_scheduler_kwargs", '{"patience": 3}', *PLATEAU[:2]],
        [*PLATEAU, "--metric_for_best_model", "eval_loss/mine", "--lr_scheduler_kwargs", '{"patience": 3}'],
        ["--optim", "sgd", "--optim_args", "momentum=0.9,nesterov=true"],
    ],
)
def test_what_goes_together_passes(parse: Parse, words: list[str]) -> None:
    parse(*words)
