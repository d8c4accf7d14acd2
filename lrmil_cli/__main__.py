"""``python -m lrmil_cli``: the same command line as ``lrmil``."""

from lrmil_cli.app import main

if __name__ == "__main__":
    main()
