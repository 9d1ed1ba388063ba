"""Makes what the book shows once more; see `advlib.book.commands`."""

from advlib.book.commands import main

if __name__ == "__main__":
    main()
