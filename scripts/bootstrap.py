"""Makes `.venv` in the folder above: `python3 scripts/bootstrap.py [--gpu]`. `make` calls it.

Only the standard library is used, since nothing else is there yet. This file must parse on any
Python, so that an old one gives a message instead of a SyntaxError; environment.py does the work.
"""

import os
import subprocess
import sys

# Where `python3` is another, the first that is found is taken.
PYTHONS = ((3, 11), (3, 12), (3, 13), (3, 10))


def is_accepted(version):
    return tuple(version[:2]) in PYTHONS


def find_accepted():
    """An interpreter on PATH that really runs and has an accepted version, or None."""
    for major, minor in PYTHONS:
        program = "python%d.%d" % (major, minor)
        try:
            check = "import sys; print('%d.%d' % sys.version_info[:2])"
            found = subprocess.check_output([program, "-c", check], stderr=subprocess.STDOUT)
        except (OSError, subprocess.CalledProcessError):
            continue
        if found.decode().strip() == "%d.%d" % (major, minor):
            return program
    return None


def refusal(version):
    return (
        "Set-up failed.\nPython 3.10 to 3.13 is needed and this is %d.%d: TensorFlow and TFX are "
        "published for those only.\nInstall one of them (Debian 12: `apt install python3.11`) and "
        "run the same command again; one that is not on PATH is named by "
        "`make PYTHON=/path/to/python3.11 run`.\n" % tuple(version[:2])
    )


def main():
    if is_accepted(sys.version_info):
        from environment import main as set_up

        return set_up()
    another = find_accepted()
    if another is None:
        sys.stderr.write(refusal(sys.version_info))
        return 1
    return os.execvp(another, [another] + sys.argv)  # noqa: RUF005


if __name__ == "__main__":
    sys.exit(main())
