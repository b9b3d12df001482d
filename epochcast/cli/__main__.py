"""`python -m epochcast.cli`: the command line where no `epochcast` script is on the path."""

from epochcast.cli import main

main()
