"""What `python app.py bench` runs. Seconds depend on the machine and other work: compare ratios, within one run."""
