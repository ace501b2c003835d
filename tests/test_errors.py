"""What is made of errors for a message."""

from __future__ import annotations

import errno
import os

from internvl_chat.errors import first_line


def test_the_first_line_says_what_went_wrong_without_its_number() -> None:
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "a.json")
    assert first_line(missing) == "No such file or directory: 'a.json'"
    assert first_line(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")) == "Connection refused"
    assert first_line(OSError("broken\nand more")) == "broken"
    assert first_line(ValueError("[Errno 2] as it stands\n")) == "[Errno 2] as it stands"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
