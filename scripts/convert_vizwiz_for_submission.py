"""``python -m llava.eval.convert vizwiz`` under the name that it has in the original repository."""

import sys

from llava.eval.convert import main

if __name__ == "__main__":
    sys.exit(main(["vizwiz", *sys.argv[1:]]))
