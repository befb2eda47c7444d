"""The verdicts of oslo.utils' format inspector over files, one JSON object a line.

Usage: python3 tests/oslo/verdicts.py FILE...  (needs `pip install oslo.utils cryptography`)
"""

import json
import logging
import sys

from oslo_utils.imageutils import format_inspector as oslo

logging.disable(logging.CRITICAL)


def verdict(path):
    """The format and what failed; nothing failed in an image that is safe."""
    try:
        found = oslo.detect_file_format(path)
    except Exception as error:  # ambiguous, or damaged beyond detection
        return {"format": None, "failed": ["format"], "why": str(error)}
    name = str(found)
    try:
        # What detection stopped short of: the footer is read here.
        with open(path, "rb") as file:
            inspector = type(found)()
            while chunk := file.read(1 << 16):
                inspector.eat_chunk(chunk)
            inspector.finish()
        inspector.safety_check()
    except oslo.SafetyCheckFailed as error:
        why = "; ".join(str(e) for e in error.failures.values())
        return {"format": name, "failed": sorted(error.failures), "why": why}
    except Exception as error:
        return {"format": name, "failed": ["structure"], "why": str(error)}
    return {"format": name, "failed": [], "why": ""}


for path in sys.argv[1:]:
    print(json.dumps({"file": path, **verdict(path)}))
