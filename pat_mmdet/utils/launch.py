"""Run torchrun, and end with one line if a process fails.

``python -m pat_mmdet.utils.launch ARGUMENTS`` takes the arguments of torchrun.
"""

import sys


def main() -> None:
    """Start the processes that the command line asks for, and wait for them."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        cause = f"ended with the exit code {failure.exitcode}"
        if failure.exitcode < 0:
            cause = f"was killed by {failure.signal_name()}"
        sys.exit(
            f"error: process {rank} (pid {failure.pid}) {cause}, and the others were ended; what "
            "it said is above"
        )
    except SignalException as error:
        sys.exit(f"error: all processes were ended by {error.sigval.name}")


if __name__ == "__main__":
    main()
