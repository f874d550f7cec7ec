"""Is the output still what the run wrote? Hashes, totals that must agree, and rows read again."""

from curate.verification.order import verify
from curate.verification.result import Verification

__all__ = ["Verification", "verify"]
