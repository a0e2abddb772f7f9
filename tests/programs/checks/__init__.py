"""What a program finds of its files: checks that run in a container, and say what they saw.

`python3 -m tests.programs.checks DIRECTORY [NAME…]`, with the standard library alone, makes each
check in an empty directory of its own and prints a line of JSON for it. A check does not judge: it
returns what became of each thing that it tried, and whoever ran the list by two runtimes compares
the two. Nothing that may differ between two sound runs (times, inode numbers, pids) is in there.
"""
