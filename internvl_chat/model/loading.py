"""One model is loaded at a time in a process."""

from __future__ import annotations

import threading

# transformers' from_pretrained takes tie_weights off its base class while it loads (initialization.no_tie_weights).
# Of two at once, the second keeps it off for good: tied output layers then stay random, in all later models.
ONE_AT_A_TIME = threading.RLock()
