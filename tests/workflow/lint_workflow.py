"""`snakemake --lint`, clean but for its wish for a conda environment or a container in every rule: those are the user's choice."""

from __future__ import annotations

import re
import subprocess
import sys

ACCEPTED = "Specify a conda environment or container for each rule."


def main() -> int:
    """Print what is left and exit non-zero where something is."""
    done = subprocess.run(["snakemake", "--lint"], capture_output=True, text=True, check=False)
    told = done.stdout + done.stderr
    places = re.split(r"^Lints for ", told, flags=re.MULTILINE)
    left = [
        (place.partition(":\n")[0], title)
        for place in places[1:]
        for title in re.findall(r"^    \* (.+):$", place, re.MULTILINE)
        if title != ACCEPTED
    ]
    if len(places) == 1 and "Congratulations" not in told:
        print(told)
        return 1
    for place, title in left:
        print(f"{place}: {title}")
    print(f"snakemake --lint: {len(left)} findings beyond the accepted one, in {len(places) - 1} places")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
