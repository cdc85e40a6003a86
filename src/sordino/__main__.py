"""`python -m sordino`."""

from sordino.cli.app import main

if __name__ == "__main__":
    main()
