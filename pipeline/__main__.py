"""`python -m pipeline`: the same commands as `concord`; the workflow's rules call them this way."""

from pipeline.cli import main

main()
