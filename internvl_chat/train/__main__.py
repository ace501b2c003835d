"""``python -m internvl_chat.train`` = ``internvl train``."""

import sys

from internvl_chat.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    sys.exit(main())
