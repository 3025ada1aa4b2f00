"""From the CSV to tables, pictures and the report; summarize.py is the way in."""
