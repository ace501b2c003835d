"""``python -m internvl_chat.train`` = ``internvl train``."""

import sys

from internvl_chat.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
