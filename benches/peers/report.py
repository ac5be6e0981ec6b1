"""Tables, and the folder that keeps a run: README.md, results.json, table.md."""

import datetime
import json
import pathlib
import shlex
import statistics
import sys

from harness import ROOT, Failure

RUNS = ROOT / "benches" / "runs"


def number(value):
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def ratio(value):
    return "-" if value is None else f"{value:.2f}"


def markdown(head, rows):
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(row):
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        return "| " + " | ".join(cells) + " |"

    rule = "| " + " | ".join(["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]) + " |"
    return "\n".join([line(head), rule, *map(line, rows)])


def spread(values):
    """'median (lowest .. highest)'"""
    if not values:
        return "-"
    return f"{number(statistics.median(values))} ({number(min(values))} .. {number(max(values))})"


def paired_ratio(mine, other):
    """Median over the rounds of mine/other, with its range; both ran in the same round, minutes apart at most."""
    pairs = [a / b for a, b in zip(mine, other) if b]
    if not pairs:
        return None
    return statistics.median(pairs), min(pairs), max(pairs)


def command_line(name):
    """The command that made a run, without where it was stored."""
    words, arguments = ["scripts/bench", name], iter(sys.argv[1:])
    for word in arguments:
        if word == "--out":
            next(arguments)
        elif not word.startswith("--out="):
            words.append(word)
    return shlex.join(words)


def facts_text(facts):
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    return (f"{facts['date']}, commit {facts['commit']}. {facts['cores']} cores of {facts['cpu']}, "
            f"{facts['memory']} memory, kernel {facts['kernel']}, virtual machine: {facts['virtual']}, "
            f"load at the start {facts['load_at_start']:.2f}, "
            f"taken by the hypervisor {facts.get('steal_percent', 0):.1f}%. {packages}.")


def add_storing(parser, label, says=None):
    """Arguments that say where a run is kept."""
    parser.add_argument("--label", default=label, help=f"name of the stored run ({says or label})")
    parser.add_argument("--out", type=pathlib.Path, help="store the run in this folder, not in benches/runs")
    parser.add_argument("--no-save", action="store_true", help="store nothing")


def publish(name, title, facts, table, results, options, label=None):
    """Shows what a benchmark found, and keeps it unless told not to."""
    print("\n" + table + "\n\n" + facts_text(facts))
    if not options.no_save:
        folder = store(label or options.label, title, command_line(name), facts, table, results, options.out)
        print(f"\nstored in {folder}")


def run(main):
    """The program's end: its exit code, with an error in words."""
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(f"error: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)


def store(label, title, command, facts, table, results, out=None):
    """Writes a run down; returns its folder. Compared `results` get a word on how they were gathered."""
    how = ("" if "results" not in results else
           " Figures are medians (lowest .. highest) over the rounds; ratios are medians of the ratios within each "
           "round. Every round ran every system, in a rotated order.")
    day = datetime.date.today().isoformat()
    folder = (out or RUNS) / f"{day}-{label}"
    count = 1
    while folder.exists():
        count += 1
        folder = (out or RUNS) / f"{day}-{label}-{count}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise Failure(f"cannot store the run: {error}") from None
    (folder / "table.md").write_text(table + "\n")
    (folder / "results.json").write_text(json.dumps({"facts": facts, "command": command, **results}, indent=1) + "\n")
    (folder / "README.md").write_text(
        f"# {title}\n\n{facts_text(facts)}\n\nMade by `{command}`.{how}\n\n{table}\n\nRaw figures of every run: [results.json](results.json).\n")
    return folder
