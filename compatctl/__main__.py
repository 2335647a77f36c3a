"""``python -m compatctl``."""

from compatctl.cli import main

main()
