"""`python -m cleantune` is the command line."""

from cleantune.cli.main import main

if __name__ == "__main__":
    main()
