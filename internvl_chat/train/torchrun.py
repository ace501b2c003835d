"""``python -m internvl_chat.train.torchrun``: torchrun that ends with the status of its ranks, not in a traceback.

The launcher of torch ends with 1 whatever a rank ended with, and shows its own stack below what the rank has said.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from internvl_chat.train.status import AGAIN, INTERRUPTED, START_AGAIN, output_folder


def main(argv: Sequence[str]) -> int:
    """Run torchrun with these words. Returns 0, or what its ranks ended with."""
    try:
        run.main(list(argv))
        return 0
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            return INTERRUPTED
        return AGAIN if _is_to_start_again(argv) else 128 + error.sigval
    except ChildFailedError as error:
        if _is_to_start_again(argv):
            return AGAIN
        _, first = error.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode


def _is_to_start_again(argv: Sequence[str]) -> bool:
    folder = output_folder(argv)
    return folder is not None and (folder / START_AGAIN).is_file()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
