"""`python -m labeler`."""

from labeler.cli import main

if __name__ == "__main__":
    main()
