"""From the CSV to tables, pictures and the report; start at summarize.py."""
