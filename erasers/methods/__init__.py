"""One file per method; `closed_form.py` and `rows.py` hold what they share."""
