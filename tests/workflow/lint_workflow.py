"""`snakemake --lint`, clean but for its wish for a conda environment or a container in every rule: those are the user's choice."""

from __future__ import annotations

import json
import subprocess
import sys

ACCEPTED = ("No conda environment or container specified", "Specify a conda environment or container for each rule.")


def main() -> int:
    """Print what is left and exit non-zero where something is."""
    done = subprocess.run(["snakemake", "--lint", "json"], capture_output=True, text=True, check=False)
    start = done.stdout.find("{")
    if start < 0:
        print(done.stdout, done.stderr, sep="\n")
        return done.returncode
    found = json.loads(done.stdout[start:])
    places = found.get("rules", []) + [{"name": name, "lints": lints} for name, lints in found.items() if name != "rules" and isinstance(lints, list)]
    left = [(place.get("name"), lint) for place in places for lint in place.get("lints", []) if lint.get("title") not in ACCEPTED]
    for name, lint in left:
        print(f"{name}: {lint.get('title')}: {lint.get('body')}")
    print(f"snakemake --lint: {len(left)} findings in {len(found.get('rules', []))} rules")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
