import os
import sys

from tools.report.page import main

sys.stdout.reconfigure(errors="backslashreplace")  # a label or path that the terminal cannot show
try:
    main()
except BrokenPipeError:  # python -m tools.report ... | head
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
