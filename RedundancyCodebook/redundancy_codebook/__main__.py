import sys

from redundancy_codebook.cli import main

sys.exit(main())
