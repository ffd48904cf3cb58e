"""Run the nac command as `python -m audiocodec`."""

from audiocodec.cli import main

main()
