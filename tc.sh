N=c; . /tmp/m/senv
q pytest -n 0 -q --maxfail=20 --durations=5 tests/checks/test_network.py tests/training/test_lr_find.py tests/sampling/test_samplers.py  > /tmp/m/tc1.out 2>&1
q pytest -n 0 -q --maxfail=20 --durations=5 tests/training/test_learner.py > /tmp/m/tc2.out 2>&1
