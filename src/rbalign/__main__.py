"""`python -m rbalign` is `rba`: launchers such as torchrun take a module."""

from rbalign.cli.main import main

main()
