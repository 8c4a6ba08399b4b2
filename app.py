"""Atelier: `python app.py` makes .venv on a fresh machine, starts itself inside and serves the page."""

from backend import bootstrap

if __name__ == "__main__":
    bootstrap.enter()  # returns only inside a complete .venv
    from backend.cli import main

    main()
