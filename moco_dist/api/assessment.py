"""Evaluate from Python, in this process or in all ranks of torchrun."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from moco_dist.api.settings import ConfigLike, config_of
from moco_dist.config import Config
from moco_dist.config.from_python import Overrides, as_path, plain, values_of, whole_of
from moco_dist.evaluate import options as evaluation
from moco_dist.ranks.rank import Rank


def assess(
    run: str | os.PathLike[str],
    *,
    knn: bool = False,
    linear: bool = False,
    solver: Literal["auto", "lbfgs", "sgd"] = "auto",
    features: Literal["backbone", "head"] = "backbone",
    labels: int | Literal["all"] | None = None,
    label_fraction: float | None = None,
    draws: int | None = None,
    finetune: bool = False,
    supervised: bool = False,
    semi: bool = True,
    epochs: int | None = None,
    split: Literal["test", "validation"] = "test",
    out: str | os.PathLike[str] | None = None,
    wandb: bool = False,
    config: ConfigLike | None = None,
    overrides: Overrides = (),
    verbose: bool = False,
) -> list[dict[str, Any]]:
    """Measure what an encoder has learned, as `python -m moco_dist.evaluate` does: by classifiers on its features.

    Under torchrun every rank calls it, and the ranks share the work; they change no figure. What has been computed
    before is not computed again. This process is given back as it was. docs/evaluation.md describes the methods.

    Args:
        run: a run, its directory, or a file of weights.
        knn: weighted kNN with `eval.knn_k` and `eval.knn_temperature`. Without `knn`, `linear`, `labels` and
            `label_fraction`, both kNN and the linear probe are computed.
        linear: a linear probe on the features of all labelled images.
        solver: of the linear probe; `auto` chooses by memory.
        features: of kNN and the linear probe: of the backbone, or the output of the head.
        labels: the methods for few labels, on so many images, equally many of each class; or `all`, on which `finetune`
            and `supervised` train networks.
        label_fraction: the same, as a part of the labelled images, above 0 and at most 1.
        draws: random draws of the few labels, 1 unless it is set.
        finetune: adds the encoder fine-tuned on these labels.
        supervised: adds networks trained from scratch on the same labels.
        semi: whether the semi-supervised method is among those for few labels.
        epochs: of each training on all labels; unset, its recipe's.
        split: the images that the figures are of; `validation`, cut from the training images, is for tuning.
        out: folder of the results (`evaluation.json` and `evaluation/`); unset, the run directory, or the folder of the
            weights.
        wandb: whether the results are added to the run at W&B.
        config: of a file of weights, in any form that `fit` takes; a run has its own.
        overrides: as those of `fit`, such as `{"data.root": FOLDER}`.
        verbose: whether the table is printed, by rank 0; warnings always are, on stderr.

    Returns:
        The rows of the table, a row a method, as `evaluation.json` has them; on every rank. A row has `method`,
        `labels` (None for all), `draws`, mean and sample standard deviation of the accuracy over the draws, from 0 to 1
        (`test_accuracy_mean`, `test_accuracy_std`; of the split), all `accuracies`, `seconds` a draw, and `notes`.

    Raises:
        UserError: a mistake of the user's, in one line. It names options as the command line does, `--labels`.
        Exception: whatever else goes wrong, as it was raised.

    Example:
        >>> import moco_dist
        >>> rows = moco_dist.assess("runs/digits", knn=True)
        >>> [row["method"] for row in rows]
        ['kNN']
        >>> 0 <= rows[0]["test_accuracy_mean"] <= 1
        True
    """
    options = evaluation.checked(
        evaluation.Options(
            path=as_path("RUN_DIR|WEIGHTS", run),
            config=[],
            knn=knn,
            linear=linear,
            solver=solver,
            features=features,
            labels="all" if isinstance(labels, str) and labels == "all" else whole_of("--labels", labels),
            label_fraction=plain(label_fraction),
            draws=whole_of("--draws", draws),
            finetune=finetune,
            supervised=supervised,
            semi=semi,
            epochs=whole_of("--epochs", epochs),
            split=split,
            out=None if out is None else as_path("--out", out),
            wandb=wandb,
        )
    )
    rank = Rank.from_environment(quiet=not verbose)

    def load(values: Mapping[str, Any]) -> Config:
        return config_of(config, values)

    loaded = evaluation.config_of(options, config, values_of(overrides), load)
    from moco_dist.evaluate import process
    from moco_dist.ranks.process_state import preserved

    with preserved("moco_dist.assess"):
        return process.call(options, loaded, rank)
