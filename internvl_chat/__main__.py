"""``python -m internvl_chat`` = ``internvl``."""

import sys

from internvl_chat.cli import main

if __name__ == "__main__":
    sys.exit(main())
