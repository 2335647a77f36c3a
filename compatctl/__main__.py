"""``python -m compatctl``, and the console script."""

import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback also while it is being imported."""
    try:
        from compatctl.cli import main as run

        run()
    except KeyboardInterrupt:
        print("interrupted: nothing was committed", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
