"""The access log: a JSON line per request, without anything that people wrote.

It has routes and no paths, counts and no ids, and no addresses. A file that is moved away, as
`logrotate` does, is opened anew.
"""

import json
import logging
from collections.abc import Callable
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from lcrec.core.errors import InputError


def open_access_log(path: Path) -> Callable[[dict[str, Any]], None]:
    """Return what appends a record to the log, in one write, so that several processes share it.

    Raises:
        InputError: the file cannot be written to.
    """
    try:
        handler = WatchedFileHandler(path, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"--access-log {path}: cannot be written to ({error.strerror}); name a file in a "
            "folder that exists"
        ) from None
    logger = logging.Logger("lcrec.access")
    logger.addHandler(handler)
    return lambda record: logger.info(json.dumps(record))
