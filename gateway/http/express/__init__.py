"""The express way of requests for tokens: from the bytes of a connection to its reply by callbacks,
without a task, a parser of heads or a middleware.

It decides nothing about who may pass: whoever sends the head of a request that went the long way,
and passed every check there, passes (`heads`). Everybody else goes the long way, as does every body
that is refused: so each refusal has one home. From there on both ways use the same parts; what is
here is only how a request comes in (`way`) and how its reply goes out (`exchange`, `replies`).
"""
