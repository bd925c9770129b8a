def test_x(tiny_run, tiny_pool):
    import pandas as pd
    print(tiny_pool.select.head(), tiny_pool.report.shape)
    print((tiny_run/"leaderboard.csv").read_text())
