"""The HTTP service over a `Recommender`.

`app` has the routes, `requests` checks what is asked and shapes the answer, `batching` joins
waiting requests into one batch, `middleware` limits, counts, logs and words problems. `loading`
says what is loaded, `live` replaces it while requests are in flight, `process` runs all that in one
process, and `workers` runs several of these on one port.
"""
