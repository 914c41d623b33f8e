"""`concord`, and `python -m pipeline`, as the workflow's rules call it: the command line in a process of its own."""

import sys
from types import ModuleType

from pipeline.cli import main


def run() -> None:
    """The command line, with a torch that starts in little more than half the time.

    A second of torch's import goes to shape rules of its operators, which only its compiler and tensors without data need; nothing here
    uses either. This is no function of `main`, as it concerns all of a process.
    """
    if "torch" not in sys.modules:
        sys.modules["torch._meta_registrations"] = ModuleType("torch._meta_registrations")
    main()


if __name__ == "__main__":
    run()
