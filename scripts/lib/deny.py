"""A stand-in for `cargo deny check licenses bans sources` where cargo-deny is not installed.

Reads `cargo metadata` on standard input and the same deny.toml: the allowed licences with their exceptions,
the denied crates, and that every dependency comes from crates.io. It knows no advisories.
"""

import json
import re
import sys
import tomllib

CRATES_IO = ("registry+https://github.com/rust-lang/crates.io-index", "sparse+https://index.crates.io/")


def satisfied(expression, allowed):
    """Whether an SPDX expression can be met with the allowed licences."""
    words = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def alternatives():
        good = both()
        while words and words[0] == "OR":
            words.pop(0)
            good = both() or good
        return good

    def both():
        good = one()
        while words and words[0] == "AND":
            words.pop(0)
            good = one() and good
        return good

    def one():
        word = words.pop(0)
        if word == "(":
            good = alternatives()
            words.pop(0)
            return good
        if words and words[0] == "WITH":
            words.pop(0)
            word = f"{word} WITH {words.pop(0)}"
        return word in allowed

    return alternatives()


def problems(metadata, rules):
    licences = rules.get("licenses", {})
    allowed = set(licences.get("allow", ()))
    exceptions = {entry.get("crate", entry.get("name")): set(entry["allow"]) for entry in licences.get("exceptions", ())}
    banned = {entry if isinstance(entry, str) else entry.get("crate", entry.get("name"))
              for entry in rules.get("bans", {}).get("deny", ())}
    for package in metadata["packages"]:
        name, version = package["name"], package["version"]
        if package["source"] is None:
            continue
        if not package["source"].startswith(CRATES_IO):
            yield f"{name} {version} comes from {package['source']}"
        if name in banned:
            yield f"{name} {version} is banned"
        if not package["license"]:
            yield f"{name} {version} names no licence"
        elif not satisfied(package["license"], allowed | exceptions.get(name, set())):
            yield f"{name} {version} has the licence {package['license']}, which is not allowed"


def main():
    try:
        with open(sys.argv[1], "rb") as file:
            rules = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        sys.exit(f"error: {sys.argv[1]}: {error}")
    metadata = json.load(sys.stdin)
    found = list(problems(metadata, rules))
    for line in found:
        print(line)
    print(f"{len(metadata['packages'])} packages, {len(found)} problems")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
