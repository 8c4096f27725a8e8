"""What finds the lakes of the demo: the recipe before, and one change after the other.

python benchmarks/rare_classes.py             # all rows
python benchmarks/rare_classes.py effective   # one of them

Writes configs/rare_classes/record.json for nbs/studies/02_rare_classes.ipynb; recorded runs are not repeated.
One thread each, the last epoch is scored. A row takes 3 to 10 minutes.
"""
