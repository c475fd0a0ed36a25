"""Run the command line by `python -m cleantune`."""

from cleantune.cli.main import main

if __name__ == "__main__":
    main()
