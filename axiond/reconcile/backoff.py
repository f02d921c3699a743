"""When a failed engine or source is tried again. The clock and the jitter come in as numbers."""

FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 60.0
STABLE_S = 60.0
MOST_FAILURES = 5


def retry_delay_s(failures: int, jitter: float) -> float:
    """Seconds until try *failures* + 1: doubling, bounded, spread by a quarter; *jitter* lies in [0, 1)."""
    return float(min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (max(failures, 1) - 1)) * (0.75 + 0.5 * jitter))


def failures_after_exit(failures: int, was_ready_for_s: float) -> int:
    """Count an exit; an engine that stayed ready for `STABLE_S` starts afresh."""
    return 1 if was_ready_for_s >= STABLE_S else failures + 1
