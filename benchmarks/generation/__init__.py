"""What the engines of text generation do in one run: continuous batching, static batches, one request at a time.

Without Ray, HTTP and a tokenizer: requests are tokens, models have random weights. ``python -m benchmarks.generation``.

| module      | what                                                                        |
|-------------|-----------------------------------------------------------------------------|
| ``models``  | models of random weights, and the engines for them                          |
| ``lengths`` | how long prompts and answers are                                             |
| ``clients`` | requests, one after the other, all at once or by chance, and when tokens come |
| ``figures`` | throughput, percentiles, what keeps a promise                                |
| ``rounds``  | the measurements                                                             |
| ``replicas``| one and two processes                                                        |
| ``report``  | tables, and what goes into the documentation                                 |
"""
