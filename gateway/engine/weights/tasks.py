"""What the tasks of compiled code are made of: the names of their fields, of 64 bits each.

Behind them are two more: how many units of work there are, and how many of them are taken.
"""

PRODUCT = (
    "input", "weight", "bias", "output", "pairs", "block_bytes", "bias_step", "output_bytes",
    "rows", "tile",
)  # fmt: skip
"""`input` [rows, 2 * pairs] and `output` (rows `output_bytes` apart) are addresses of
bfloat16, `bias` of float32: those of each block `bias_step` bytes apart. A block is multiplied with
`tile` of the rows at a time, at most `gemv_code.most_tile`."""
NORM = ("hidden", "added", "weight", "output", "eps", "size", "row_bytes", "added_bytes")
"""`hidden` becomes `hidden` + `added`, `output` the root mean square norm of that, times `weight`:
rows of `size` bfloat16, `row_bytes` (those of `added`: `added_bytes`) apart. A unit is a row."""
GATE = ("input", "output", "rows", "half_bytes", "input_bytes", "output_bytes")
"""`output` becomes SiLU of `input`, times what lies `half_bytes` behind it; rows lie `input_bytes`
and `output_bytes` apart. A unit is 16 numbers of each row."""
ATTEND = (
    "input", "output", "keys", "values", "rows", "positions", "cos", "sin", "query_norm",
    "key_norm", "eps", "scale", "window", "group", "shared", "input_bytes", "output_bytes",
    "row_bytes", "head_bytes", "inner_bytes",
)  # fmt: skip
"""`input` are the queries, keys and values of each token, heads side by side; `group` queries look
at each of `shared` keys. Tokens go to the cache's `rows` at `positions`, 64 bits each; `keep` puts
all of them there before `attend` looks. A head there has `row_bytes` and `head_bytes` to the next,
and `inner_bytes` from one number of a key to the next where its tokens lie side by side. `window` 0
is none. A unit is a shared head of one token.

`eps` and `scale` are the bits of a float32, as in the other tasks."""
