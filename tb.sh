N=b; . /tmp/m/senv
q pytest -n 0 -q --maxfail=20 --durations=5 tests/parallel tests/losses/test_terms.py tests/models/test_weights.py tests/test_words.py > /tmp/m/tb1.out 2>&1
