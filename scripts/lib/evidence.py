"""Checks docs/evidence.md: each row names a test, and each test and each mutant it names exists."""

import pathlib
import re
import sys

root = pathlib.Path(sys.argv[1])
tests = set()
for folder in ("replicator", "orchestrator", "nbd-frontend", "tests", "src"):
    for file in (root / folder).rglob("*.rs"):
        tests.update(re.findall(r"#\[(?:tokio::)?test[^\]]*\]\s*(?:async )?fn (\w+)", file.read_text()))
# Cases and scenarios that are sentences.
sentences = set()
for file in (root / "orchestrator/core/tests/golden").glob("*.txt"):
    sentences.update(re.findall(r"^## (.+)$", file.read_text(), re.MULTILINE))
sentences.update(re.findall(r'": \("([^"]+)"', (root / "tests/netns/netns.py").read_text()))
mutants = {file.stem for file in (root / "tests/mutants").glob("*.patch")}

wrong, numbers, tables = [], [], []
for line in (root / "docs/evidence.md").read_text().splitlines():
    if line.startswith("| # |"):
        numbers = []
        tables.append(numbers)
    if not re.match(r"\| \d+ \|", line):
        continue
    number, what, held, broken = [cell.strip() for cell in line.strip("|").split("|")]
    numbers.append(int(number))
    named = [name for name in re.findall(r"`(\w+)`", held)]
    if not named:
        wrong.append(f"row {number} ({what}) names no test")
    wrong += [f"row {number}: there is no test {name}" for name in named if name not in tests]
    wrong += [f"row {number}: there is no case {name}" for name in re.findall(r'"([^"]+)"', held) if name not in sentences]
    wrong += [f"row {number}: there is no mutant {name}" for name in re.findall(r"`([\w-]+)`", broken) if name not in mutants]
if tables != [list(range(1, 39)), list(range(1, 29)), list(range(1, 18))]:
    wrong.append("a row is missing, or there is one too many")
if wrong:
    sys.exit("docs/evidence.md:\n  " + "\n  ".join(wrong))
