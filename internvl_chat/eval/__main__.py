"""``python -m internvl_chat.eval CKPT TASK...``: what ``evaluate.sh`` starts in every process."""

from __future__ import annotations

import sys

from internvl_chat.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
