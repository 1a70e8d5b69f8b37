"""`python -m tutti.apps.cli`: the same as the console script, whatever the PATH is."""

from tutti.apps.cli import main

main()
