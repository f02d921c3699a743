"""The real daemon around fake engines: `python -m tests.fakes.daemon MANIFEST [--budget-gib N]`."""

import argparse
import sys
from pathlib import Path

from axiond.daemon import Settings, run

FAKE_ENGINE = (sys.executable, str(Path(__file__).with_name("fake_engine.py")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--budget-gib", type=float)
    options = parser.parse_args()
    budget_bytes = int(options.budget_gib * 2**30) if options.budget_gib else None
    return run(options.manifest, Settings(FAKE_ENGINE, budget_bytes))


if __name__ == "__main__":
    sys.exit(main())
