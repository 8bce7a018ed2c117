"""``python -m llava.eval.convert mmbench`` under the name that it has in the original repository."""

import sys

from llava.eval.convert import main

if __name__ == "__main__":
    sys.exit(main(["mmbench", *sys.argv[1:]]))
