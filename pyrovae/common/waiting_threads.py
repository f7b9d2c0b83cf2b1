"""How long the threads of a step wait for each other before they sleep."""

import os


def spin_briefly() -> None:
    """Lets threads that wait spin for a thirtieth of the usual time, unless the user's environment says how long.

    A thread that has done its share of a step spins until the others have done theirs: in libgomp for 300,000 turns or
    some 10 ms. On a busy machine it thereby keeps its core from the very thread that it waits for, and a step takes ten
    times as long. On a quiet machine it makes no difference. The libraries read it when torch is imported.
    """
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = "10000"
