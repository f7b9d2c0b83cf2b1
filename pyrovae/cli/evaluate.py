"""`pyrovae evaluate`: measures a trained run on its test data, in ELBO, IWAE-50 bound and log p(x), with errors."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import tyro

from pyrovae.common import check_folder, if_given, require_count, require_seed, written_together
from pyrovae.runs import require_run


def evaluate_run(
    folder: Annotated[Path, tyro.conf.Positional],
    num_samples: int = 1_000,
    num_data: int | None = None,
    data_root: str | None = None,
    dataset: str | None = None,
    device: str = "auto",
    seed: int = 0,
    methods: tuple[str, ...] = (),
    overwrite: bool = False,
) -> None:
    """Evaluate a run; writes evaluation.json, report.md, report.html and figures/ into its folder.

    Args:
        folder: the run, as `train` kept it
        num_samples: draws per datum for log p(x)
        num_data: the first so many test data (default: all)
        data_root: folder of the image sets, if they have moved since the training
        dataset: where data of your own are, if they have moved since the training
        device: auto, cpu, cuda, ...
        seed: fixes the draws
        methods: compare estimates of log p(x) instead: elbo, iwae_K, is_S, ais_T, ais_prior_T; writes estimates.json,
            estimates.md, estimates.html and figures/estimates.png
        overwrite: replace an earlier evaluation
    """
    require_run(folder, dataset)  # before the imports of torch, and the values before the files that are there
    require_count("num_samples", num_samples)
    if_given(require_count, "num_data", num_data)
    require_seed(seed)
    from pyrovae.common import Workers, choose_device, device_of_worker
    from pyrovae.evaluation import IN_METHODS, check_methods, evaluate
    from pyrovae.runs import (
        ESTIMATES_FILES,
        EVALUATION_FILES,
        first_test_data,
        load_run,
        measure,
        nats_of_units,
        results_table,
        write_estimates,
        write_evaluation,
    )

    if methods:
        check_methods(methods)
    run, workers = load_run(folder, data_root, dataset), Workers()
    name, files = ("estimates", ESTIMATES_FILES) if methods else ("evaluation", EVALUATION_FILES)
    with ExitStack() as block:

        def begin() -> Path:
            check_folder(run.folder, "run folder")
            return block.enter_context(written_together(run.folder, name, files, overwrite=overwrite))

        beside = workers.by_first(begin)  # the other processes measure their shares and write nothing
        run.vae.to(choose_device(device_of_worker(device)))
        if methods:
            args = first_test_data(run.vae, run.data, num_data)
            dequantised = run.config.binarize == "dequantise"
            model, guide = run.vae.model, run.vae.guide
            estimates = evaluate(model, guide, *args, methods=methods, dequantised=dequantised, seed=seed)
            if workers.is_first:
                print(f"{len(args[0]):,} test data of {folder}\n\n{estimates.table()}")
                print(f"{estimates.verdict_in(IN_METHODS)}\n")
                lower = nats_of_units(run.data, args[0])
                if lower is not None:
                    side = "lower" if lower > 0 else "higher"
                    print(f"in the units of the file, each is {abs(lower):.3f} nats {side}\n")
                write_estimates(beside, run, estimates, len(args[0]))
        else:
            evaluation = measure(run.vae, run.data, num_samples=num_samples, num_data=num_data, seed=seed)
            if workers.is_first:
                print(results_table({str(folder): evaluation}))
                for said in filter(None, (evaluation["verdict"], evaluation["collapse"])):
                    print(f"\n{said}")
                print()
                write_evaluation(beside, run, evaluation)
    if workers.is_first:
        report = "estimates" if methods else "report"
        print(f"report: {folder / report}.md and {report}.html")
