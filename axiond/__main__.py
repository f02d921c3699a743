"""`python -m axiond` is `axiond`."""

from axiond.cli import main

if __name__ == "__main__":
    main()
