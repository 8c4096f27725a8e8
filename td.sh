N=d; . /tmp/m/senv
q pytest -n 0 -q --maxfail=20 --durations=5 tests/losses tests/models tests/sampling tests/augment tests/config tests/training/test_precision.py tests/training/test_schedules.py tests/training/test_ema.py tests/training/test_recipe.py tests/training/test_lr_find.py tests/test_words.py > /tmp/m/td1.out 2>&1
q pytest -n 0 -q --maxfail=20 --durations=5 tests/training/test_learner.py tests/training/test_two_ranks.py tests/parallel  > /tmp/m/td2.out 2>&1
q pytest -n 0 -q --maxfail=20 --durations=5 tests/checks tests/prediction tests/test_project.py > /tmp/m/td3.out 2>&1
