#!/usr/bin/env python3
"""What of e2b.h ran: lines and branches, by section and by function, from what gcov counted (make coverage).

    python3 tests/coverage.py DIR [-o FILE] [--lines PERCENT] [--branches PERCENT]

DIR holds e2b_test-e2b_test.gcno and .gcda. Prints the total, the sections and the functions that lack most; FILE gets
every function that lacks something, with its lines. Exit code 1 when the total is below a percentage asked for.

A line is one that has code. A branch is one way out of a condition of the C source: `if (a || b)` has four. Not counted:
the branches of E2B_ASSERT, which no test can take.
"""

import argparse
import collections
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile

SOURCE = "e2b.h"


def gcov(directory):
    """The functions and lines of e2b.h, as gcov has them."""
    notes = os.path.abspath(os.path.join(directory, "e2b_test-e2b_test.gcno"))
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["gcov", "-b", "--json-format", notes], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        name = next(f for f in os.listdir(scratch) if f.endswith(".gcov.json.gz"))
        with gzip.open(os.path.join(scratch, name), "rt") as f:
            data = json.load(f)
    for entry in data["files"]:
        if os.path.basename(entry["file"]) == SOURCE:
            return entry
    sys.exit(f"coverage: nothing is known of {SOURCE} in {directory}")


class Count:
    def __init__(self):
        self.lines = self.lines_run = self.branches = self.branches_run = 0
        self.missing = []  # (line number, text of what is missing)

    def add(self, other):
        for key in ("lines", "lines_run", "branches", "branches_run"):
            setattr(self, key, getattr(self, key) + getattr(other, key))

    def show(self):
        def part(run, of):
            return f"{100.0 * run / of if of else 100.0:6.2f} % {run:6d} of {of:6d}"

        return f"lines {part(self.lines_run, self.lines)}   branches {part(self.branches_run, self.branches)}"

    def lacks(self):
        return self.lines - self.lines_run + (self.branches - self.branches_run) / 2


def sections_of(source):
    """The section each line lies in, by the heads "/* >>>> name */"."""
    name, result = "declarations", []
    for line in source:
        found = re.match(r"/\* >>>> (\w+) \*/", line)
        if found:
            name = found.group(1)
        result.append(name)
    return result


def count(entry, source):
    functions = collections.OrderedDict()
    for line in entry["lines"]:
        number = line["line_number"]
        text = source[number - 1].rstrip()
        c = functions.setdefault(line.get("function_name", "?"), Count())
        c.lines += 1
        c.lines_run += line["count"] > 0
        if line["count"] == 0:
            c.missing.append((number, "-", text))
        if "E2B_ASSERT(" in text:
            continue
        ways = [b for b in line["branches"] if not b["throw"]]
        run = sum(b["count"] > 0 for b in ways)
        c.branches += len(ways)
        c.branches_run += run
        if line["count"] > 0 and run < len(ways):
            c.missing.append((number, f"{run}/{len(ways)}", text))
    return functions


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("dir")
    parser.add_argument("-o", "--out")
    parser.add_argument("--lines", type=float, default=0)
    parser.add_argument("--branches", type=float, default=0)
    parser.add_argument("--worst", type=int, default=40)
    options = parser.parse_args()
    with open(SOURCE, encoding="utf-8") as f:
        source = f.readlines()
    entry = gcov(options.dir)
    functions = count(entry, source)
    section_at = sections_of(source)
    starts = {f["name"]: f["start_line"] for f in entry["functions"]}
    total, sections = Count(), collections.OrderedDict()
    for name, c in functions.items():
        total.add(c)
        sections.setdefault(section_at[starts[name] - 1], Count()).add(c)
    print(f"{SOURCE:<14} {total.show()}")
    for name, c in sections.items():
        print(f"  {name:<12} {c.show()}")
    lacking = sorted((f for f in functions.items() if f[1].missing), key=lambda f: -f[1].lacks())
    print("what lacks most:")
    for name, c in lacking[: options.worst]:
        print(f"  {c.show()}   {name} (line {starts[name]}, {section_at[starts[name] - 1]})")
    if options.out:
        with open(options.out, "w", encoding="utf-8") as f:
            f.write(f"{SOURCE} {total.show()}\n")
            for name, c in lacking:
                f.write(f"\n{name} ({section_at[starts[name] - 1]}): {c.show()}\n")
                f.writelines(f"  {number:6d} {what:>6} {text}\n" for number, what, text in c.missing)
        print(f"every line that did not run, every branch not taken: {options.out}")
    lines = 100.0 * total.lines_run / total.lines
    branches = 100.0 * total.branches_run / total.branches
    return int(lines < options.lines or branches < options.branches)


if __name__ == "__main__":
    sys.exit(main())
